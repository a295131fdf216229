"""Where documents come from: files, a named dataset, or anything given in Python."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curvedit.data.documents import (
    Document,
    file_documents,
    given_document,
    json_rows,
    plain_text,
    row_document,
)
from curvedit.data.spreading import Corpus, FileCorpus, GivenCorpus

Source = str | Path | Sequence[str | Path] | Iterable[str] | Iterable[Sequence[int]]
BUFFER = 10_000  # rows of a stream that are shuffled at a time


@dataclass(frozen=True)
class Origin:
    """A source of one of the three kinds."""

    source: Any
    files: list[Path] | None  # that the source names; None for a source of another kind
    text_field: str
    split: str

    @classmethod
    def of(cls, source: Source, text_field: str, split: str) -> "Origin":
        """Find out what a source is.

        Raises:
            FileNotFoundError: a path does not exist.
            ValueError: a path is neither .txt nor .jsonl, or a directory holds neither.
        """
        return cls(source, _files(source), text_field, split)

    @property
    def is_streamed(self) -> bool:
        """Whether it is a named dataset."""
        return self.files is None and isinstance(self.source, str)

    @property
    def name(self) -> str:
        """What messages and records call it."""
        if isinstance(self.source, (str, Path)):
            return str(self.source)
        if (
            isinstance(self.source, list)
            and self.source
            and all(isinstance(part, (str, Path)) for part in self.source)
        ):
            return ", ".join(str(part)[:80] for part in self.source[:4])
        return type(self.source).__name__

    def documents(self, shuffled: int | None = None) -> Iterator[Document]:
        """All documents in order.

        Args:
            shuffled: Seed with which a named dataset is shuffled, within a buffer; None for its
                own order.

        Raises:
            ValueError: a document is malformed; the message names it.
        """
        if self.files is not None:
            yield from file_documents(self.files, self.text_field)
        elif not self.is_streamed:
            for number, given in enumerate(self.source):
                yield given_document(given, self.text_field, number)
        else:
            for row in self._rows(shuffled):
                yield row_document(row, self.text_field, self.source)

    def named(self) -> Iterator[tuple[str, Document]]:
        """All documents in order, each with the name of its source.

        That is the file of text; of a row its ``source``, or else its file and line; of a mapping
        the key; of anything else given in Python its number.
        """
        if self.files is not None:
            for path in self.files:
                if path.suffix == ".txt":
                    yield str(path), plain_text(path.read_bytes(), path)
                    continue
                for number, row in json_rows("data", path, self.text_field):
                    where = f"{path}:{number}"
                    yield _source_of(row, where), row_document(row, self.text_field, where)
        elif isinstance(self.source, Mapping):
            for name, given in self.source.items():
                yield str(name), given_document(given, self.text_field, 0)
        else:
            for number, document in enumerate(self.documents()):
                yield f"document {number}", document

    def corpus(self) -> Corpus | None:
        """The documents for reading in any order; None where they come one after the other."""
        if self.files is not None:
            return FileCorpus(self.files, self.text_field)
        if hasattr(self.source, "__getitem__") and not self.is_streamed:
            return GivenCorpus(self.source, self.text_field)
        return None

    def _rows(self, shuffled: int | None) -> Iterable[Any]:
        from datasets import load_dataset

        name, _, config = self.source.removeprefix("hf:").partition(":")
        rows = load_dataset(name, config or None, split=self.split, streaming=True)
        if shuffled is None:
            return rows  # type: ignore[no-any-return]
        return rows.shuffle(seed=shuffled, buffer_size=BUFFER)  # type: ignore[no-any-return]


def named_documents(
    source: Source | Mapping[str, Any], *, text_field: str = "text", split: str = "train"
) -> Iterator[tuple[str, Document]]:
    """Documents with the names of their sources.

    Args:
        source: As for ``token_batches``, or a mapping from name to text or token ids.
        text_field: The field of a row that holds the text.
        split: The split of a dataset to read.

    Yields:
        Name of the source, and the text or the ids.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: the source is empty, or a document is malformed.
    """
    yield from Origin.of(source, text_field, split).named()


def _source_of(row: Any, where: str) -> str:
    own = row.get("source") if isinstance(row, Mapping) else None
    return own if isinstance(own, str) else where


def _files(source: Any) -> list[Path] | None:
    if isinstance(source, str) and source.startswith("hf:"):
        return None
    if isinstance(source, (str, Path)):
        named = [source]
    elif (
        isinstance(source, (list, tuple))
        and source
        and all(isinstance(part, Path) or _is_file(part) for part in source)
    ):
        named = list(source)
    else:
        return None
    found: list[Path] = []
    for path in map(Path, named):
        inside = (
            sorted(p for p in path.rglob("*") if p.suffix in (".txt", ".jsonl"))
            if path.is_dir()
            else [path]
        )
        if not inside:
            raise ValueError(
                f"data: expected .txt or .jsonl files, got the directory {path} without any"
            )
        found += inside
    for path in found:
        if not path.is_file():
            raise FileNotFoundError(f"data: expected a file, a directory or hf:NAME, got {path}")
        if path.suffix not in (".txt", ".jsonl"):
            raise ValueError(f"data: expected .txt or .jsonl, got {path}")
    return found


def _is_file(part: Any) -> bool:
    return isinstance(part, str) and part.endswith((".txt", ".jsonl")) and "\n" not in part
