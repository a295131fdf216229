"""The second pass of EK-FAC: Factors and the same data in, corrected eigenvalues out.

K-FAC's eigenvalue for component ``(i, j)`` is the product ``lambda_i mu_j``. Here it is measured
in the bases of the first pass: ``S = E[(U_G^T D U_A)^2]``, elementwise, where ``D`` is the gradient
of a sequence or of a position (George et al. 2018, arXiv:1806.03884). Gradients are never stored.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from curvedit.factors import Factors, Key
from curvedit.meter import metered
from curvedit.models import device_of, frozen
from curvedit.ops import Record, choose
from curvedit.passes import Call, Observer, Run

PER = ("sequence", "position")


def correct(
    factors: Factors, first: Run, batches: Iterable[Any], *, per: str, progress: bool
) -> None:
    """Measure the factors' eigenvalues in a pass like the first, and add them to the factors.

    Raises:
        ValueError: the data changed since the first pass, or a sequence was split into parts.
    """
    device = device_of(first.model)
    factors.decompose([(kind, name) for name in factors for kind in ("G", "A")], progress=progress)
    bases = {
        name: (
            factors.basis("G", name).vectors.to(device),
            factors.basis("A", name).vectors.to(device),
        )
        for name in factors
    }
    accumulator = EigenvalueSums(bases, per=per)
    targets = {name: first.observer.targets[name] for name in factors}
    observer = Observer(targets, accumulator.add, positions=first.observer.positions)
    run = Run(
        first.model,
        first.stack,
        first.objective,
        observer,
        accumulator,
        first.inputs_on,
        first.logits_bytes,
        check=first.check,
        reason=first.reason,
    )
    with metered(device) as meter, frozen(first.model), observer.attached():
        run.over(batches, first.task, shown=progress, what="correct")
    if (run.samples, run.positions) != (first.samples, first.positions):
        raise ValueError(
            f"batches: expected the same data in the second pass, {first.samples} samples with "
            f"{first.positions} positions, got {run.samples} with {run.positions}"
        )
    factors.add_corrections(accumulator.sums, per=per, seconds=round(meter.seconds, 3))


class EigenvalueSums:
    """Sums ``S`` (d_out, d_in) of squared gradients in given bases, per sequence or position."""

    def __init__(
        self,
        bases: Mapping[str, tuple[Tensor, Tensor]],  # eigenvectors (d_out, d_out) and (d_in, d_in)
        *,
        per: str,
    ) -> None:
        """Start empty; a sum is created when its target is first called."""
        self.bases, self.per = dict(bases), per
        self.sums: dict[Key, Tensor] = {}
        self.record = Record()

    def add(self, call: Call, gradients: Tensor, *_: Tensor) -> None:
        """Rotate gradients into the bases, sum over each sequence, square, and add to ``S``.

        Raises:
            ValueError: a sequence was split into parts.
        """
        if self.per == "sequence" and not call.sequences:
            raise ValueError(
                "logits_bytes: expected room for the logits of at least one whole sequence, or "
                f"corrected='position', got sequences of {call.name!r} that are split into parts"
            )
        u_out, u_in = self.bases[call.name]
        g, a = (
            _counted(rows, call.weight) @ basis
            for rows, basis in ((gradients, u_out), (call.inputs, u_in))
        )
        key = Key("S", call.name)
        if key not in self.sums:
            self.sums[key] = torch.zeros(g.shape[1], a.shape[1], device=g.device)
        offsets = None
        if self.per == "sequence":
            offsets = torch.arange(call.sequences + 1, device=g.device) * (len(g) // call.sequences)
        implementation = choose(
            "second_moment_accumulate", self.sums[key], g, a, offsets, trusted=True
        )
        implementation(self.sums[key], g, a, offsets)
        self.record.used(implementation)


def _counted(rows: Tensor, weight: Tensor | None) -> Tensor:
    """Return the rows in float32, with those that do not contribute set to zero."""
    return rows.float() if weight is None else rows.float().where(weight[:, None] > 0, 0.0)
