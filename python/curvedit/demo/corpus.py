"""Real text found on every machine: the sources of the Python standard library, as bytes."""

import hashlib
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

WINDOW = 112  # bytes
PREFIX = 64  # bytes the model is given; it should recite the other 48
PASSAGES = 64
_TRAINING_BYTES = 4_000_000
_HELD_OUT_BYTES = 400_000
_LEFT_OUT = {
    "test",
    "tests",
    "idlelib",
    "lib2to3",
    "site-packages",
    "__pycache__",
    "config",
    "pydoc_data",
}


@dataclass(frozen=True)
class Corpus:
    """Bytes as token ids: text to train on, held-out text, and passages to learn by heart."""

    training: Tensor  # (bytes,) int64
    held_out: Tensor  # (windows, 112) int64
    passages: Tensor  # (64, 112) int64
    sha256: str


def load_corpus() -> Corpus:
    """Read the standard library and split it by file; passages come from separate files.

    Raises:
        FileNotFoundError: the sources of the standard library are not installed.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(
        path
        for path in root.rglob("*.py")
        if not _LEFT_OUT & set(path.relative_to(root).parts[:-1]) and path.stat().st_size > 2000
    )
    if len(files) < 50:
        raise FileNotFoundError(
            f"demo: expected the standard library's sources in {root}, got {len(files)} files"
        )
    parts: dict[str, list[bytes]] = {"training": [], "held out": [], "passages": []}
    for path in files:
        share = int.from_bytes(hashlib.sha256(path.name.encode()).digest()[:2], "big") / 65536
        kind = "held out" if share < 0.1 else "passages" if share < 0.25 else "training"
        parts[kind].append(path.read_bytes())
    training = b"".join(parts["training"])[:_TRAINING_BYTES]
    held_out = b"".join(parts["held out"])[:_HELD_OUT_BYTES]
    passages = _passages(b"".join(parts["passages"]), training + held_out)
    digest = hashlib.sha256(training + held_out + b"".join(passages)).hexdigest()
    return Corpus(
        _ids(training),
        _ids(held_out)[: len(held_out) // WINDOW * WINDOW].reshape(-1, WINDOW),
        torch.stack([_ids(passage) for passage in passages]),
        digest,
    )


def windows(
    text: Tensor,  # (bytes,)
    count: int,
    generator: torch.Generator,
) -> Tensor:
    """Cut random windows out of a text; shape ``(count, 112)``."""
    starts = torch.randint(len(text) - WINDOW, (count, 1), generator=generator)
    return text[starts + torch.arange(WINDOW)]


def _passages(text: bytes, other: bytes) -> list[bytes]:
    """Evenly spaced windows of varied text.

    Their suffixes occur nowhere in ``other``, which rules out licences and other boilerplate.
    """
    stride = len(text) // (4 * PASSAGES)
    found: list[bytes] = []
    for number in range(4 * PASSAGES):
        for start in range(number * stride, (number + 1) * stride - WINDOW, 16):
            passage = text[start : start + WINDOW]
            if (
                len(set(passage)) > 28
                and b" " * 12 not in passage
                and passage[PREFIX:] not in other
            ):
                found.append(passage)
                break
    return found[:: len(found) // PASSAGES][:PASSAGES]


def _ids(text: bytes) -> Tensor:
    return torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
