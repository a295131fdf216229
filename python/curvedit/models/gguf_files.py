"""GGUF files: which paths are such files, whether they can be read here, what to tell transformers.

The parts of a file are read by transformers, which dequantises them.
"""

import contextlib
import mmap
import re
import sys
from collections.abc import Iterable, Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from curvedit.meter import beat

_MAGIC = b"GGUF"
_HEADER = 24  # bytes: magic, version, number of tensors, number of metadata entries
_NEEDED = ("transformers", "gguf", "accelerate")
_PART = re.compile(r"-\d{5}-of-(?!00001)\d{5}$")  # how llama.cpp names the parts of a split model


def is_gguf(path: str | Path) -> bool:
    """Whether a path names a GGUF file, by its ending; the file need not exist."""
    return Path(path).suffix.lower() == ".gguf" and not Path(path).is_dir()


def conversion_hint(path: str | Path) -> str:
    """What a message adds where a directory is needed and a GGUF file was given; "" otherwise."""
    if not is_gguf(path):
        return ""
    return f", a GGUF file; convert it first: curvedit convert {path} --out DIR"


def require_gguf(name: str, path: str | Path) -> Path:
    """Return the path of a GGUF file that can be read here.

    Args:
        name: The caller's argument, for messages.
        path: The file.

    Returns:
        The path.

    Raises:
        FileNotFoundError: there is no such file.
        ModuleNotFoundError: a package that reads it is not installed.
        ValueError: it is something else, or one part of several.
    """
    place = Path(path)
    if not place.is_file():
        raise FileNotFoundError(f"{name}: expected a GGUF file, got {path}, which does not exist")
    require_readers(name)
    with place.open("rb") as stream:
        head = stream.read(_HEADER)
    if len(head) < _HEADER or head[:4] != _MAGIC:
        raise ValueError(
            f"{name}: expected a GGUF file, got {path}, which does not begin as one; "
            "download it again"
        )
    if _PART.search(place.stem):
        raise ValueError(
            f"{name}: expected one GGUF file with all tensors, got {path}, one part of several; "
            "join them with llama-gguf-split --merge"
        )
    return place


def require_readers(name: str) -> None:
    """Raise ``ModuleNotFoundError`` unless the packages that read GGUF files are installed."""
    lacking = [package for package in _NEEDED if find_spec(package) is None]
    if lacking:
        raise ModuleNotFoundError(
            f"{name}: reading a GGUF file needs {' and '.join(lacking)}; "
            "pip install 'curvedit[gguf]'"
        )


def source_of(path: str | Path) -> tuple[str | Path, dict[str, Any]]:
    """What ``from_pretrained`` takes for a checkpoint: its place, and keywords for a GGUF file."""
    if not is_gguf(path):
        return path, {}
    place = Path(path).absolute()
    return str(place.parent), {"gguf_file": place.name}


def dequantised(transformers: Any) -> dict[str, Any]:
    """Keywords that make ``from_pretrained`` dequantise; older releases do nothing else."""
    if not hasattr(transformers, "GgufConfig"):
        return {}
    return {"quantization_config": transformers.GgufConfig(dequantize=True)}


@contextlib.contextmanager
def without_bars(transformers: Any, *, always: bool = False) -> Iterator[None]:
    """Hide the bars of transformers where they would fill a log, or ``always``."""
    if sys.stderr.isatty() and not always:
        yield
        return
    logging = transformers.utils.logging
    was_shown = logging.is_progress_bar_enabled()
    dequantising = import_module("transformers.modeling_gguf_pytorch_utils")
    right = dequantising.tqdm  # a bar that no setting hides
    vars(dequantising)["tqdm"] = _beating
    logging.disable_progress_bar()
    try:
        yield
    finally:
        vars(dequantising)["tqdm"] = right
        if was_shown:
            logging.enable_progress_bar()


def _beating(tensors: Iterable[Any], **_: Any) -> Iterator[Any]:
    """The same, in place of a bar; the work goes on with each."""
    for each in tensors:
        beat()
        yield each


def holds_tokenizer(path: Path) -> bool:
    """Whether a GGUF file's metadata, which stand before its tensors, name a tokenizer."""
    with (
        path.open("rb") as stream,
        mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        return content.find(b"tokenizer.ggml.model") >= 0


def stamp_of(path: Path) -> tuple[str, int, int]:
    """What a file's content is remembered by: its place, the time of its last change, its size."""
    state = path.stat()
    return str(path.absolute()), state.st_mtime_ns, state.st_size
