"""The tensors of a safetensors file: where they lie, read one at a time, overwritten in a copy."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


@dataclass(frozen=True)
class StoredTensor:
    """The location of a tensor in a safetensors file."""

    key: str
    file: Path
    dtype: str  # in safetensors' own spelling, such as "BF16"
    shape: tuple[int, ...]
    start: int  # byte offset in the file
    stop: int  # one past the last byte

    def read(self) -> Tensor:
        """Read the tensor.

        Raises:
            ValueError: its dtype is not a floating-point one of 16 bits or more, or the file has
                become shorter.
        """
        if self.dtype not in DTYPES:
            raise ValueError(
                f"model: expected {self.key!r} to be stored as one of {list(DTYPES)}, "
                f"got {self.dtype}; edit the unquantised checkpoint"
            )
        content = self._bytes(self.start, self.stop)
        if not content:
            return torch.empty(self.shape, dtype=DTYPES[self.dtype])
        return torch.frombuffer(content, dtype=DTYPES[self.dtype]).reshape(self.shape)

    def write(self, tensor: Tensor, copy: Path) -> None:
        """Overwrite the same bytes in a copy of the file."""
        with copy.open("r+b") as stream:
            stream.seek(self.start)
            stream.write(tensor.contiguous().view(torch.uint8).numpy().tobytes())

    def matrix(self, number: int) -> "StoredTensor":
        """The location of one matrix of a three-dimensional tensor."""
        size = (self.stop - self.start) // self.shape[0]
        start = self.start + number * size
        key = f"{self.key}[{number}]"
        return replace(self, key=key, shape=self.shape[1:], start=start, stop=start + size)

    def is_copy_of(self, other: "StoredTensor") -> bool:
        """Whether two tensors are equal byte for byte; reads as little as it takes to know."""
        if (self.dtype, self.shape) != (other.dtype, other.shape):
            return False
        ends = [(self.start, min(self.start + 4096, self.stop)), (self.start, self.stop)]
        shift = other.start - self.start
        return all(
            self._bytes(start, stop) == other._bytes(start + shift, stop + shift)
            for start, stop in ends
        )

    def _bytes(self, start: int, stop: int) -> bytearray:
        with self.file.open("rb") as stream:
            stream.seek(start)
            content = bytearray(stream.read(stop - start))
        if len(content) != stop - start:
            raise ValueError(f"model: {self.file} is truncated; download it again")
        return content


def stored_tensors(file: Path) -> Iterator[StoredTensor]:
    """Locate the tensors of a safetensors file, from its header, which safetensors itself checks.

    Raises:
        ValueError: the file is truncated, damaged, or not a safetensors file.
    """
    try:
        with safe_open(file, framework="pt"):  # refuses holes, overlaps and wrong sizes
            pass
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length))
    except (SafetensorError, ValueError, RecursionError) as error:
        raise ValueError(
            f"model: {file} is truncated or not a safetensors file ({error}); download it again"
        ) from error
    for key, entry in header.items():
        if key != "__metadata__":
            start, stop = (8 + length + offset for offset in entry["data_offsets"])
            yield StoredTensor(key, file, entry["dtype"], tuple(entry["shape"]), start, stop)
