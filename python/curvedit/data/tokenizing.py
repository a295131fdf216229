"""What a tokenizer adds to a text, and what tells it from other tokenizers."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from curvedit.checks import require_choice
from curvedit.data.documents import Ids
from curvedit.meter import beat

BOS = ("auto", "always", "never")
_PIECE = 1 << 16  # characters tokenised at a time


def opening_of(tokenizer: Any, bos: str) -> tuple[int, ...]:
    """The token ids with which a sequence begins.

    Args:
        tokenizer: A Hugging Face tokenizer, or None.
        bos: "auto" for what the tokenizer itself puts before a text (BOS, CLS, or nothing: many
            tokenizers have a BOS token that they do not add); "always" adds the BOS token even
            then; "never" adds nothing.

    Raises:
        ValueError: another ``bos``; or "always" and no tokenizer, or one without a BOS token.
    """
    require_choice("bos", bos, BOS)
    if bos == "never":
        return ()
    added = () if tokenizer is None else _added_before(tokenizer)
    if added or bos == "auto":
        return added
    own = getattr(tokenizer, "bos_token_id", None)
    if own is None:
        got = "none" if tokenizer is None else f"{name_of(tokenizer)} without one"
        raise ValueError(
            f"bos: expected a tokenizer with a BOS token for 'always', got {got}; "
            "use 'auto' or 'never'"
        )
    return (int(own),)


def bare_ids(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text without special tokens."""
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def decoded(tokenizer: Any, ids: Iterable[int]) -> str:
    """The text of token ids, without special tokens."""
    text: str = tokenizer.decode(
        list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return text


def encoded(tokenizer: Any, text: str) -> Iterator[Ids]:
    """Token ids of a text without special tokens; a long text piece by piece, cut at lines."""
    if tokenizer is None:
        raise ValueError("tokenizer: expected one for text, got None; rows of input_ids need none")
    piece: list[str] = []
    size = 0
    for line in chain(text.splitlines(keepends=True), [""]):
        if piece and (not line or size + len(line) > _PIECE):
            yield np.asarray(bare_ids(tokenizer, "".join(piece)), dtype=np.int32)
            piece, size = [], 0
            beat()
        piece.append(line)
        size += len(line)


def name_of(tokenizer: Any) -> str:
    """Class and origin of a tokenizer; empty for None."""
    return (
        ""
        if tokenizer is None
        else f"{type(tokenizer).__name__} {getattr(tokenizer, 'name_or_path', '')}".strip()
    )


def fingerprint_of(tokenizer: Any) -> str:
    """SHA-256 of all that decides which ids a text becomes.

    Of a fast tokenizer that is its whole serialisation; of another its class, settings, vocabulary
    and vocabulary files.
    """
    if tokenizer is None:
        return ""
    parts: list[Any] = [type(tokenizer).__qualname__, getattr(tokenizer, "eos_token_id", None)]
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if hasattr(backend, "to_str"):
        whole = json.loads(backend.to_str())
        parts.append({k: v for k, v in whole.items() if k not in ("padding", "truncation")})
    else:
        parts += [
            sorted(tokenizer.get_vocab().items()) if hasattr(tokenizer, "get_vocab") else None,
            _plain(getattr(tokenizer, "init_kwargs", {})),
            _plain(vars(tokenizer)),
            _files(tokenizer),
        ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _added_before(tokenizer: Any) -> tuple[int, ...]:
    known = [getattr(tokenizer, f"{kind}_token_id", None) for kind in ("bos", "cls")]
    count = getattr(tokenizer, "num_special_tokens_to_add", lambda: 0)()
    if known == [None, None] and not count:
        return ()
    for text in _words(tokenizer):
        plain, full = bare_ids(tokenizer, text), list(tokenizer(text)["input_ids"])
        for start in range(len(full) - len(plain) + 1 if plain else 0):
            if full[start : start + len(plain)] == plain:
                return tuple(full[:start])
    first = list(tokenizer("")["input_ids"])[:1]  # no text of the vocabulary was found again
    return tuple(first) if first and first[0] in known else ()


def _words(tokenizer: Any) -> Iterator[str]:
    """Short texts, of which the tokenizer should know one."""
    yield from ("x", "the", "1")
    special = set(getattr(tokenizer, "all_special_tokens", ()))
    vocabulary = tokenizer.get_vocab() if hasattr(tokenizer, "get_vocab") else {}
    yield from (word for word in list(vocabulary)[:64] if word not in special)


def _plain(value: Any) -> Any:
    """The settings among an object's attributes: what JSON can hold."""
    if isinstance(value, dict):
        return {
            str(key): _plain(each)
            for key, each in value.items()
            if key not in ("name_or_path", "_commit_hash") and _plain(each) is not None
        }
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return value if isinstance(value, (str, int, float, bool)) else None


def _files(tokenizer: Any) -> list[str]:
    """Hashes of the files that a slow tokenizer was made from."""
    paths = [
        getattr(tokenizer, name, None)
        for name in getattr(tokenizer, "vocab_files_names", None) or ()
    ]
    return [
        hashlib.sha256(Path(path).read_bytes()).hexdigest()
        for path in paths
        if isinstance(path, (str, Path)) and Path(path).is_file()
    ]
