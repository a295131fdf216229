"""Finds the stored tensor of each target of a checkpoint, and refuses those that are shared.

A target's tensor has its name. Where transformers renames weights while loading them, it is found
by its content instead, but never if what is found belongs to another module.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

from curvedit.editing.fitted import FittedWeight, is_fitted, require_fitted
from curvedit.editing.stored import DTYPES, StoredTensor
from curvedit.models import parameter_names

Place = tuple[StoredTensor, bool]  # a stored tensor, and whether it holds the transpose
# For each parameter of the model, all names of it: several if it is tied.
_Names = Mapping[str, frozenset[str]]


def find_places(
    directory: Path, targets: Mapping[str, FittedWeight], stored: Mapping[str, StoredTensor]
) -> dict[str, Place]:
    """Find and verify the stored tensor of every target.

    Raises:
        ValueError: a target is missing, is not the fitted weight, is not finite, is tied to another
            parameter, or is one tensor with another target.
    """
    names = parameter_names(directory)
    places: dict[str, Place] = {}
    owners: dict[str, str] = {}
    for name, target in targets.items():
        if names is not None:
            _require_untied(name, names)
        places[name] = _place(name, target, stored, names)
        key = places[name][0].key
        first = owners.setdefault(key, name)
        if first != name:
            raise ValueError(
                f"model: the targets {first!r} and {name!r} are one tensor, {key!r}, so editing "
                "one would change both; leave both out"
            )
    if names is None:
        _require_single_copies(places, stored)
    return places


def _require_untied(name: str, names: _Names) -> None:
    own = _match(f"{name}.weight", names)
    others = names[own] - {own} if own else frozenset()
    if others:
        raise ValueError(
            f"model: {own!r} is tied to {min(others)!r}, so editing one would change both; "
            "untie them, or leave the target out"
        )


def _require_single_copies(places: Mapping[str, Place], stored: Mapping[str, StoredTensor]) -> None:
    """Refuse targets stored twice: without the model's class it is not known if they are tied."""
    for name, (tensor, _) in places.items():
        for other in stored.values():
            if other is not tensor and tensor.is_copy_of(other):
                raise ValueError(
                    f"model: the weight of {name!r} is also stored as {other.key!r}, and "
                    "config.json names no class of transformers that says whether the two are "
                    "tied; leave the target out"
                )


def _place(
    name: str, target: FittedWeight, stored: Mapping[str, StoredTensor], names: _Names | None
) -> Place:
    """Find the stored tensor of a target by name, or else by content, and verify it."""
    key = _match(f"{name}.weight", stored)
    if key is None:
        return _place_by_content(name, target, stored, names)
    tensor = stored[key]
    weight = tensor.read()
    if weight.shape == target.shape[::-1]:
        square = weight.shape[0] == weight.shape[1]
        if not square or (target.weight_sha256 and is_fitted(weight.T, target)):
            require_fitted(name, weight.T, target)
            return tensor, True
    require_fitted(name, weight, target)
    return tensor, False


def _place_by_content(
    name: str, target: FittedWeight, stored: Mapping[str, StoredTensor], names: _Names | None
) -> Place:
    found: list[Place] = []
    for tensor in stored.values():
        if (
            target.weight_sha256
            and tensor.dtype in DTYPES
            and sorted(tensor.shape) == sorted(target.shape)
        ):
            weight = tensor.read()
            found += [
                (tensor, transposed)
                for transposed in (False, True)
                if (weight.T if transposed else weight).shape == target.shape
                and is_fitted(weight.T if transposed else weight, target)
            ]
    if len(found) != 1:
        got = [tensor.key for tensor, _ in found] or f"none among keys such as {list(stored)[:3]}"
        raise ValueError(
            f"model: expected one tensor with the name or the content of the target {name!r}, "
            f"got {got}"
        )
    tensor, transposed = found[0]
    _require_renamed(name, tensor.key, names)
    require_fitted(name, tensor.read().T if transposed else tensor.read(), target)
    return found[0]


def _require_renamed(name: str, key: str, names: _Names | None) -> None:
    """Refuse a tensor found by content unless it can only be the target under another name."""
    own = None if names is None else _match(f"{name}.weight", names)
    if names is None or own is None:
        raise ValueError(
            f"model: expected a tensor named '{name}.weight', got its content as {key!r}, and no "
            "class of transformers in config.json that says whether the two are the same"
        )
    for other in _near(key, names):
        if other != own:
            raise ValueError(
                f"model: expected a tensor of its own for the target {name!r}, got its content as "
                f"that of {other!r}, so editing one would change both; leave the target out"
            )


def _match(key: str, names: Iterable[str]) -> str | None:
    """Return the one of some names that a key stands for, or None if there is not exactly one."""
    near = _near(key, names)
    return key if key in near else near[0] if len(near) == 1 else None


def _near(key: str, names: Iterable[str]) -> list[str]:
    """Return the names equal to a key up to a prefix of the base model, on either side."""
    return [
        name
        for name in names
        if name == key or name.endswith(f".{key}") or key.endswith(f".{name}")
    ]
