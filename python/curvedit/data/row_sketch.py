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
        """Take the samples of a batch: their real token ids, or the first of their inputs."""
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


def _rows(batch: Batch) -> Iterable[Tensor]:
    """One tensor for each sample of a batch, on the host."""
    values = batch.inputs.values() if isinstance(batch.inputs, Mapping) else batch.inputs
    ids = batch.inputs.get("input_ids") if isinstance(batch.inputs, Mapping) else None
    size = batch.samples.shape[0]
    tensors = (each for each in values if isinstance(each, Tensor) and each.shape[:1] == (size,))
    rows = ids if isinstance(ids, Tensor) else next(tensors, None)
    if rows is None:
        return ()
    rows = rows.detach().cpu()
    if batch.mask is None or rows.shape != batch.mask.shape:
        return list(rows)
    return [row[kept] for row, kept in zip(rows, batch.mask.cpu(), strict=True)]


def _hash(row: Tensor) -> int:
    digest = hashlib.blake2b(str(tuple(row.shape)).encode(), digest_size=8)
    numbers = row.long() if not row.is_floating_point() else row.float()
    digest.update(numbers.contiguous().numpy().data)
    return int.from_bytes(digest.digest(), "big")
