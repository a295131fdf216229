"""The eigenbasis of a factor, and its cache: one file per basis beside the sums, or memory."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from curvedit.factors.target import Key


@dataclass(frozen=True)
class Basis:
    """Eigenvalues and eigenvectors of a symmetric matrix, largest eigenvalue first.

    Shapes: ``values`` (n,) float64, clamped at 0; ``vectors`` (n, n) float32, whose column ``k``
    belongs to ``values[k]``. ``certificate`` records how well they satisfy the defining equations.
    """

    values: Tensor
    vectors: Tensor
    certificate: Mapping[str, Any] = field(default_factory=dict)


class BasisStore:
    """A cache of bases, in a directory if it is writable, otherwise in memory."""

    def __init__(self) -> None:
        """Start empty, in memory."""
        self.directory: Path | None = None
        self._bases: dict[Key, Basis] = {}

    def __contains__(self, key: Key) -> bool:
        """Whether the basis is cached."""
        return key in self._bases or self._path(key) is not None

    def get(self, key: Key) -> Basis:
        """Return a cached basis.

        Raises:
            KeyError: it is not cached.
            ValueError: its file is damaged.
        """
        path = self._path(key)
        return self._bases[key] if path is None else read_basis(path)

    def certificate(self, key: Key) -> Mapping[str, Any]:
        """Return the certificate of a cached basis, without reading its vectors from a file.

        Raises:
            KeyError: the basis is not cached.
            ValueError: its file is damaged.
        """
        path = self._path(key)
        if path is None:
            return self._bases[key].certificate
        with _opened(path) as stored:
            return _certificate(stored)

    def values(self, key: Key) -> Tensor:
        """Return the eigenvalues of a cached basis, without reading its vectors from a file.

        Raises:
            KeyError: the basis is not cached.
            ValueError: its file is damaged.
        """
        path = self._path(key)
        if path is None:
            return self._bases[key].values
        with _opened(path) as stored:
            values: Tensor = stored.get_tensor("values")
            return values

    def keep(self, key: Key, basis: Basis) -> None:
        """Cache a basis."""
        if self.directory is None or not os.access(self.directory, os.W_OK):
            self._bases[key] = basis
        else:
            write_basis(self.directory / basis_file(key), basis)

    def write(self, directory: Path) -> None:
        """Write the bases that are in memory into a directory."""
        for key, basis in self._bases.items():
            write_basis(directory / basis_file(key), basis)

    def move(self, directory: Path) -> None:
        """Continue in a directory that already holds these bases, and forget those in memory."""
        self.directory, self._bases = directory, {}

    def _path(self, key: Key) -> Path | None:
        path = None if self.directory is None else self.directory / basis_file(key)
        return path if path is not None and path.exists() else None


def file_stem(key: Key) -> str:
    """Return the name of a factor's file without its suffix."""
    return f"{key.kind}.{key.target.replace('/', '_')}"


def basis_file(key: Key) -> str:
    """Return the name of the file that holds a factor's basis."""
    return f"{file_stem(key)}.basis.safetensors"


def read_basis(path: Path) -> Basis:
    """Read a basis from its file.

    Raises:
        ValueError: the file is damaged.
    """
    with _opened(path) as stored:
        certificate = _certificate(stored)
        return Basis(stored.get_tensor("values"), stored.get_tensor("vectors"), certificate)


def write_basis(path: Path, basis: Basis) -> None:
    """Write a basis to a file, whole or not at all."""
    part = path.with_name(path.name + ".part")
    tensors = {"values": basis.values.cpu(), "vectors": basis.vectors.cpu().contiguous()}
    try:
        save_file(tensors, part, {"certificate": json.dumps(dict(basis.certificate))})
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open the file of a basis, and say which one it is if it turns out to be damaged."""
    try:
        with safe_open(path, framework="pt") as stored:
            yield stored
    except (SafetensorError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"factors: {path} is damaged ({error}); delete it to have it recomputed"
        ) from error


def _certificate(stored: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(stored.metadata()["certificate"])
    return found
