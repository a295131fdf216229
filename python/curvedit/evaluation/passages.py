"""Passages: token sequences cut into a prefix to continue and the suffix that follows it."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curvedit.evaluation.inputs import Ids, token_ids


@dataclass(frozen=True)
class Passages:
    """Token sequences cut in two: the model sees a prefix and is tested on the suffix after it.

    Prefixes and suffixes may differ in length from passage to passage. Rows are lists, arrays or
    1-D tensors of token ids.

    Raises:
        ValueError: there are none, their numbers differ, one is empty, or an id is negative.
        TypeError: a row holds anything but integers.
    """

    prefixes: Sequence[Sequence[int]]
    suffixes: Sequence[Sequence[int]]

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
    ) -> "Passages":
        """Passages from a file of JSON lines.

        Args:
            path: Each line is an object with ``prefix_ids`` and ``suffix_ids``, with
                ``input_ids``, or with text.
            encode: Turns text into token ids; needed for text only.
            prefix: Length of the prefix cut from ``input_ids`` or text, in tokens.
            suffix: Length of the suffix after it, in tokens.
            text_field: The field that holds the text.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: a line is not such an object or has too few tokens.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"passages: expected a .jsonl file, got {path}")
        halves: list[tuple[Sequence[int], Sequence[int]]] = []
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if not line.strip():
                continue
            row = _object(path, number, line)
            if "prefix_ids" in row and "suffix_ids" in row:
                halves.append((row["prefix_ids"], row["suffix_ids"]))
                continue
            ids = row.get("input_ids")
            if ids is None and encode is not None and isinstance(row.get(text_field), str):
                ids = encode(row[text_field])
            if ids is None or len(ids) < prefix + suffix:
                got = repr(line[:60]) if ids is None else f"{len(ids)} tokens"
                raise ValueError(
                    f"passages: expected prefix_ids and suffix_ids in line {number} of {path}, "
                    f"or {prefix + suffix} tokens of input_ids or {text_field}, got {got}"
                )
            halves.append((ids[:prefix], ids[prefix : prefix + suffix]))
        return cls([given for given, _ in halves], [recited for _, recited in halves])

    def rows(self) -> Iterator[tuple[Ids, Ids]]:
        """Prefix and suffix of each passage."""
        return (
            (tuple(prefix), tuple(suffix))
            for prefix, suffix in zip(self.prefixes, self.suffixes, strict=True)
        )

    def sha256(self) -> str:
        """Hash of all ids and of where each passage is cut."""
        return hashlib.sha256(json.dumps([list(self.rows())]).encode()).hexdigest()


def _object(path: Path, number: int, line: str) -> dict[str, Any]:
    """The JSON object in a line; empty for JSON of another kind."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"passages: line {number} of {path} is not JSON ({error})") from error
    return row if isinstance(row, dict) else {}
