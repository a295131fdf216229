"""Argument checks: each takes a name and a value and raises ``name: expected …, got …``."""

import math
import os
from pathlib import Path

import torch
from torch import Tensor


def require_shape(name: str, tensor: Tensor, expected: tuple[int | None, ...]) -> None:
    """Raise ``ValueError`` unless ``tensor`` has the expected shape; ``None`` matches any size."""
    got = tuple(tensor.shape)
    fits = len(got) == len(expected) and all(
        want is None or want == have for want, have in zip(expected, got, strict=True)
    )
    if not fits:
        spelled = ", ".join("*" if size is None else str(size) for size in expected)
        raise ValueError(f"{name}: expected shape ({spelled}), got {got}")


def require_dtype(name: str, tensor: Tensor, *allowed: torch.dtype) -> None:
    """Raise ``TypeError`` unless the tensor has one of the allowed dtypes."""
    if tensor.dtype not in allowed:
        raise TypeError(f"{name}: expected one of {list(allowed)}, got {tensor.dtype}")


def require_share(name: str, value: float) -> float:
    """Return ``value`` as a float; raise ``ValueError`` unless it lies in (0, 1]."""
    number = float(value)
    if not (math.isfinite(number) and 0.0 < number <= 1.0):
        raise ValueError(f"{name}: expected a number in (0, 1], got {value!r}")
    return number


def require_choice(name: str, value: str, choices: tuple[str, ...]) -> str:
    """Return ``value``; raise ``ValueError`` unless it is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{name}: expected one of {list(choices)}, got {value!r}")
    return value


def is_finite(tensor: Tensor) -> bool:
    """Whether the tensor is free of NaN and infinity, in one pass without a temporary."""
    return tensor.numel() == 0 or all(
        bool(bound.isfinite()) for bound in torch.aminmax(tensor.detach())
    )


def require_finite(name: str, tensor: Tensor) -> None:
    """Raise ``ValueError`` if the tensor holds NaN or infinity."""
    if not is_finite(tensor):
        bad = int((~torch.isfinite(tensor)).sum())
        raise ValueError(
            f"{name}: expected finite values, got {bad} NaN or infinite out of {tensor.numel()}"
        )


def require_new_directory(name: str, path: Path) -> Path:
    """Return ``path``; refuse it at once unless a new directory can be made there.

    Raises:
        FileExistsError: something is there already, other than an empty directory.
        NotADirectoryError: one of its parents is a file.
        PermissionError: its parent cannot be written.
    """
    wanted = f"{name}: expected a new or empty directory, got {path}"
    if path.is_symlink() and not path.exists():
        raise FileExistsError(
            f"{wanted}, a symlink to nothing; choose another path or remove the symlink"
        )
    if path.exists():
        if not path.is_dir() or any(path.iterdir()):
            raise FileExistsError(
                f"{wanted}, which already has content; choose another path or remove it"
            )
        if os.path.ismount(path):
            raise FileExistsError(
                f"{wanted}, a mount point, which cannot be replaced; choose a path inside it"
            )
    parent = next(place for place in Path(os.path.realpath(path)).parents if place.exists())
    if not parent.is_dir():
        raise NotADirectoryError(f"{wanted}, but {parent} is a file; choose another path")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise PermissionError(f"{wanted}, but {parent} cannot be written; choose another path")
    return path
