"""Sources of data: text, token ids or a named dataset as packed windows; images with labels.

Documents are joined by the tokenizer's end-of-sequence token and cut into windows of one length;
the remainder becomes a last, padded window. Tokens are cached under a hash of their source.
"""

import hashlib
import json
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from curvedit.files import write_whole

Source = str | Path | Sequence[str | Path] | Iterable[str] | Iterable[Sequence[int]]
_PIECE = 1 << 16  # characters tokenised at a time


@dataclass(frozen=True)
class TokenBatches:
    """A re-iterable of batches ``{"input_ids", "attention_mask"}``, each int64 ``(B, window)``.

    ``tokens`` counts the positions that contribute to a loss; ``identity`` describes the source.
    """

    ids: np.ndarray[Any, np.dtype[np.int32]]
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


def token_batches(
    source: Source,
    *,
    tokenizer: Any = None,
    window: int = 512,
    batch_size: int = 8,
    max_tokens: int | None = None,
    text_field: str = "text",
    split: str = "train",
    cache: str | Path | None = None,
) -> TokenBatches:
    """Windows of tokens from files, a Hugging Face dataset or any iterable.

    Args:
        source: A ``.txt`` or ``.jsonl`` file, a directory of them, or a list of these; "hf:NAME" or
            "hf:NAME:CONFIG" for a dataset, which is streamed; or an iterable of strings or of lists
            of token ids. A ``.jsonl`` row holds ``text_field``, or ``input_ids``, which need no
            tokenizer.
        tokenizer: A Hugging Face tokenizer; needed for text.
        window: Tokens per window, at least 2.
        batch_size: Windows per batch.
        max_tokens: Stop after this many tokens.
        text_field: The field of a row that holds the text.
        split: The split of a dataset to read.
        cache: Directory in which to keep the tokens of files, under a hash of their content.

    Returns:
        The batches.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: the source is empty, a row is malformed, there is text but no tokenizer, or a
            number is out of range.
    """
    if window < 2:
        raise ValueError(f"window: expected at least 2 tokens, got {window}")
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
    if max_tokens is not None and max_tokens < 2:
        raise ValueError(f"max_tokens: expected at least 2, got {max_tokens}")
    files = _files(source)
    key = None if files is None else _key(files, tokenizer, text_field, max_tokens)
    kept = None if cache is None or key is None else Path(cache) / f"{key}.tokens"
    ids = _read_cache(kept)
    if ids is None:
        ids = _tokens(_documents(source, files, text_field, split), tokenizer, max_tokens)
        if kept is not None:
            _write_cache(kept, ids)
    if len(ids) < 2:
        raise ValueError(f"data: expected at least two tokens, got {len(ids)} from {_name(source)}")
    identity = {
        "source": _name(source),
        "sha256": hashlib.sha256(ids.tobytes()).hexdigest(),
        "tokens": len(ids),
        "window": window,
        "tokenizer": _tokenizer_name(tokenizer),
    }
    return TokenBatches(ids, window, batch_size, identity)


def image_batches(path: str | Path, *, batch_size: int = 32) -> list[dict[str, Tensor]]:
    """Batches for a classifier from a safetensors file.

    Args:
        path: The file, with ``pixel_values`` (N, C, H, W) and ``labels`` (N,).
        batch_size: Images per batch.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged or holds other tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"data: expected a .safetensors file of images, got {path}")
    try:
        content = load_file(path)
    except SafetensorError as error:
        raise ValueError(
            f"data: expected a safetensors file, got {path}, which is damaged or of another format "
            f"({error})"
        ) from error
    if set(content) != {"pixel_values", "labels"} or len(content["pixel_values"]) != len(
        content["labels"]
    ):
        shapes = {key: tuple(value.shape) for key, value in content.items()}
        raise ValueError(
            f"data: expected pixel_values (N, C, H, W) and labels (N,) in {path}, got {shapes}"
        )
    parts = zip(
        content["pixel_values"].split(batch_size), content["labels"].split(batch_size), strict=True
    )
    return [{"pixel_values": pixels, "labels": labels} for pixels, labels in parts]


def _name(source: Source) -> str:
    if isinstance(source, (str, Path)):
        return str(source)
    if (
        isinstance(source, list)
        and source
        and all(isinstance(part, (str, Path)) for part in source)
    ):
        return ", ".join(str(part)[:80] for part in source[:4])
    return type(source).__name__


def _tokenizer_name(tokenizer: Any) -> str:
    return (
        ""
        if tokenizer is None
        else f"{type(tokenizer).__name__} {getattr(tokenizer, 'name_or_path', '')}".strip()
    )


def _files(source: Source) -> list[Path] | None:
    """The files that a source names; None for a source of another kind."""
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


Document = str | Sequence[int]


def _file_documents(files: list[Path], text_field: str) -> Iterator[Document]:
    for path in files:
        if path.suffix == ".txt":
            yield path.read_text(encoding="utf-8")
            continue
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _row_document(_row(path, number, line), text_field, f"{path}:{number}")


def _row(path: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"data: {path}:{number} is not JSON ({error})") from error


def _row_document(row: Any, text_field: str, where: str) -> Document:
    if isinstance(row, dict) and isinstance(row.get("input_ids"), list):
        ids: list[int] = row["input_ids"]
        return ids
    if not isinstance(row, dict) or not isinstance(row.get(text_field), str):
        got = sorted(row) if isinstance(row, dict) else type(row).__name__
        raise ValueError(
            f"data: expected a text field {text_field!r} or input_ids in {where}, got {got}"
        )
    text: str = row[text_field]
    return text


def _documents(
    source: Any, files: list[Path] | None, text_field: str, split: str
) -> Iterator[Document]:
    if files is not None:
        yield from _file_documents(files, text_field)
        return
    if not isinstance(source, str):
        yield from source
        return
    from datasets import load_dataset

    name, _, config = source.removeprefix("hf:").partition(":")
    for row in load_dataset(name, config or None, split=split, streaming=True):
        yield _row_document(row, text_field, source)


def _tokens(
    documents: Iterator[Document], tokenizer: Any, max_tokens: int | None
) -> np.ndarray[Any, np.dtype[np.int32]]:
    separator = [] if getattr(tokenizer, "eos_token_id", None) is None else [tokenizer.eos_token_id]
    pieces: list[np.ndarray[Any, np.dtype[np.int32]]] = []
    total = 0
    for document in documents:
        for ids in _document_ids(document, tokenizer):
            pieces.append(np.asarray(ids, dtype=np.int32))
            total += len(ids)
            if max_tokens is not None and total >= max_tokens:
                return np.concatenate(pieces)[:max_tokens]
        if separator:
            pieces.append(np.asarray(separator, dtype=np.int32))
            total += 1
    return np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.int32)


def _document_ids(document: Document, tokenizer: Any) -> Iterator[Sequence[int]]:
    if not isinstance(document, str):
        yield document
        return
    if tokenizer is None:
        raise ValueError("tokenizer: expected one for text, got None; rows of input_ids need none")
    lines = document.splitlines(keepends=True)  # a long document is tokenised piece by piece
    piece: list[str] = []
    size = 0
    for line in chain(lines, [""]):
        if piece and (not line or size + len(line) > _PIECE):
            yield tokenizer("".join(piece), add_special_tokens=False, verbose=False)["input_ids"]
            piece, size = [], 0
        piece.append(line)
        size += len(line)


def _key(files: list[Path], tokenizer: Any, text_field: str, max_tokens: int | None) -> str:
    digest = hashlib.sha256(
        json.dumps([text_field, max_tokens, _tokenizer_name(tokenizer)]).encode()
    )
    if tokenizer is not None:
        digest.update(json.dumps(sorted(tokenizer.get_vocab().items())).encode())
    for path in files:
        digest.update(path.suffix.encode())
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _read_cache(path: Path | None) -> np.ndarray[Any, np.dtype[np.int32]] | None:
    if path is None or not path.is_file():
        return None
    content = path.read_bytes()
    stored, body = content[:64].decode("ascii", "replace"), content[64:]
    if hashlib.sha256(body).hexdigest() != stored:
        warnings.warn(f"data: the token cache {path} is damaged; tokenising again", stacklevel=3)
        return None
    return np.frombuffer(body, dtype=np.int32)


def _write_cache(path: Path, ids: np.ndarray[Any, np.dtype[np.int32]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    body = ids.tobytes()
    write_whole(path, hashlib.sha256(body).hexdigest().encode() + body)
