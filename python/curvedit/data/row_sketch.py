"""Tells whether two sets of data overlap, from a few kilobytes of each.

Of the hashes of all samples the least few hundred are kept. Those of two sets are a fair draw from
both, so that the share they have in common estimates the share of the samples themselves.
"""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from curvedit.data.batch import Batch

_KEPT = 256


class RowSketch:
    """The least hashes of the samples of a set of data."""

    def __init__(self, count: int = 0, least: Iterable[int] = ()) -> None:
        """Begin with what is known, or with nothing."""
        self.count, self.least = count, sorted(set(least))[:_KEPT]

    def add(self, batch: Batch) -> None:
        """Take the samples of a batch: their real token ids, or all of their inputs."""
        hashes = [_hash(row) for row in _rows(batch)]
        self.count += len(hashes)
        self.least = sorted({*self.least, *hashes})[:_KEPT]

    def __add__(self, other: "RowSketch") -> "RowSketch":
        """That of both sets together."""
        return RowSketch(self.count + other.count, [*self.least, *other.least])

    def overlap(self, other: "RowSketch") -> float:
        """Share of the samples of the smaller set that are in the other one too, estimated."""
        ends = [each.least[-1] for each in (self, other) if len(each.least) == _KEPT]
        mine, theirs = (
            {value for value in each.least if not ends or value <= min(ends)}
            for each in (self, other)
        )
        smaller = min(len(mine), len(theirs))
        return len(mine & theirs) / smaller if smaller else 0.0

    def to_json(self) -> dict[str, Any]:
        """The entry of a manifest."""
        return {"count": self.count, "least": [f"{value:016x}" for value in self.least]}

    @classmethod
    def from_json(cls, document: Any) -> "RowSketch | None":
        """The inverse; None for anything else, such as the manifest of an older version."""
        if not isinstance(document, Mapping):
            return None
        try:
            return cls(int(document["count"]), [int(each, 16) for each in document["least"]])
        except (KeyError, TypeError, ValueError):
            return None


def _rows(batch: Batch) -> Iterable[tuple[Tensor, ...]]:
    """What makes up each sample of a batch, on the host."""
    values: list[Any] = list(batch.inputs)
    ids, size = None, batch.samples.shape[0]
    if isinstance(batch.inputs, Mapping):
        values, ids = list(batch.inputs.values()), batch.inputs.get("input_ids")
    if isinstance(ids, Tensor) and batch.mask is not None and ids.shape == batch.mask.shape:
        pairs = zip(ids.detach().cpu(), batch.mask.cpu(), strict=True)
        return [(row[kept],) for row, kept in pairs]
    tensors = [ids] if isinstance(ids, Tensor) else values
    parts = [
        each.detach().cpu()
        for each in tensors
        if isinstance(each, Tensor) and each.shape[:1] == (size,)
    ]
    return list(zip(*parts, strict=True))


def _hash(row: tuple[Tensor, ...]) -> int:
    digest = hashlib.blake2b(digest_size=8)
    for part in row:
        digest.update(str(tuple(part.shape)).encode())
        numbers = part.float() if part.is_floating_point() else part.long()
        digest.update(numbers.contiguous().numpy().data)
    return int.from_bytes(digest.digest(), "big")
