"""The interface of a loss that a pass differentiates at the model's output."""

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor

from curvedit.data import Batch

LossFunction = Callable[[Any, Any], Tensor]  # (model output, labels) -> summed loss, scalar


class Loss(Protocol):
    """A loss, summed over the terms of a batch."""

    @property
    def custom(self) -> LossFunction | None:
        """The user's own loss, for batches of the task "custom"; None if there is none."""

    def differentiate(
        self, output: Any, batch: Batch, *, start: int = 0, stop: int | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return a tensor and the gradient of the summed loss with respect to it.

        A backward pass starts from the two; the gradient of a scalar may be None.
        """

    def require_valid(self) -> None:
        """Refuse what was differentiated since the last call, if it was not valid.

        A pass calls this once per batch, because a GPU has to be waited for.

        Raises:
            ValueError: logits or labels were not valid.
        """

    def for_check(self) -> "Loss":
        """Return a loss for the self-check: rounding of the logits does not change its labels."""
