"""Passages: token sequences cut into a prefix to continue and the suffix that follows it."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from curvedit.data.documents import checked_ids, checked_text, json_rows
from curvedit.data.inputs import Ids, token_ids
from curvedit.data.tokenizing import bare_ids, name_of, opening_of


@dataclass(frozen=True)
class Passages:
    """Token sequences cut in two: the model sees a prefix and is tested on the suffix after it.

    Prefixes and suffixes may differ in length from passage to passage. Rows are lists, arrays or
    1-D tensors of token ids. ``identity`` says where they come from, for the report.

    Raises:
        ValueError: there are none, their numbers differ, one is empty, or an id is negative.
        TypeError: a row holds anything but integers.
    """

    prefixes: Sequence[Sequence[int]]
    suffixes: Sequence[Sequence[int]]
    identity: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        for name in ("prefixes", "suffixes"):
            given = getattr(self, name)
            rows = tuple(token_ids(name, number, row) for number, row in enumerate(given))
            object.__setattr__(self, name, rows)
        if len(self.prefixes) != len(self.suffixes):
            raise ValueError(
                "passages: expected as many suffixes as prefixes, "
                f"got {len(self.suffixes)} and {len(self.prefixes)}"
            )
        if not self.prefixes:
            raise ValueError("passages: expected at least one, got none")

    def __len__(self) -> int:
        """Number of passages."""
        return len(self.prefixes)

    @classmethod
    def cut(cls, windows: Iterable[Sequence[int]], *, prefix: int, suffix: int) -> "Passages":
        """Passages from windows of ids: the first ``prefix`` tokens and the next ``suffix``.

        Raises:
            ValueError: a window is shorter than ``prefix + suffix``.
        """
        rows = [token_ids("windows", number, row) for number, row in enumerate(windows)]
        for number, row in enumerate(rows):
            if len(row) < prefix + suffix:
                raise ValueError(
                    f"windows: expected at least {prefix + suffix} tokens, "
                    f"got {len(row)} as row {number}"
                )
        return cls([row[:prefix] for row in rows], [row[prefix : prefix + suffix] for row in rows])

    @classmethod
    def read(
        cls,
        path: str | Path,
        *,
        encode: Callable[[str], Sequence[int]] | None = None,
        prefix: int = 64,
        suffix: int = 48,
        text_field: str = "text",
        tokenizer: Any = None,
        bos: str = "auto",
    ) -> "Passages":
        """Passages from a file of JSON lines.

        Args:
            path: Each line is an object with ``prefix_ids`` and ``suffix_ids``, with
                ``input_ids``, or with text.
            encode: Turns text into token ids, special tokens among them if it adds any.
            prefix: Length of the prefix cut from ``input_ids`` or text, in tokens.
            suffix: Length of the suffix after it, in tokens.
            text_field: The field that holds the text.
            tokenizer: A Hugging Face tokenizer, instead of ``encode``.
            bos: As for ``token_batches``: "auto" begins the prefixes of text with what the
                tokenizer itself puts before a text and leaves given ids as they are; "always" adds
                BOS to both, "never" to none. It is not counted in ``prefix``, so that a passage
                is the same text with it and without, and is never added to a prefix that has it.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: a line is not such an object or has too few tokens, or a number is out of
                range.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"passages: expected a .jsonl file, got {path}")
        for name, length in (("prefix", prefix), ("suffix", suffix)):
            if length < 1:
                raise ValueError(f"{name}: expected at least 1 token, got {length}")
        opening = opening_of(tokenizer, bos)
        if encode is None and tokenizer is not None:
            encode = partial(bare_ids, tokenizer)
        prefixes, suffixes = [], []
        for number, row in json_rows("passages", path, text_field):
            where = f"line {number} of {path}"
            first, rest, is_text = _halves(row, where, encode, prefix, suffix, text_field)
            is_bare = (is_text or bos == "always") and first[: len(opening)] != opening
            prefixes.append(opening + first if is_bare else first)
            suffixes.append(rest)
        identity = {"source": str(path), "bos": bos, "bos_ids": list(opening)}
        return cls(prefixes, suffixes, {**identity, "tokenizer": name_of(tokenizer)})

    def rows(self) -> Iterator[tuple[Ids, Ids]]:
        """Prefix and suffix of each passage."""
        return (
            (tuple(prefix), tuple(suffix))
            for prefix, suffix in zip(self.prefixes, self.suffixes, strict=True)
        )

    def sha256(self) -> str:
        """Hash of all ids and of where each passage is cut."""
        return hashlib.sha256(json.dumps([list(self.rows())]).encode()).hexdigest()


def _halves(
    row: Any,
    where: str,
    encode: Callable[[str], Sequence[int]] | None,
    prefix: int,
    suffix: int,
    text_field: str,
) -> tuple[Ids, Ids, bool]:
    """Prefix and suffix of one line, and whether they come from text."""
    row = row if isinstance(row, dict) else {}
    if "prefix_ids" in row and "suffix_ids" in row:
        first, rest = (
            tuple(checked_ids(row[key], "passages", f"{key} of {where}").tolist())
            for key in ("prefix_ids", "suffix_ids")
        )
        if first and rest:
            return first, rest, False
        raise ValueError(f"passages: expected at least one id in each of {where}, got none")
    text = row.get(text_field)
    is_text = row.get("input_ids") is None and isinstance(text, str) and encode is not None
    ids: Ids | None = None
    if isinstance(text, str) and encode is not None and is_text:
        ids = tuple(encode(checked_text(text, "passages", where)))
    elif row.get("input_ids") is not None:
        ids = tuple(checked_ids(row["input_ids"], "passages", f"input_ids of {where}").tolist())
    if ids is None or len(ids) < prefix + suffix:
        got = f"{row!r:.60}" if ids is None else f"{len(ids)} tokens"
        if ids is None and isinstance(text, str):
            got = "text and no tokenizer"
        raise ValueError(
            f"passages: expected prefix_ids and suffix_ids in {where}, "
            f"or {prefix + suffix} tokens of input_ids or {text_field}, got {got}"
        )
    return ids[:prefix], ids[prefix : prefix + suffix], is_text
