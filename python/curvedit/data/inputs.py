"""Validates what a suite is given: token ids, and data that are read more than once."""

from collections.abc import Iterable, Iterator, Sequence, Sized
from typing import Any

Ids = tuple[int, ...]


def token_ids(name: str, number: int, row: Any) -> Ids:
    """A list, array or 1-D tensor of token ids as a tuple.

    Raises:
        TypeError: the row holds anything but integers.
        ValueError: the row is empty or an id is negative.
    """
    if hasattr(row, "tolist"):
        row = row.tolist()
    if (
        not isinstance(row, Sequence)
        or isinstance(row, str)
        or not all(type(each) is int for each in row)
    ):
        raise TypeError(f"{name}: expected token ids, integers, got {row!r:.60} as row {number}")
    if not row:
        raise ValueError(f"{name}: expected at least one token, got none as row {number}")
    if min(row) < 0:
        raise ValueError(
            f"{name}: expected token ids of at least 0, got {min(row)} in row {number}"
        )
    return tuple(row)


def require_rereadable(name: str, batches: Any) -> None:
    """Refuse what cannot be iterated twice: the baseline and each edit read the same data.

    Raises:
        TypeError: not an iterable, or an iterator.
        ValueError: empty.
    """
    if not isinstance(batches, Iterable):
        raise TypeError(
            f"{name}: expected windows or batches to iterate over, got {type(batches).__name__}"
        )
    if isinstance(batches, Iterator):
        raise TypeError(
            f"{name}: expected a re-iterable, such as a list or a DataLoader, since the baseline "
            f"and each edit are measured on it, got the iterator {type(batches).__name__}; "
            "use list(...)"
        )
    if isinstance(batches, Sized) and not len(batches):
        raise ValueError(f"{name}: expected at least one batch, got none")
