"""The files of a selection directory, and where the bases it refers to lie.

``selection.json`` holds the recipe and one entry per target, ``selection.safetensors`` the limits
or masks and the spectra. Bases stay in the factor directory, which is named by path and by the
SHA-256 of its manifest.
"""

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
from curvedit.files import new_directory

FORMAT = 1


@dataclass(frozen=True)
class StoredSelection:
    """What a directory holds."""

    recipe: Mapping[str, Any]
    targets: Mapping[str, Mapping[str, Any]]  # name to entry
    tensors: Mapping[str, Tensor]  # "<part>/<name>"
    factors: Factors


def write_directory(directory: Path, stored: StoredSelection) -> None:
    """Write a selection directory.

    Raises:
        ValueError: the factors were never saved.
        FileExistsError: the directory has content.
        OSError: it cannot be written; nothing is left under its name.
    """
    if stored.factors.directory is None:
        raise ValueError(
            "factors: expected saved ones, whose directory holds the bases; call factors.save first"
        )
    content = {
        "format": FORMAT,
        "recipe": dict(stored.recipe),
        "factors": {
            "path": os.path.relpath(stored.factors.directory, directory),
            "sha256": stored.factors.identity,
        },
        "targets": stored.targets,
    }
    with new_directory("directory", directory) as part:
        # targets that share an input share its spectrum, and safetensors takes no tensor twice
        tensors = {key: value.cpu().clone() for key, value in stored.tensors.items()}
        save_file(tensors, part / "selection.safetensors")
        (part / "selection.json").write_text(json.dumps(content, indent=2))


def read_directory(directory: Path) -> StoredSelection:
    """What a selection directory holds.

    Raises:
        FileNotFoundError: it is no selection, or the factor directory is gone.
        ValueError: it is damaged, or the factor directory is not the one it was made from.
    """
    path = directory / "selection.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"selection: expected a directory with selection.json, got {directory}"
        )
    with reporting_damage(directory):
        content = json.loads(path.read_text())
        if content["format"] != FORMAT:
            raise ValueError(
                f"selection: expected format {FORMAT}, got {content['format']} in {path}"
            )
        factors = Factors.load(directory / content["factors"]["path"])
        if factors.identity != content["factors"]["sha256"]:
            raise ValueError(
                f"selection: {factors.directory} is not the factor directory it was made from; run rank again"
            )
        with safe_open(directory / "selection.safetensors", framework="pt") as stored:
            tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118 - no mapping
        return StoredSelection(content["recipe"], content["targets"], tensors, factors)


@contextmanager
def reporting_damage(directory: Path) -> Iterator[None]:
    """Say of content that cannot be understood which directory it is in."""
    try:
        yield
    except (json.JSONDecodeError, KeyError, TypeError, SafetensorError) as error:
        raise ValueError(
            f"selection: {directory} is damaged ({error!r}); run rank again"
        ) from error
