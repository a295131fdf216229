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
from curvedit.data.tokenizing import bare_ids, decoded, name_of, opening_of
from curvedit.files import new_file


@dataclass(frozen=True)
class Passages:
    """Token sequences cut in two: the model sees a prefix and is tested on the suffix after it.

    Prefixes and suffixes may differ in length from passage to passage. Rows are lists, arrays or
    1-D tensors of token ids. ``identity`` says where they come from, for the report; ``facts``
    what is known of each: ``mine`` gives its ``source``, ``offset``, ``split`` and how much of it
    the model recites.

    Raises:
        ValueError: there are none, their numbers differ, one is empty, or an id is negative.
        TypeError: a row holds anything but integers.
    """

    prefixes: Sequence[Sequence[int]]
    suffixes: Sequence[Sequence[int]]
    identity: Mapping[str, Any] = field(default_factory=dict, compare=False)
    facts: Sequence[Mapping[str, Any]] = field(default=(), compare=False)

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
        facts = tuple(self.facts) or tuple({} for _ in self.prefixes)
        if len(facts) != len(self.prefixes):
            raise ValueError(
                f"facts: expected one mapping per passage, {len(self.prefixes)}, got {len(facts)}"
            )
        object.__setattr__(self, "facts", facts)

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
        split: str | None = None,
    ) -> "Passages":
        """Passages from a file of JSON lines.

        Args:
            path: Each line is an object with ``prefix_ids`` and ``suffix_ids``, with
                ``input_ids``, or with text. Where ``prefix`` and ``suffix`` beside ids tell their
                text, as ``mine`` writes it, a tokenizer that reads the ids otherwise is refused.
            encode: Turns text into token ids, special tokens among them if it adds any.
            prefix: Length of the prefix cut from ``input_ids`` or text, in tokens.
            suffix: Length of the suffix after it, in tokens.
            text_field: The field that holds the text.
            tokenizer: A Hugging Face tokenizer, instead of ``encode``.
            bos: As for ``token_batches``: "auto" begins the prefixes of text with what the
                tokenizer itself puts before a text and leaves given ids as they are; "always" adds
                BOS to both, "never" to none. It is not counted in ``prefix``, so that a passage
                is the same text with it and without, and is never added to a prefix that has it.
            split: Take only the lines of this ``split``, such as "tune" or "test".

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: a line is not such an object or has too few tokens, a number is out of
                range, no line is of the split, or the tokenizer is not the one of the ids.
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
        prefixes, suffixes, facts, splits = [], [], [], set()
        for number, row in json_rows("passages", path, text_field):
            where = f"line {number} of {path}"
            known = _facts(row)
            splits.add(str(known.get("split")))
            if split is not None and known.get("split") != split:
                continue
            _require_read_alike(row, where, tokenizer)
            first, rest, is_text = _halves(row, where, encode, prefix, suffix, text_field)
            is_bare = (is_text or bos == "always") and first[: len(opening)] != opening
            prefixes.append(opening + first if is_bare else first)
            suffixes.append(rest)
            facts.append(known)
        if split is not None and splits and not prefixes:
            raise ValueError(f"split: expected one of {sorted(splits)} in {path}, got {split!r}")
        identity = {"source": str(path), "bos": bos, "bos_ids": list(opening)}
        identity |= {} if split is None else {"split": split}
        return cls(prefixes, suffixes, {**identity, "tokenizer": name_of(tokenizer)}, facts)

    def take(self, numbers: Iterable[int]) -> "Passages":
        """The passages of these numbers, in this order.

        Raises:
            ValueError: there are none.
        """
        chosen = list(numbers)
        return type(self)(
            [self.prefixes[number] for number in chosen],
            [self.suffixes[number] for number in chosen],
            self.identity,
            [self.facts[number] for number in chosen],
        )

    def of_split(self, split: str) -> "Passages":
        """The passages whose facts name this split, such as "tune" or "test".

        Raises:
            ValueError: there are none.
        """
        numbers = [number for number, each in enumerate(self.facts) if each.get("split") == split]
        if not numbers:
            known = sorted({str(each.get("split")) for each in self.facts})
            raise ValueError(f"split: expected one of {known}, got {split!r}")
        return self.take(numbers)

    def write(self, path: str | Path, *, tokenizer: Any = None) -> None:
        """Write a new file that :meth:`read` takes.

        Args:
            path: A new file of JSON lines.
            tokenizer: Adds the text of each prefix and suffix, for people and as a check.

        Raises:
            FileExistsError: the file exists.
        """
        final = Path(path)
        if final.exists():
            raise FileExistsError(f"passages: expected a new file, got {final}, which exists")
        lines = []
        for (prefix, suffix), known in zip(self.rows(), self.facts, strict=True):
            row = {**known, "prefix_ids": prefix, "suffix_ids": suffix}
            if tokenizer is not None:
                row |= {"prefix": decoded(tokenizer, prefix), "suffix": decoded(tokenizer, suffix)}
            lines.append(json.dumps(row, ensure_ascii=False) + "\n")
        with new_file(final, replace=False) as part:
            part.write_text("".join(lines), encoding="utf-8")

    def rows(self) -> Iterator[tuple[Ids, Ids]]:
        """Prefix and suffix of each passage."""
        return (
            (tuple(prefix), tuple(suffix))
            for prefix, suffix in zip(self.prefixes, self.suffixes, strict=True)
        )

    def sha256(self) -> str:
        """Hash of all ids and of where each passage is cut."""
        return hashlib.sha256(json.dumps([list(self.rows())]).encode()).hexdigest()


def _facts(row: Any) -> dict[str, Any]:
    """What a line tells beside ids and text."""
    known = ("source", "offset", "split", "right", "exact", "near")
    return {key: row[key] for key in known if key in row} if isinstance(row, dict) else {}


def _require_read_alike(row: Any, where: str, tokenizer: Any) -> None:
    """Refuse a tokenizer that does not turn a line's ids into the text beside them."""
    if tokenizer is None or not isinstance(row, dict):
        return
    for part in ("prefix", "suffix"):
        text, ids = row.get(part), row.get(f"{part}_ids")
        if isinstance(text, str) and isinstance(ids, list):
            said = decoded(tokenizer, ids)
            if said != text:
                raise ValueError(
                    f"passages: expected the tokenizer that made {part}_ids in {where}, got one "
                    f"that reads them as {said!r:.60} instead of {text!r:.60}"
                )


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
