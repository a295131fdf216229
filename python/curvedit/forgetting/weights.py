"""The targets' weights while steps are taken: the originals, and a change kept in float32."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from curvedit.editing import Original


class Weights:
    """The weights ``W + change`` of the targets, in place, rounded to their dtype."""

    def __init__(self, modules: Mapping[str, nn.Module], originals: list[Original]) -> None:
        """Copy the weights; the copies are added to ``originals``, for whoever restores them."""
        originals += [Original.of(name, module) for name, module in modules.items()]
        self.originals = originals
        self.changes = {
            each.name: torch.zeros(each.weight.shape, device=each.weight.device)
            for each in originals
        }

    @torch.no_grad()
    def apply(self, steps: Mapping[str, Tensor], length: float) -> None:
        """Set the weights to the originals, the change so far, and a step of this length."""
        for each in self.originals:
            change = torch.add(self.changes[each.name], steps[each.name], alpha=length)
            original = each.content.to(each.weight.device)
            each.weight.copy_((original.float() + change).to(each.weight.dtype))

    def keep(self, steps: Mapping[str, Tensor], length: float) -> None:
        """Add a step that was applied to the change."""
        for name, change in self.changes.items():
            change.add_(steps[name], alpha=length)
