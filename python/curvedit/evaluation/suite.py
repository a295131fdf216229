"""What a model is measured on: passages to recite, text to predict, labelled samples."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Passages:
    """Token sequences cut in two: the model is given a prefix and should, or should not, continue it.

    Prefixes and suffixes may differ in length from passage to passage; rows are lists, arrays or
    1-D tensors of ids.

    Raises:
        ValueError: none at all, unequal numbers, an empty prefix or suffix, or a negative id.
        TypeError: something else than integer ids.
    """

    prefixes: Sequence[Sequence[int]]
    suffixes: Sequence[Sequence[int]]

    def __post_init__(self) -> None:
        for name in ("prefixes", "suffixes"):
            rows = tuple(_ids(name, number, row) for number, row in enumerate(getattr(self, name)))
            object.__setattr__(self, name, rows)
        if len(self.prefixes) != len(self.suffixes):
            raise ValueError(
                f"passages: expected as many suffixes as prefixes, got {len(self.suffixes)} and {len(self.prefixes)}"
            )
        if not self.prefixes:
            raise ValueError("passages: expected at least one, got none")

    def __len__(self) -> int:
        """Number of passages."""
        return len(self.prefixes)

    @classmethod
    def cut(cls, windows: Iterable[Sequence[int]], *, prefix: int, suffix: int) -> "Passages":
        """Passages from windows of ids: the first ``prefix`` tokens and the ``suffix`` after them.

        Raises:
            ValueError: a window is shorter than both together.
        """
        rows = [_ids("windows", number, row) for number, row in enumerate(windows)]
        for number, row in enumerate(rows):
            if len(row) < prefix + suffix:
                raise ValueError(
                    f"windows: expected at least {prefix + suffix} tokens, got {len(row)} as row {number}"
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
        """Passages from JSON lines.

        Args:
            path: Rows with ``prefix_ids`` and ``suffix_ids``, with ``input_ids``, or with text.
            encode: Text to ids; needed for text only.
            prefix: Tokens given of ``input_ids`` or text.
            suffix: Tokens to recite of them.
            text_field: The text's name.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: a line is no such object, or too short.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"passages: expected a .jsonl file, got {path}")
        halves: list[tuple[Sequence[int], Sequence[int]]] = []
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"passages: line {number} of {path} is no JSON ({error})"
                ) from error
            row = row if isinstance(row, dict) else {}
            if "prefix_ids" in row and "suffix_ids" in row:
                halves.append((row["prefix_ids"], row["suffix_ids"]))
                continue
            ids = row.get("input_ids")
            if ids is None and encode is not None and isinstance(row.get(text_field), str):
                ids = encode(row[text_field])
            if ids is None or len(ids) < prefix + suffix:
                got = repr(line[:60]) if ids is None else f"{len(ids)} tokens"
                raise ValueError(
                    f"passages: expected prefix_ids and suffix_ids in line {number} of {path}, or {prefix + suffix} "
                    f"tokens of input_ids or {text_field}, got {got}"
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


@dataclass(frozen=True, kw_only=True)
class Suite:
    """Everything a model is measured on; whatever is left out is not measured.

    Args:
        passages: Recited or not: ``strict``, ``loose``, ``avg_levenshtein``.
        text: ``perplexity``. Windows of token ids (lists, 1-D tensors, or a tensor (N, T)), or
            batches as ``fit`` takes them; anything that can be iterated more than once.
        ndcg_text: ``ndcg10``; the same kinds. None takes ``text``.
        splits: Name to labelled batches, for classifiers: ``accuracy``. Batches are mappings with
            ``labels`` or pairs ``(inputs, labels)``.
        batch_size: Passages or windows per batch.
        pad_token_id: What padding is filled with; any id does, as it is masked. None takes 0.
        resamples: Bootstrap samples.
        seed: Of the bootstrap.

    Raises:
        ValueError: nothing to measure, or an argument out of range.
        TypeError: something that can be read only once.
    """

    passages: Passages | None = None
    text: Any = None
    ndcg_text: Any = None
    splits: Mapping[str, Iterable[Any]] = field(default_factory=dict)
    batch_size: int = 16
    pad_token_id: int | None = None
    resamples: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("batch_size", "resamples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.pad_token_id is not None and self.pad_token_id < 0:
            raise ValueError(
                f"pad_token_id: expected an id of at least 0 or None, got {self.pad_token_id}"
            )
        if self.passages is not None and not isinstance(self.passages, Passages):
            raise TypeError(f"passages: expected Passages, got {type(self.passages).__name__}")
        for name in ("text", "ndcg_text"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, self._batches(name, getattr(self, name)))
        for split, batches in self.splits.items():
            _require_rereadable(f"splits[{split!r}]", batches)
        if (
            self.passages is None
            and self.text is None
            and self.ndcg_text is None
            and not self.splits
        ):
            raise ValueError(
                "suite: expected passages, text, ndcg_text or splits to measure on, got none"
            )

    @property
    def pad(self) -> int:
        """The id that padding is filled with."""
        return 0 if self.pad_token_id is None else self.pad_token_id

    def _batches(self, name: str, text: Any) -> Any:
        """Batches from windows; batches as they are."""
        _require_rereadable(name, text)
        if isinstance(text, Tensor):
            if text.ndim != 2:
                raise ValueError(
                    f"{name}: expected windows of token ids (N, T), got shape {tuple(text.shape)}"
                )
            return [
                {"input_ids": text[start : start + self.batch_size]}
                for start in range(0, len(text), self.batch_size)
            ]
        if not isinstance(text, Sequence) or not text or not _is_window(text[0]):
            return text
        windows = [_ids(name, number, row) for number, row in enumerate(text)]
        for number, window in enumerate(windows):
            if len(window) < 2:
                raise ValueError(
                    f"{name}: expected windows of at least 2 tokens, got 1 as row {number}"
                )
        return [
            _right_padded(windows[start : start + self.batch_size], self.pad)
            for start in range(0, len(windows), self.batch_size)
        ]


def _is_window(row: Any) -> bool:
    if hasattr(row, "ndim"):
        return bool(row.ndim == 1)
    return (
        isinstance(row, Sequence)
        and not isinstance(row, str)
        and all(isinstance(each, int) for each in row)
    )


def _right_padded(windows: list[Ids], pad: int) -> dict[str, Tensor]:
    width = max(map(len, windows))
    return {
        "input_ids": torch.tensor([[*row, *[pad] * (width - len(row))] for row in windows]),
        "attention_mask": torch.tensor(
            [[1] * len(row) + [0] * (width - len(row)) for row in windows]
        ),
    }


def _ids(name: str, number: int, row: Any) -> Ids:
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


def _require_rereadable(name: str, batches: Any) -> None:
    if not isinstance(batches, Iterable):
        raise TypeError(
            f"{name}: expected windows or batches to iterate over, got {type(batches).__name__}"
        )
    if isinstance(batches, Iterator):
        raise TypeError(
            f"{name}: expected something that can be read more than once (a list or a DataLoader), since the "
            f"baseline and each edit are measured on it, got the iterator {type(batches).__name__}; use list(...)"
        )
    if isinstance(batches, Sized) and not len(batches):
        raise ValueError(f"{name}: expected at least one batch, got none")
