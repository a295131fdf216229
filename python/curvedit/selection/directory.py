"""Selection directories: a selection written to disk and read back.

``selection.json`` holds the recipe and one entry per target, ``selection.safetensors`` the limits
or masks and the spectra. The bases stay in the factor directory, which is identified by its path
and by the SHA-256 of its manifest. The metadata of ``selection.safetensors`` hold the SHA-256 of
everything in both files.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from curvedit.factors import Factors
from curvedit.files import document_hash, new_directory
from curvedit.models import weight_hash

FORMAT = 1
_HASH = "selection_sha256"  # in the metadata of selection.safetensors


@dataclass(frozen=True)
class StoredSelection:
    """The content of a selection directory."""

    recipe: Mapping[str, Any]
    targets: Mapping[str, Mapping[str, Any]]  # entries by target name
    tensors: Mapping[str, Tensor]  # "<part>/<name>"
    factors: Factors


def write_directory(directory: Path, stored: StoredSelection) -> None:
    """Write a selection directory.

    Raises:
        ValueError: the factors were never saved.
        FileExistsError: the directory is not empty.
        OSError: it cannot be written; nothing is left behind.
    """
    if stored.factors.directory is None:
        raise ValueError(
            "factors: expected saved factors, whose directory holds the bases; "
            "call factors.save first"
        )
    content = {
        "format": FORMAT,
        "recipe": dict(stored.recipe),
        "factors": {
            "path": os.path.relpath(
                os.path.realpath(stored.factors.directory), os.path.realpath(directory)
            ),
            "sha256": stored.factors.identity,
        },
        "targets": stored.targets,
    }
    with new_directory("directory", directory) as part:
        # Targets that share an input share its spectrum, but safetensors refuses shared memory.
        tensors = {key: value.cpu().clone() for key, value in stored.tensors.items()}
        facts = {_HASH: _hash(content, tensors)}
        save_file(tensors, part / "selection.safetensors", facts)
        (part / "selection.json").write_text(json.dumps(content, indent=2))


def read_directory(directory: Path) -> StoredSelection:
    """Read a selection directory.

    Raises:
        FileNotFoundError: it is not a selection directory, or the factor directory is missing.
        ValueError: it is damaged, or the factor directory is not the one it was made from.
    """
    path = directory / "selection.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"selection: expected a directory with selection.json, got {directory}"
        )
    with reporting_damage(directory):
        content = _read_json(path)
        if content["format"] != FORMAT:
            raise ValueError(
                f"selection: expected format {FORMAT}, got {content['format']} in {path}"
            )
        with safe_open(directory / "selection.safetensors", framework="pt") as stored:
            tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118 - not a dict
            written = (stored.metadata() or {}).get(_HASH)
        if written != _hash(content, tensors):
            found = "differs from its SHA-256" if written else "has none, as those of old versions"
            raise ValueError(
                f"selection: the content of {directory} {found}; it is damaged or was changed, so "
                "run rank again"
            )
        factors = Factors.load(directory / content["factors"]["path"])
        if factors.identity != content["factors"]["sha256"]:
            raise ValueError(
                f"selection: {factors.directory} is not the factor directory it was made from; "
                "run rank again"
            )
        return StoredSelection(content["recipe"], content["targets"], tensors, factors)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"selection: {path} is damaged ({error}); run rank again") from error


def _hash(content: Any, tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of all that a selection directory holds."""
    hashes = [f"{key} {weight_hash(tensors[key])}" for key in sorted(tensors)]
    return hashlib.sha256("\n".join([document_hash(content), *hashes]).encode()).hexdigest()


@contextmanager
def reporting_damage(directory: Path) -> Iterator[None]:
    """Turn errors from malformed content into a ``ValueError`` that names the directory."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise ValueError(
            f"selection: {directory} is damaged ({error!r}); run rank again"
        ) from error
