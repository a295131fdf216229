"""Windows of a corpus: where to look for recitation, and which windows say nothing about it."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from curvedit.data import encoded, named_documents
from curvedit.meter import progress

Ids = tuple[int, ...]
_COPIED = 6  # tokens in a row of a suffix that its prefix must not hold
_VARIED = 0.5  # least share of a suffix's tokens that differ from each other


@dataclass(frozen=True)
class Window:
    """A stretch of one document: ``size`` tokens from ``offset`` on."""

    document: int
    offset: int


@dataclass(frozen=True)
class Corpus:
    """Documents as token ids, with the names of their sources."""

    names: tuple[str, ...]  # of the documents' sources; documents of one source share it
    ids: tuple[np.ndarray[Any, np.dtype[np.int32]], ...]
    is_text: tuple[bool, ...]  # whether the ids come from text, which begins with the opening

    @classmethod
    def read(
        cls, source: Any, tokenizer: Any, *, text_field: str, split: str, shown: bool
    ) -> "Corpus":
        """Read and tokenise all documents.

        Raises:
            FileNotFoundError: a path does not exist.
            ValueError: the source is empty or malformed, or there is text but no tokenizer.
        """
        names, ids, is_text = [], [], []
        with progress(None, unit="tok", what="tokenise", shown=shown) as bar:
            for name, document in named_documents(source, text_field=text_field, split=split):
                pieces = [document] if not isinstance(document, str) else []
                for piece in encoded(tokenizer, document) if isinstance(document, str) else ():
                    pieces.append(piece)
                    bar.update(len(piece))
                names.append(name)
                ids.append(np.concatenate([np.zeros(0, np.int32), *pieces]))
                is_text.append(isinstance(document, str))
        return cls(tuple(names), tuple(ids), tuple(is_text))

    def windows(self, size: int, stride: int) -> Iterator[Window]:
        """All windows of ``size`` tokens, ``stride`` apart in each document."""
        for number, ids in enumerate(self.ids):
            for offset in range(0, len(ids) - size + 1, stride):
                yield Window(number, offset)

    def tokens(self, window: Window, size: int) -> Ids:
        """The token ids of a window."""
        return tuple(self.ids[window.document][window.offset : window.offset + size].tolist())

    def sha256(self) -> str:
        """Hash of all names and ids."""
        digest = hashlib.sha256()
        for name, ids in zip(self.names, self.ids, strict=True):
            digest.update(f"{name!r} {len(ids)} ".encode() + ids.tobytes())
        return digest.hexdigest()


def tells(prefix: Sequence[int], suffix: Sequence[int]) -> bool:
    """Whether reciting a suffix would say something of what a model has learnt by heart.

    It would not where the suffix repeats itself, or repeats part of its prefix, as tables and lists
    do: a model continues those from what it has just read.
    """
    if len(set(suffix)) < _VARIED * len(suffix):
        return False
    length = min(_COPIED, len(suffix))
    read = set(runs_of(prefix, length))
    return not any(run in read for run in runs_of(suffix, length))


def runs_of(ids: Sequence[int], length: int) -> Iterator[Ids]:
    """All runs of ``length`` tokens."""
    return (tuple(ids[start : start + length]) for start in range(len(ids) - length + 1))


def without_overlaps(windows: Sequence[Window], rank: Callable[[int], Any], size: int) -> list[int]:
    """Numbers of windows of which no two overlap, best first; earlier ones where they are equal.

    Args:
        windows: The windows.
        rank: The sort key of a window's number; the smallest is the best.
        size: Tokens per window.
    """
    kept: list[int] = []
    taken: dict[int, list[int]] = {}
    for number in sorted(range(len(windows)), key=lambda each: (rank(each), each)):
        window = windows[number]
        offsets = taken.setdefault(window.document, [])
        if all(abs(window.offset - offset) >= size for offset in offsets):
            offsets.append(window.offset)
            kept.append(number)
    return kept
