"""The eigenbasis of a factor, and its cache: one file per basis beside the sums, or memory.

A file holds the hash of its spectrum and certificate, that of its vectors, and the identity of the
factor it decomposes. Each is checked whenever what it speaks of is used.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from curvedit.factors.target import Key
from curvedit.files import new_file
from curvedit.models import weight_hash


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
        self._identities: Mapping[Key, str] = {}
        self._bases: dict[Key, Basis] = {}

    def __contains__(self, key: Key) -> bool:
        """Whether the basis is cached."""
        return key in self._bases or self._path(key) is not None

    def get(self, key: Key) -> Basis:
        """Return a cached basis.

        Raises:
            KeyError: it is not cached.
            ValueError: its file is damaged, or is that of another factor.
        """
        path = self._path(key)
        return self._bases[key] if path is None else read_basis(path, self._identity(key))

    def spectrum(self, key: Key) -> Basis:
        """Return a cached basis whose vectors may be missing: a file's are not read.

        Raises:
            KeyError: the basis is not cached.
            ValueError: its file is damaged, or is that of another factor.
        """
        path = self._path(key)
        if path is None:
            return self._bases[key]
        return read_basis(path, self._identity(key), vectors=False)

    def keep(self, key: Key, basis: Basis) -> None:
        """Cache a basis, unless another process has done so first."""
        if self.directory is None or not os.access(self.directory, os.W_OK):
            self._bases[key] = basis
        else:
            write_basis(self.directory / basis_file(key), basis, self._identity(key))

    def write(self, directory: Path, identities: Mapping[Key, str]) -> None:
        """Write the bases that are in memory into a directory; ``identities`` as for `move`."""
        for key, basis in self._bases.items():
            write_basis(directory / basis_file(key), basis, identities[key])

    def move(self, directory: Path, identities: Mapping[Key, str]) -> None:
        """Continue in a directory that already holds these bases, and forget those in memory.

        Args:
            directory: The factor directory.
            identities: Of each factor, a text that differs if the factor differs.
        """
        self.directory, self._identities, self._bases = directory, identities, {}

    def _path(self, key: Key) -> str | None:
        if self.directory is None:
            return None
        path = f"{self.directory}{os.sep}{basis_file(key)}"  # asked often; a Path takes longer
        return path if os.path.exists(path) else None  # noqa: PTH110

    def _identity(self, key: Key) -> str:
        return self._identities.get(key, "")


def file_stem(key: Key) -> str:
    """Return the name of a factor's file without its suffix."""
    return f"{key.kind}.{key.target.replace('/', '_')}"


def basis_file(key: Key) -> str:
    """Return the name of the file that holds a factor's basis."""
    return f"{file_stem(key)}.basis.safetensors"


def read_basis(path: str | Path, factor: str, *, vectors: bool = True) -> Basis:
    """Read and verify a basis.

    Args:
        path: Its file.
        factor: The identity of the factor it must belong to.
        vectors: Whether to read the eigenvectors; if not, they are empty.

    Raises:
        ValueError: the file is damaged, or is that of another factor.
    """
    try:
        with safe_open(path, framework="pt") as stored:
            facts = stored.metadata() or {}
            values, certificate = stored.get_tensor("values"), facts["certificate"]
            read = stored.get_tensor("vectors") if vectors else values.new_empty(0, 0)
            hashes = facts["spectrum_sha256"], facts["vectors_sha256"]
            wanted = facts["factor"]
    except (SafetensorError, OSError, KeyError) as error:
        raise _damaged(path, f"damaged ({error})") from error
    if _spectrum_hash(values, certificate, wanted) != hashes[0]:
        raise _damaged(path, "damaged (its spectrum differs from its SHA-256)")
    if wanted != factor:
        raise _damaged(path, "the basis of another factor")
    if vectors and weight_hash(read) != hashes[1]:
        raise _damaged(path, "damaged (its vectors differ from their SHA-256)")
    return Basis(values, read, json.loads(certificate))


def write_basis(path: Path, basis: Basis, factor: str) -> None:
    """Write a basis to a file, whole or not at all; one that is there by then stays.

    Args:
        path: The file.
        basis: The basis.
        factor: The identity of the factor it decomposes.
    """
    values, vectors = basis.values.cpu(), basis.vectors.cpu().contiguous()
    certificate = json.dumps(dict(basis.certificate))
    facts = {
        "certificate": certificate,
        "factor": factor,
        "spectrum_sha256": _spectrum_hash(values, certificate, factor),
        "vectors_sha256": weight_hash(vectors),
    }
    with new_file(path, replace=False) as part:
        save_file({"values": values, "vectors": vectors}, part, facts)


def _spectrum_hash(values: Tensor, certificate: str, factor: str) -> str:
    digest = hashlib.sha256(f"{values.dtype} {certificate} {factor} ".encode())
    digest.update(values.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _damaged(path: str | Path, what: str) -> ValueError:
    return ValueError(f"factors: {path} is {what}; delete it to have it recomputed")
