"""A sample of documents that is spread over a whole corpus, within a budget of tokens.

Long documents are cut into parts, at line ends or spaces where there are any. Parts are drawn in
the order of a golden-ratio sequence with a seeded start, of which every beginning is spread evenly
over the corpus, and put back into the order of the corpus.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from curvedit.data.documents import (
    Document,
    Ids,
    given_document,
    json_row,
    plain_text,
    row_document,
)

Sample = str | dict[str, int]  # "all", "head", or a seed and counts, as recorded

_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 divided by the golden ratio
_SEEDS = 0xD1342543DE82EF95  # an odd number that sets the starts of seeds far apart
_TOKEN = 4  # characters of text that usually make one token
_SHARE = 16  # least number of tokens in a part, and about the least number of parts in a sample


class Corpus(Protocol):
    """Documents that can be read one at a time and in parts."""

    sizes: npt.NDArray[np.int64]  # (documents,) in bytes or characters

    def part(self, document: int, number: int, count: int) -> Document:
        """Part ``number`` of ``count`` of a document."""


class GivenCorpus:
    """Documents given in Python, as text, token ids or rows."""

    def __init__(self, given: Sequence[Any], text_field: str) -> None:
        self._given, self._field = given, text_field
        self.sizes = np.array([self._size(each) for each in given], dtype=np.int64)

    def part(self, document: int, number: int, count: int) -> Document:
        """Part ``number`` of ``count`` of a document."""
        whole = given_document(self._given[document], self._field, document)
        return _cut(whole, number, count)

    def _size(self, given: Any) -> int:
        if isinstance(given, dict):
            ids = given.get("input_ids")
            given = given.get(self._field, "") if ids is None else ids
        size = len(given) if hasattr(given, "__len__") else 0
        return size if isinstance(given, str) else _TOKEN * size


class FileCorpus:
    """Documents of ``.txt`` and ``.jsonl`` files, read from where they lie."""

    def __init__(self, files: list[Path], text_field: str) -> None:
        self._files, self._field = files, text_field
        places = [place for number in range(len(files)) for place in self._places(number)]
        self._at = np.array(places, dtype=np.int64).reshape(-1, 4)  # file, start, stop, line
        self.sizes = self._at[:, 2] - self._at[:, 1]

    def part(self, document: int, number: int, count: int) -> Document:
        """Part ``number`` of ``count`` of a document."""
        file, start, stop, line = map(int, self._at[document])
        path = self._files[file]
        with path.open("rb") as stream:

            def read(left: int, right: int) -> bytes:
                stream.seek(start + left)
                return stream.read(right - left)

            if path.suffix == ".txt":
                return _text_part(read, stop - start, number, count, path)
            where = f"{path}:{line}"
            row = json_row("data", where, read(0, stop - start), self._field)
            return _cut(row_document(row, self._field, where), number, count)

    def _places(self, number: int) -> Iterator[tuple[int, int, int, int]]:
        path = self._files[number]
        if path.suffix == ".txt":
            yield number, 0, path.stat().st_size, 1
            return
        start = 0
        with path.open("rb") as stream:
            for line, raw in enumerate(stream, 1):
                if raw.strip():
                    yield number, start, start + len(raw), line
                start += len(raw)


@dataclass(frozen=True)
class _Taken:
    """A part that was drawn."""

    document: int
    content: Document
    ids: Ids


def spread(
    corpus: Corpus,
    encode: Callable[[Document], Iterable[Ids]],
    *,
    cost: Callable[[Document], float],
    budget: int,
    window: int,
    separator: int,
    seed: int,
) -> tuple[list[tuple[Document, Ids, bool]], Sample] | None:
    """Parts of documents that cost ``budget`` tokens, in the order of the corpus.

    Args:
        corpus: The documents.
        encode: Gives a document's token ids, in pieces.
        cost: What each of a document's tokens counts for.
        budget: Number of tokens wanted.
        window: Tokens per window; a part is about as long, and shorter where the budget is small.
        separator: Tokens between documents, 0 or 1.
        seed: Seeds the start of the sequence.

    Returns:
        Each part, its ids, and whether the next one does not follow on from it; and how many
        documents and parts were taken of how many. None if the corpus has fewer tokens.
    """
    size = _TOKEN * max(_SHARE, min(window, budget // _SHARE))
    parts = np.maximum(1, -(-corpus.sizes // size))
    ends = np.cumsum(parts)
    taken: dict[int, _Taken] = {}

    def follows(unit: int, other: int) -> bool:
        """Whether a part goes on in another, which was drawn too."""
        return other in taken and taken[other].document == taken[unit].document

    total = 0.0
    for unit in _drawn(int(parts.sum()), seed):
        number = int(np.searchsorted(ends, unit, side="right"))
        first = int(ends[number] - parts[number])
        content = corpus.part(number, unit - first, int(parts[number]))
        ids = np.concatenate([np.zeros(0, np.int32), *encode(content)])
        taken[unit] = _Taken(number, content, ids)
        runs = 1 - follows(unit, unit - 1) - follows(unit, unit + 1)
        total += (len(ids) + separator * runs) * cost(content)
        if total >= budget:
            cut = min(len(ids), math.floor((total - budget) / cost(content)))
            taken[unit] = _Taken(number, content, ids[: len(ids) - cut])
            found = [
                (
                    taken[each].content,
                    taken[each].ids,
                    not follows(each, each + 1) or (each == unit and cut > 0),
                )
                for each in sorted(taken)
            ]
            return found, {
                "seed": seed,
                "documents": len({each.document for each in taken.values()}),
                "of": len(parts),
                "parts": len(taken),
                "of_parts": int(parts.sum()),
            }
    return None


def _drawn(count: int, seed: int) -> Iterator[int]:
    """The numbers below ``count``, each once, every beginning of the order evenly spread."""
    place = seed * _SEEDS % (1 << 64)
    seen: set[int] = set()
    while len(seen) < count:
        unit = place * count >> 64
        if unit not in seen:
            seen.add(unit)
            yield unit
        place = (place + _GOLDEN) % (1 << 64)


def _cut(document: Document, number: int, count: int) -> Document:
    if count == 1:
        return document
    if not isinstance(document, str):
        return document[number * len(document) // count : (number + 1) * len(document) // count]
    raw = document.encode()
    left, right = (
        _border(lambda a, b: raw[a:b], len(raw), at, count) for at in (number, number + 1)
    )
    return raw[left:right].decode()


def _text_part(
    read: Callable[[int, int], bytes], size: int, number: int, count: int, path: Path
) -> str:
    left, right = (_border(read, size, at, count) for at in (number, number + 1))
    raw = read(left, right)
    try:
        return plain_text(raw, path)
    except ValueError:  # once more for the number of the line, which takes a look at all before it
        return plain_text(raw, path, read(0, left).count(b"\n") + 1)


def _border(read: Callable[[int, int], bytes], size: int, number: int, count: int) -> int:
    """Byte at which part ``number`` of ``count`` begins: after a line, a space or a character."""
    target = number * size // count
    if target in (0, size):
        return target
    ahead = read(target, min(size, target + size // count + 1))
    for mark in (b"\n", b" "):
        found = ahead.find(mark)
        if found >= 0:
            return target + found + 1
    return target + next((at for at, byte in enumerate(ahead) if byte & 0xC0 != 0x80), len(ahead))
