"""Where a target's weight is stored: in one tensor, or in several that follow one another."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from curvedit.editing.stored import StoredTensor


@dataclass(frozen=True)
class Place:
    """Stored tensors whose rows, one after the other, are the rows of a weight."""

    tensors: tuple[StoredTensor, ...]
    transposed: bool = False  # whether each holds the transpose of its rows

    @property
    def keys(self) -> list[str]:
        """The names of the tensors."""
        return [tensor.key for tensor in self.tensors]

    def read(self) -> Tensor:
        """The weight, ``(d_out, d_in)``."""
        parts = [each.read().T if self.transposed else each.read() for each in self.tensors]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def write(self, weight: Tensor, directory: Path) -> None:
        """Overwrite the weight in copies of the files in another directory."""
        rows = [each.shape[1 if self.transposed else 0] for each in self.tensors]
        for tensor, part in zip(self.tensors, weight.split(rows), strict=True):
            tensor.write(part.T if self.transposed else part, directory / tensor.file.name)

    def to_json(self) -> dict[str, Any]:
        """The entry of the record: key and file, or lists of them."""
        files = [tensor.file.name for tensor in self.tensors]
        if len(files) == 1:
            return {"key": self.keys[0], "file": files[0]}
        return {"key": self.keys, "file": files}
