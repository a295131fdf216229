"""Weight gradients of the targets alone: inputs ``a`` and output gradients ``g`` become ``g a^T``.

Parameters never require a gradient, so that no other weight gradient is ever made.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from curvedit.models import weight_of
from curvedit.ops import Record
from curvedit.passes import Call


class WeightGradients:
    """The gradient ``(d_out, d_in)`` of each target's weight, summed over passes, float32."""

    def __init__(self, targets: Mapping[str, nn.Module]) -> None:
        """Start at zero."""
        self.sums = {
            name: torch.zeros(weight.shape, device=weight.device)
            for name, weight in ((name, weight_of(module)) for name, module in targets.items())
        }
        self.record = Record()
        self.scale = 1.0  # of what is added from now on

    def add(self, call: Call, gradients: Tensor, *_: Tensor) -> None:
        """Add one call of a target and its output gradients ``(rows, d_out)``."""
        a, g = call.inputs.float(), gradients.float()
        if call.weight is not None:  # padding may hold anything
            counts = call.weight[:, None] > 0
            a, g = a.where(counts, 0.0), g.where(counts, 0.0)
        self.sums[call.name].addmm_(g.T, a, alpha=self.scale)
