"""The second pass of EK-FAC: the curvature of each component itself, in the bases of the first.

K-FAC's eigenvalue for component ``(i, j)`` is the product ``lambda_i mu_j``. Here it is measured:
``S = E[(U_G^T D U_A)^2]``, elementwise, for the gradient ``D`` of a sequence or of a position
(George et al. 2018, arXiv:1806.03884). Gradients are never stored.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from curvedit import ops
from curvedit.collector import Call, Collector

PER = ("sequence", "position")


class EigenvalueCollector(Collector):
    """Accumulates squared gradients in given bases while it observes a batch."""

    def __init__(
        self,
        targets: Mapping[str, nn.Module],
        bases: Mapping[str, tuple[Tensor, Tensor]],  # eigenvectors (d_out, d_out) and (d_in, d_in)
        *,
        per: str,
        positions: str,
    ) -> None:
        """Collect sums ``"S/<target>"`` (d_out, d_in), over sequences or over positions."""
        super().__init__(targets, weighted=False, positions=positions)
        self.bases = dict(bases)
        self.per = per

    def reduce(self, call: Call, gradients: Tensor) -> None:
        """Rotate, sum over each sequence, square, add.

        Raises:
            ValueError: sequences came in parts.
        """
        if self.per == "sequence" and not call.sequences:
            raise ValueError(
                f"logits_bytes: the sequences of {call.name!r} came in parts; expected room for the logits of one "
                "sequence at least, or corrected='position'"
            )
        u_out, u_in = self.bases[call.name]
        g, a = (self._counted(rows, call.weight) @ basis for rows, basis in ((gradients, u_out), (call.inputs, u_in)))
        key = f"S/{call.name}"
        if key not in self.sums:
            self.sums[key] = torch.zeros(g.shape[1], a.shape[1], device=g.device)
        offsets = None
        if self.per == "sequence":
            offsets = torch.arange(call.sequences + 1, device=g.device) * (len(g) // call.sequences)
        ops.call("second_moment_accumulate", self.sums[key], g, a, offsets)

    def _counted(self, rows: Tensor, weight: Tensor | None) -> Tensor:
        """The rows in float32, with zeros in those that do not count, whatever stands there.

        A sequence's gradient takes every row that later losses reach; padding, where they do not, may be NaN.
        """
        rows = rows.float()
        if weight is None:
            return rows
        counts = weight[:, None] > 0
        if self.per == "sequence" and self.positions == "all":
            counts = counts | rows.isfinite().all(dim=1, keepdim=True)
        return rows.where(counts, 0.0)
