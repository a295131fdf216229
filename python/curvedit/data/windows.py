"""Token batches: a stream of tokens as windows of one length, each with its opening."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from curvedit.data.documents import Ids

Stretch = tuple[Ids, bool]  # token ids, and whether a window that begins in them gets the opening


@dataclass(frozen=True)
class TokenBatches:
    """A re-iterable of batches ``{"input_ids", "attention_mask"}``, each int64 ``(B, window)``.

    ``tokens`` counts the positions that contribute to a loss; ``identity`` describes the source.
    """

    ids: Ids
    window: int
    batch_size: int
    identity: dict[str, Any]

    @property
    def tokens(self) -> int:
        """Positions with a next token in their window."""
        return min(len(self.ids), self.windows * self.window) - self.windows

    @property
    def windows(self) -> int:
        """Number of windows; a last window of a single token is dropped, as nothing follows it."""
        return len(self.ids) // self.window + (len(self.ids) % self.window > 1)

    @property
    def longest(self) -> int:
        """Tokens in the longest window."""
        return min(self.window, len(self.ids))

    @property
    def largest(self) -> int:
        """The largest token id."""
        return int(self.ids.max())

    def __len__(self) -> int:
        """Number of batches."""
        return -(-self.windows // self.batch_size)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """The batches in order."""
        for start in range(0, self.windows, self.batch_size):
            rows = min(self.batch_size, self.windows - start)
            ids = np.zeros((rows, self.window), dtype=np.int64)
            mask = np.zeros((rows, self.window), dtype=np.int64)
            part = self.ids[start * self.window : (start + rows) * self.window]
            ids.reshape(-1)[: len(part)] = part
            mask.reshape(-1)[: len(part)] = 1
            yield {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}


def opened(stretches: Sequence[Stretch], window: int, opening: tuple[int, ...]) -> Ids:
    """Join stretches of tokens, and put the opening before the content of each window.

    Args:
        stretches: The content.
        window: Tokens per window, the opening among them.
        opening: Token ids; a window whose content begins with them does not get them twice.

    Returns:
        The stream, whose windows are its successive pieces of ``window`` tokens.
    """
    content = np.concatenate([np.zeros(0, np.int32), *(ids for ids, _ in stretches)])
    if not opening:
        return content
    first = np.asarray(opening, dtype=np.int32)
    ends = np.cumsum([len(ids) for ids, _ in stretches])
    pieces = [content[:0]]
    start = 0
    while start < len(content):
        gets_it = stretches[int(np.searchsorted(ends, start, side="right"))][1]
        if gets_it and not np.array_equal(content[start : start + len(first)], first):
            pieces.append(first)
            stop = start + window - len(first)
        else:
            stop = start + window
        pieces.append(content[start:stop])
        start = stop
    return np.concatenate(pieces)
