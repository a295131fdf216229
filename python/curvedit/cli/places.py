"""Where verbs write and what they read: checked by kind before anything runs."""

import shutil
from pathlib import Path
from typing import Any

import torch

from curvedit import report
from curvedit.checks import require_new_directory

RECORD = "curvedit.json"
_KINDS = {  # the file that shows what a directory is
    "report.json": "a report",
    "selection.json": "a selection",
    RECORD: "an edited checkpoint",
    "manifest.json": "a factor directory",
    "config.json": "a checkpoint",
}


def kind_of(path: Path) -> str:
    """What a path is, in words, beginning with an article."""
    if path.is_file():
        return "a file"
    if not path.is_dir():
        return "nothing that exists"
    for name, kind in _KINDS.items():
        if (path / name).is_file():
            return kind
    for name, kind in _KINDS.items():
        if next(path.glob(f"*/{name}"), None) is not None:
            return f"a directory of several, the first of them {kind}"
    return "a directory that curvedit did not write"


def require_kind(name: str, path: Path, kind: str, maker: str) -> Path:
    """Return ``path``; refuse one that is of another kind.

    Raises:
        FileNotFoundError: it is not a directory of this kind.
    """
    if kind_of(path) != kind:
        raise FileNotFoundError(
            f"{name}: expected {kind}, as curvedit {maker} writes, got {path}, {kind_of(path)}"
        )
    return path


def members(path: Path, name: str) -> list[Path]:
    """The directories of a sweep: those inside ``path`` that hold a file of this name, sorted."""
    return sorted(found.parent for found in path.glob(f"*/{name}"))


def require_place(out: str, *, outside: str | None = None) -> Path:
    """Return where to write a new directory, if that can be.

    Args:
        out: The path, as given.
        outside: A directory that must not hold it.

    Raises:
        FileExistsError: it already has content.
        NotADirectoryError: a file is in the way.
        ValueError: it is empty, or inside ``outside``.
    """
    if not out.strip():
        raise ValueError(f"out: expected the path of a new directory, got {out!r}")
    place = require_new_directory("out", Path(out))
    if outside is not None and Path(outside).is_dir():
        source = Path(outside).resolve()
        if source in (place.resolve(), *place.resolve().parents):
            raise ValueError(f"out: expected a directory outside the model's, got {out}")
    exists = _nearest(place)
    if not exists.is_dir():
        raise NotADirectoryError(f"out: expected a path below directories, got {exists}, a file")
    return place


def require_room(out: Path, needed: int) -> None:
    """Raise ``OSError`` unless the disk that will hold ``out`` has so many bytes free."""
    free = shutil.disk_usage(_nearest(out)).free
    if needed > free:
        raise OSError(
            f"out: expected {needed:,} bytes free for {out}, got {free:,}; "
            "free some space or choose another disk"
        )


def _nearest(path: Path) -> Path:
    """The path itself, or the nearest of its parents that exists."""
    return next(each for each in (path.absolute(), *path.absolute().parents) if each.exists())


def size_of(directory: str) -> int:
    """Bytes of the files in a directory; 0 for a hub name."""
    place = Path(directory)
    if not place.is_dir():
        return 0
    return sum(path.stat().st_size for path in place.rglob("*") if path.is_file())


def read_record(directory: Path) -> dict[str, Any] | None:
    """The record of an edited checkpoint; None if the directory has none.

    Raises:
        ValueError: it is damaged.
    """
    path = directory / RECORD
    if not path.is_file():
        return None
    return report.read_record(path)


def require_device(name: str, text: str | None) -> None:
    """Refuse a device that torch cannot use here; None is any.

    Raises:
        ValueError: there is no such device.
    """
    if text is None:
        return
    have = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        have.append("mps")
    refusal = f"{name}: expected one of {have}, got {text!r}"
    try:
        device = torch.device(text)
    except RuntimeError as error:
        raise ValueError(refusal) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        build = "for CPUs only" if torch.version.cuda is None else "for CUDA, but sees no GPU"
        raise ValueError(f"{refusal}; this torch is built {build}")
    if device.type == "cuda" and (device.index or 0) < torch.cuda.device_count():
        return
    if device.type not in ("cpu", "mps") or text not in (*have, "cpu:0", "mps:0"):
        raise ValueError(refusal)
