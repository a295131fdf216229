"""What is to be forgotten and retained, as batches of numbered passages, and what is refused."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from curvedit.data import Ids, Passages, require_rereadable, right_padded

_UNTAUGHT = -100  # label of a position without a loss term


@dataclass(frozen=True)
class Numbered:
    """Batches of passages or labelled samples, numbered from 0."""

    batches: Sequence[Any]
    task: str | None  # as for ``read_batch``
    count: int
    terms: int  # of the loss


def numbered(name: str, given: Any, batch_size: int, pad: int) -> Numbered:
    """Batches whose loss terms are the suffixes of passages, or the labels of labelled batches.

    Args:
        name: The argument, for messages.
        given: Passages, or batches as ``fit`` takes them, with labels.
        batch_size: Passages per batch.
        pad: The id to pad with; padding is masked.

    Raises:
        TypeError: it is neither, or can be read only once.
        ValueError: it is empty, or a batch has no labels.
    """
    if isinstance(given, Passages):
        rows = list(given.rows())
        parts = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
        batches, seen = [], 0
        for part in parts:
            batches.append({**_taught(part, pad), "sample_index": _numbers(seen, len(part))})
            seen += len(part)
        return Numbered(batches, "language", len(rows), sum(len(suffix) for _, suffix in rows))
    require_rereadable(name, given)
    found, seen, terms = [], 0, 0
    for index, raw in enumerate(given):
        is_pair = isinstance(raw, Sequence) and len(raw) == 2
        labels = raw[1] if is_pair else raw.get("labels") if isinstance(raw, dict) else None
        if not isinstance(labels, Tensor):
            raise TypeError(
                f"{name}: expected Passages, or batches with labels, "
                f"got {type(raw).__name__} without labels as batch {index}"
            )
        size = len(labels)
        found.append(raw if is_pair else {**raw, "sample_index": _numbers(seen, size)})
        seen += size
        terms += int((labels != _UNTAUGHT).sum())
    return Numbered(found, None, seen, terms)


def require_apart(passages: Any, retain: Any, holdout: Iterable[Any]) -> None:
    """Refuse data that is to be forgotten and kept at once.

    Raises:
        ValueError: a suffix to forget lies in a retained passage or the other way round, or it lies
            in the held-out text; or labelled samples are in both sets.
    """
    if not isinstance(passages, Passages):
        if retain is not None and not isinstance(retain, Passages):
            _require_other_samples(passages, retain)
        return
    forgotten = list(passages.rows())
    if isinstance(retain, Passages):
        kept = [(_spelled(prefix + suffix), _spelled(suffix)) for prefix, suffix in retain.rows()]
        for number, (prefix, suffix) in enumerate(forgotten):
            whole, end = _spelled(prefix + suffix), _spelled(suffix)
            for other, (its_whole, its_end) in enumerate(kept):
                if end in its_whole or its_end in whole:
                    raise ValueError(
                        "retain: expected passages that are not to be forgotten, got number "
                        f"{other}, which shares a suffix with number {number} of passages; "
                        "leave it out of one of the two"
                    )
    ends = [_spelled(suffix) for _, suffix in forgotten if len(suffix) > 1]
    for number, row in enumerate(_rows(holdout)):
        text = _spelled(row)
        found = next((end for end in ends if end in text), None)
        if found is not None:
            raise ValueError(
                "holdout: expected text without what is to be forgotten, got the suffix "
                f"{found.strip()[:40]!r} in window {number}; leave that window out"
            )


def _require_other_samples(passages: Iterable[Any], retain: Iterable[Any]) -> None:
    seen = {key: number for number, key in enumerate(_contents(passages))}
    for number, key in enumerate(_contents(retain)):
        if key in seen:
            raise ValueError(
                "retain: expected samples that are not to be forgotten, got number "
                f"{number}, which is number {seen[key]} of passages; leave it out of one"
            )


def _contents(batches: Iterable[Any]) -> Iterator[bytes]:
    """The content of each sample's first input."""
    for raw in batches:
        parts = (
            raw[0]
            if not isinstance(raw, dict)
            else next(value for key, value in raw.items() if key not in ("labels", "sample_index"))
        )
        for row in parts:
            yield row.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()


def _rows(batches: Iterable[Any]) -> Iterator[Ids]:
    """The token ids of each window; none for other data."""
    for raw in batches:
        ids = raw.get("input_ids") if isinstance(raw, dict) else raw
        if isinstance(ids, Tensor) and ids.ndim == 2 and not ids.is_floating_point():
            yield from map(tuple, ids.tolist())


def _spelled(ids: Ids) -> str:
    """Ids as text in which a run of ids is found as a whole."""
    return f" {' '.join(map(str, ids))} "


def _taught(rows: Sequence[tuple[Ids, Ids]], pad: int) -> dict[str, Tensor]:
    """Passages as ids, mask and labels (B, T), the last only on the suffixes."""
    found = right_padded([prefix + suffix for prefix, suffix in rows], pad)
    labels = torch.full_like(found["input_ids"], _UNTAUGHT)
    for number, (prefix, suffix) in enumerate(rows):
        labels[number, len(prefix) : len(prefix) + len(suffix)] = torch.tensor(suffix)
    return {**found, "labels": labels}


def _numbers(first: int, count: int) -> Tensor:
    return torch.arange(first, first + count)
