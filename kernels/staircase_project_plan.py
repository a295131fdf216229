"""The plan of ``staircase_project``: the cheapest order of its products for a given staircase.

A dense rotation costs ``2 m n (m + n)`` operations per direction. Here the staircase is cut at a
row ``s``. The wide rows above the cut are reached through the first ``s`` output eigenvectors; the
rows below it, at most ``c`` columns wide, through the first ``c`` input eigenvectors. That costs
``2 m n (s + c)``, plus twice the two areas times ``n`` and ``m``. Where it is cheaper, the
complement of the staircase is rotated instead and subtracted.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

_LEAST = 32  # lines per band: with fewer, products are slow
_MOST = 512  # lines per chunk, or an eighth of all lines but at least 128: more take memory
# Slowness of ragged products relative to dense ones; cost of many small calls, in operations.
_SLOWER, _OVERHEAD = 1.3, 4.5e8
_SLOPE = 0.75  # shortest line of a band over its longest: the cut wastes half of the rest

Lines = NDArray[np.int64]


@dataclass(frozen=True)
class Band:
    """Neighbouring lines that are multiplied together, over ``[low, high)``, and cut afterwards."""

    start: int
    stop: int
    low: int
    high: int


@dataclass(frozen=True)
class Part:
    """Lines of the staircase that are reached through one basis.

    Line ``first + k`` is an output eigenvector (``by_rows``) or an input eigenvector, and spans
    ``[begin[k], end[k])`` of the other basis.
    """

    by_rows: bool
    size: int  # of the basis the lines belong to
    first: int
    begin: Lines
    end: Lines

    @property
    def most(self) -> int:
        """The most lines that a chunk may have."""
        return min(_MOST, max(128, self.size // 8))

    def bands(self) -> list[Band]:
        """All lines, in bands of about equal length."""
        length = self.end - self.begin
        falls = length[0] >= length[-1]
        size, down = len(length), length if falls else length[::-1]
        cuts = [0]
        while cuts[-1] < size:
            start = cuts[-1]
            short = int(np.searchsorted(-down, -_SLOPE * down[start], side="right"))
            cuts.append(min(max(short, start + _LEAST), start + self.most, size))
        if not falls:
            cuts = [size - cut for cut in reversed(cuts)]
        return [
            Band(
                self.first + a, self.first + b, int(self.begin[a:b].min()), int(self.end[a:b].max())
            )
            for a, b in pairwise(cuts)
        ]

    def chunks(self) -> list[list[Band]]:
        """Bands, grouped by the dense products that they share."""
        chunks: list[list[Band]] = []
        for band in self.bands():
            if not chunks or band.stop - chunks[-1][0].start > self.most:
                chunks.append([])
            chunks[-1].append(band)
        return chunks


@dataclass(frozen=True)
class Plan:
    """The parts whose sum is the staircase, or its complement."""

    is_complement: bool
    parts: tuple[Part, ...]
    operations: float  # floating-point operations, both directions together
    dense: float  # operations of the four dense products

    @property
    def pays(self) -> bool:
        """Whether the plan beats dense products on a CPU, as it does for all but small matrices."""
        return _SLOWER * self.operations + _OVERHEAD < self.dense


def plan(limits: Lines, columns: int, *, complement: bool | None = None) -> Plan:
    """The cheapest plan for a staircase whose row ``i`` keeps columns ``0 … limits[i] - 1``.

    Args:
        limits: (rows,) non-increasing, in ``[0, columns]``.
        columns: Columns of the matrix.
        complement: Whether to rotate the complement; None takes whichever is cheaper.
    """
    limits = np.asarray(limits, dtype=np.int64)
    m, n = len(limits), columns
    rows = np.arange(m + 1)
    kept = np.concatenate([[0], np.cumsum(limits)])
    removed = rows * n - kept
    next_limit, last_limit = np.append(limits, 0), np.concatenate([[n], limits])
    inside = 4.0 * m * n * (rows + next_limit) + 4.0 * n * kept + 4.0 * m * (kept[m] - kept)
    outside = (
        4.0 * m * n * (m - rows + n - last_limit)
        + 4.0 * n * (removed[m] - removed)
        + 4.0 * m * removed
    )
    if complement is None:
        complement = bool(outside.min() < inside.min())
    cost = outside if complement else inside
    split = int(cost.argmin())
    # Number of rows that keep each column.
    heights = m - np.searchsorted(limits[::-1], np.arange(n), side="right")
    if complement:
        first = int(last_limit[split])
        wide = Part(True, m, split, limits[split:], np.full(m - split, n))
        narrow = Part(False, n, first, heights[first:], np.full(n - first, split))
    else:
        wide = Part(True, m, 0, np.zeros(split, dtype=np.int64), limits[:split])
        width = int(next_limit[split])
        narrow = Part(False, n, 0, np.full(width, split), heights[:width])
    parts = tuple(part for part in (wide, narrow) if len(part.begin))
    return Plan(complement, parts, float(cost[split]), 4.0 * m * n * (m + n))
