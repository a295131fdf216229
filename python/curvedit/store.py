"""Selections on disk: the staircases themselves, and where the bases they refer to lie.

``selection.json`` holds the recipe and one entry per target, ``selection.safetensors`` the limits
or masks and the spectra. Bases stay in the factor directory, which is named by path and by the
SHA-256 of its manifest.
"""

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from curvedit.eigen import singular_bases
from curvedit.factors import Factors
from curvedit.files import new_directory
from curvedit.selection import BASES, Basis, Selection, TargetSelection

FORMAT = 1


def save_selection(selection: Selection, directory: str | Path, factors: Factors) -> Path:
    """Write a selection beside a reference to its factor directory.

    Raises:
        ValueError: the factors were never saved.
        FileExistsError: the directory has content.
        OSError: it cannot be written; nothing is left under its name.
    """
    if factors.directory is None:
        raise ValueError("factors: expected saved ones, whose directory holds the bases; call factors.save first")
    directory, criterion = Path(directory).absolute(), selection.recipe["criterion"]
    tensors: dict[str, Tensor] = {}
    entries: dict[str, Any] = {}
    for name, target in selection.items():
        parts = {
            "limits": target.limits,
            "mask": target.mask,
            "values_out": target.values_out,
            "values_in": target.values_in,
        }
        tensors |= {f"{part}/{name}": value.contiguous() for part, value in parts.items() if value is not None}
        entries[name] = {
            "shape": target.shape,
            "threshold": target.threshold,
            "kept": target.kept,
            "mass": target.mass,
            "weight_sha256": target.weight_sha256,
            "weight_dtype": target.weight_dtype,
            "certificates": {kind: dict(factors.certificate(kind, name)) for kind in BASES.get(criterion, ())},
        }
    content = {
        "format": FORMAT,
        "recipe": dict(selection.recipe),
        "factors": {
            "path": os.path.relpath(factors.directory, directory),
            "sha256": factors.identity,
        },
        "targets": entries,
    }
    with new_directory("directory", directory) as part:
        save_file(tensors, part / "selection.safetensors")
        (part / "selection.json").write_text(json.dumps(content, indent=2))
    return directory


def load_selection(directory: str | Path) -> Selection:
    """Read a selection; its bases are read from the factor directory when they are used.

    Raises:
        FileNotFoundError: it is no selection, or the factor directory is gone.
        ValueError: it is damaged, or the factor directory is not the one it was made from.
    """
    directory = Path(directory).absolute()
    path = directory / "selection.json"
    if not path.is_file():
        raise FileNotFoundError(f"selection: expected a directory with selection.json, got {directory}")
    try:
        content = json.loads(path.read_text())
        if content["format"] != FORMAT:
            raise ValueError(f"selection: expected format {FORMAT}, got {content['format']} in {path}")
        factors = Factors.load(directory / content["factors"]["path"])
        if factors.identity != content["factors"]["sha256"]:
            raise ValueError(
                f"selection: {factors.directory} is not the factor directory it was made from; run rank again"
            )
        criterion = content["recipe"]["criterion"]
        with safe_open(directory / "selection.safetensors", framework="pt") as stored:
            keys = set(stored.keys())
            targets = {
                name: _target(
                    name,
                    entry,
                    {key: stored.get_tensor(key) for key in keys if key.endswith(f"/{name}")},
                    factors,
                    criterion,
                )
                for name, entry in content["targets"].items()
            }
        return Selection(targets, content["recipe"])
    except (json.JSONDecodeError, KeyError, TypeError, SafetensorError) as error:
        raise ValueError(f"selection: {directory} is damaged ({error!r}); run rank again") from error


def _target(
    name: str, entry: dict[str, Any], tensors: dict[str, Tensor], factors: Factors, criterion: str
) -> TargetSelection:
    def bases(weight: Tensor) -> tuple[Basis, Basis]:
        if criterion not in BASES:
            return singular_bases(weight)
        output, inputs = BASES[criterion]
        return factors.basis(output, name), factors.basis(inputs, name)

    def tensor(part: str) -> Tensor | None:
        return tensors.get(f"{part}/{name}")

    rows, columns = entry["shape"]
    limits = tensor("limits")
    if limits is not None and (limits.shape != (rows,) or limits.dtype != torch.int32):
        raise ValueError(f"selection: the limits of {name!r} do not fit its shape {(rows, columns)}; run rank again")
    return TargetSelection(
        name=name,
        shape=(rows, columns),
        limits=limits,
        mask=tensor("mask"),
        threshold=entry["threshold"],
        kept=entry["kept"],
        mass=entry["mass"],
        weight_sha256=entry["weight_sha256"],
        weight_dtype=entry["weight_dtype"],
        values_out=tensor("values_out"),
        values_in=tensor("values_in"),
        bases=bases,
    )
