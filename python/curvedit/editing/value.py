"""The value that an edit returns: what was done to each weight, and how to undo it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from curvedit.models import weight_of


@dataclass(frozen=True)
class TargetEdit:
    """The record of one edited weight."""

    kept_share: float  # share of components kept; 1 where none was removed
    change: float  # |W' - W| / |W|, Frobenius norm
    backend: str
    sha256_before: str
    sha256_after: str
    predicted: float | None = None  # damage, nats per position; None if it was not predicted

    def to_json(self) -> dict[str, Any]:
        """Return the edit as in ``curvedit.json``."""
        return {
            "kept": self.kept_share,
            "change": self.change,
            "backend": self.backend,
            "sha256_before": self.sha256_before,
            "sha256_after": self.sha256_after,
            **({} if self.predicted is None else {"predicted": self.predicted}),
        }


@dataclass(frozen=True)
class Original:
    """A weight as it was before it was edited."""

    name: str
    module: nn.Module
    weight: Tensor  # (d_out, d_in), in the memory that was edited
    content: Tensor

    @classmethod
    def of(cls, name: str, module: nn.Module) -> "Original":
        """Copy a weight to the host before it is edited."""
        weight = weight_of(module)
        return cls(name, module, weight, weight.to("cpu", copy=True))

    def require_in_place(self) -> None:
        """Raise ``RuntimeError`` unless the module still has the weight that was edited."""
        now = weight_of(self.module)
        if now.dtype != self.weight.dtype or now.data_ptr() != self.weight.data_ptr():
            raise RuntimeError(
                f"undo: expected the weight of {self.name!r} where it was edited, got another "
                "(the model was moved, cast or given new weights since); undo before that, or "
                "load the original model"
            )


@dataclass
class Edit:
    """The record of an edit; one in memory can be undone, bit for bit.

    As a context manager, it is undone at the end of the block.
    """

    targets: dict[str, TargetEdit]
    seconds: float
    out: Path | None = None  # the edited checkpoint directory, or None for an edit in memory
    record: Mapping[str, Any] = field(default_factory=dict, repr=False)  # of ``forget``
    _originals: list["Original"] = field(default_factory=list, repr=False)

    def undo(self) -> None:
        """Restore the original weights.

        Raises:
            RuntimeError: the edit was already undone, or was written to a directory; or the model
                was moved, cast or given other weights since. Nothing changed.
        """
        if not self._originals:
            raise RuntimeError(
                "undo: nothing to restore; the edit was already undone, or written to a directory"
            )
        for original in self._originals:
            original.require_in_place()
        restore(self._originals)

    def __enter__(self) -> "Edit":
        """Return the edit itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Undo the edit, unless that was already done."""
        if self._originals:
            self.undo()


@contextmanager
def restored_on_error() -> Iterator[list[Original]]:
    """Yield a list of originals to fill; on an error the weights get their content again."""
    originals: list[Original] = []
    try:
        with torch.no_grad():
            yield originals
    except BaseException:
        restore(originals)
        raise


def restore(originals: list[Original]) -> None:
    """Give the weights their content again, and empty the list."""
    with torch.no_grad():
        while originals:
            original = originals.pop()
            original.weight.copy_(original.content)


@contextmanager
def as_before(originals: Sequence[Original]) -> Iterator[None]:
    """Inside, the weights have their content from before the edit."""
    with torch.no_grad():
        edited = [each.weight.clone() for each in originals]
        for each in originals:
            each.weight.copy_(each.content)
    try:
        yield
    finally:
        with torch.no_grad():
            for each, weight in zip(originals, edited, strict=True):
                each.weight.copy_(weight)
