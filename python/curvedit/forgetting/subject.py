"""The model under edit and its data: gradients of the margin loss, and damage on held-out data."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from curvedit.editing import Damage, Unedited, measure_damage, share_right
from curvedit.forgetting.gradients import WeightGradients
from curvedit.forgetting.inputs import Numbered
from curvedit.forgetting.margin import Gaps, MarginLoss
from curvedit.forgetting.weights import Weights
from curvedit.meter import progress
from curvedit.models import default_logits_bytes, device_of, find_stack
from curvedit.passes import Fidelity, Observer, Run


@dataclass(frozen=True)
class Data:
    """The data of a targeted edit."""

    passages: Numbered
    retain: Numbered | None
    holdout: Iterable[Any]


@dataclass
class Subject:
    """A model, its targets and the data of a targeted edit."""

    model: nn.Module  # frozen
    targets: Mapping[str, nn.Module]
    data: Data
    shows_progress: bool
    backward: str = ""  # how the gradients were computed
    _checks: dict[str, tuple[Fidelity | None, str]] = field(default_factory=dict)

    def differentiate(self) -> tuple[Gaps, dict[str, Tensor]]:
        """What is recited now, and the gradient of the loss for each target (d_out, d_in)."""
        gradients = WeightGradients(self.targets)
        gaps = self._pass(self.data.passages, gradients, keeps=False)
        if self.data.retain is not None:
            gradients.scale = self.data.passages.terms / self.data.retain.terms
            self._pass(self.data.retain, gradients, keeps=True)
        return gaps, gradients.sums

    def ordinary(self) -> float:
        """Share of the tokens right of held-out text; 0 for other data."""
        if self.data.passages.task != "language":
            return 0.0
        return share_right(self.model, self.data.holdout, "language")

    def unedited(self, weights: Weights) -> Unedited:
        """The model as it was, for :meth:`damage`."""
        return Unedited.of(self.model, weights.originals)

    def damage(self, unedited: Unedited) -> Damage:
        """The damage done so far."""
        total = getattr(self.data.holdout, "tokens", None)
        with progress(total, unit="tok", what="check", shown=self.shows_progress) as shown:
            task = self.data.passages.task
            return measure_damage(self.model, unedited, self.data.holdout, task, shown.update)

    def _pass(self, data: Numbered, gradients: WeightGradients, *, keeps: bool) -> Gaps:
        gaps = Gaps.none(data.count)
        what = "retain" if keeps else "forget"
        observer = Observer(self.targets, gradients.add, positions="all")
        device = device_of(self.model)
        stack = find_stack(self.model, list(self.targets))
        check, reason = self._checks.get(what, (None, ""))
        run = Run(
            self.model,
            None if reason else stack,
            MarginLoss(gaps, keeps=keeps),
            observer,
            gradients,
            None,
            default_logits_bytes(device),
            reason=reason,
            check=check,
        )
        with observer.attached():
            run.over(data.batches, data.task, shown=self.shows_progress, what=what)
        self._checks[what] = run.check, run.reason
        self.backward = run.backward
        return gaps
