"""The token cache: a file per source and tokenizer, with the hash of its own content in front."""

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from curvedit.data.documents import Ids
from curvedit.files import write_whole

_HASH = 64  # hex digits


def key_of(files: list[Path], settings: list[Any]) -> str:
    """Name of the cache entry of files that are read with these settings."""
    digest = hashlib.sha256(json.dumps(settings).encode())
    for path in files:
        digest.update(f"{path.suffix} {path.stat().st_size} ".encode())
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def read_tokens(path: Path | None) -> tuple[Ids, Any] | None:
    """The tokens of a cache file and the record of how they were drawn; None if there is none."""
    if path is None or not path.is_file():
        return None
    content = path.read_bytes()
    stored, body = content[:_HASH].decode("ascii", "replace"), content[_HASH:]
    if hashlib.sha256(body).hexdigest() != stored:
        warnings.warn(f"data: the token cache {path} is damaged; tokenising again", stacklevel=3)
        return None
    record, _, ids = body.partition(b"\n")
    return np.frombuffer(ids, dtype=np.int32), json.loads(record)


def write_tokens(path: Path, ids: Ids, sample: Any) -> None:
    """Write what :func:`read_tokens` reads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    body = json.dumps(sample).encode() + b"\n" + ids.tobytes()
    write_whole(path, hashlib.sha256(body).hexdigest().encode() + body)
