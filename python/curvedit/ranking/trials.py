"""What the edit by a selection costs on held-out text: applied, measured and taken back."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn

from curvedit.editing import (
    Original,
    Unedited,
    count_terms,
    edit_weight,
    editable,
    held_out,
    measure_damage,
    restore,
)
from curvedit.factors import Factors
from curvedit.meter import progress
from curvedit.ranking.price import Price, lightest_share
from curvedit.ranking.search import TRIES, Try, share_by_measuring
from curvedit.selection import Selection

_BATCH = 16  # windows of token ids at a time
_PAD = 0  # any id will do, since padding is masked


class Trials:
    """Edits of a model in evaluation mode, each measured beside the model as it was."""

    def __init__(
        self, model: nn.Module, factors: Factors, names: Iterable[str], holdout: Any, *, shown: bool
    ) -> None:
        """Check the targets, and read the text once; copies of the weights stay on the host.

        Raises:
            TypeError: the text is of an unknown kind, or can be read only once.
            ValueError: it is empty or does not fit the model; or a target may not be edited, or is
                not the weight that was fitted.
        """
        self.text = held_out(holdout, _BATCH, _PAD)
        self.positions = count_terms(model, self.text, None)
        modules = editable(model, {name: factors.targets[name] for name in names})
        self.originals = [Original.of(name, module) for name, module in modules.items()]
        self.unedited = Unedited.of(model, self.originals)
        self.model, self.shown = model, shown
        self._found = ""  # by the last try, shown during the next

    def search(
        self,
        prices: Sequence[Price],
        budget: float,
        pick: Callable[[float], Selection],
        *,
        together: bool,
    ) -> Try:
        """Find the share whose edit costs the budget on the text, or a little less.

        Args:
            prices: As for ``share_within``.
            budget: Divergence allowed, in nats per position.
            pick: The selection that keeps a share, by curvature.
            together: Whether the share is one of all targets' mass, or of each target's own.

        Raises:
            ValueError: even the lightest edit costs more, a target has no curvature, or the logits
                are not finite. Nothing changed.
        """
        spectra = [
            (each.values_out, each.values_in)
            for each in pick(1.0).values()
            if each.values_out is not None and each.values_in is not None
        ]

        def measure(share: float, number: int) -> float:
            return self.cost(pick(share), f"try {number} of at most {TRIES}", budget)

        lightest = lightest_share(spectra, together=together)
        return share_by_measuring(prices, budget, lightest, measure)

    def cost(self, selection: Selection, what: str, budget: float) -> float:
        """The divergence from the unedited model, in nats per position; nothing stays changed."""
        try:
            with torch.no_grad():
                for each in self.originals:
                    weight = each.content.to(each.weight.device)
                    edited, _ = edit_weight(each.name, weight, selection, 0.0, None)
                    each.weight.copy_(edited)
            with progress(self.positions, unit="tok", what=what, shown=self.shown) as bar:
                bar.note(self._found)
                damage = measure_damage(self.model, self.unedited, self.text, None, bar.update)
                self._found = f"before: {damage.nats:.3g} of {budget:g} nats"
                bar.note(self._found.removeprefix("before: "))
        finally:
            restore([*self.originals])
        return damage.nats
