"""The files of a factor directory: names, and tensors and bases read and written."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from curvedit.selection import Basis


def file_stem(key: str) -> str:
    """Name, without its ending, of the file of "<kind>/<target>"."""
    kind, _, name = key.partition("/")
    return f"{kind}.{name.replace('/', '_')}"


def read_tensor(path: Path, tensor: str) -> Tensor:
    """One tensor of a file.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        with safe_open(path, framework="pt") as stored:
            value: Tensor = stored.get_tensor(tensor)
            return value
    except SafetensorError as error:
        raise ValueError(f"factors: {path} is damaged ({error}); fit again") from error


def read_basis(path: Path) -> Basis:
    """A cached eigendecomposition.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        with safe_open(path, framework="pt") as stored:
            certificate = json.loads(stored.metadata()["certificate"])
            return Basis(stored.get_tensor("values"), stored.get_tensor("vectors"), certificate)
    except (SafetensorError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"factors: {path} is damaged ({error}); delete it and it is computed again") from error


def read_certificate(path: Path) -> dict[str, Any]:
    """That of a cached eigendecomposition, without reading the vectors.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        with safe_open(path, framework="pt") as stored:
            found: dict[str, Any] = json.loads(stored.metadata()["certificate"])
            return found
    except (SafetensorError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"factors: {path} is damaged ({error}); delete it and it is computed again") from error


def write_basis(path: Path, basis: Basis) -> None:
    """Write an eigendecomposition, whole or not at all."""
    part = path.with_name(path.name + ".part")
    tensors = {"values": basis.values.cpu(), "vectors": basis.vectors.cpu().contiguous()}
    try:
        save_file(tensors, part, {"certificate": json.dumps(dict(basis.certificate))})
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
