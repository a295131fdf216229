"""Finds the stored tensor of each target of a checkpoint, and refuses those that are shared.

A target's tensor has its name. Where transformers renames weights while loading them, it is found
by its content instead, but never if what is found belongs to another module. An expert's matrix may
be part of a stored tensor, or be stored as two.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

from curvedit.editing.expert_places import Expert, Layers, by_layer, expert_of, find_expert
from curvedit.editing.fitted import FittedWeight, is_fitted, require_fitted
from curvedit.editing.place import Place
from curvedit.editing.stored import DTYPES, StoredTensor
from curvedit.models import parameter_names

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
    names, layers = parameter_names(directory), by_layer(stored)
    places: dict[str, Place] = {}
    owners: dict[str, str] = {}
    for name, target in targets.items():
        if names is not None:
            _require_untied(name, names)
        places[name] = _place(name, target, stored, names, layers)
        for key in places[name].keys:
            first = owners.setdefault(key, name)
            if first != name:
                raise ValueError(
                    f"model: the targets {first!r} and {name!r} are one tensor, {key!r}, so "
                    "editing one would change both; leave both out"
                )
    if names is None:
        _require_single_copies(places, stored)
    return places


def _require_untied(name: str, names: _Names) -> None:
    own = _own(name, names)
    others = names[own] - {own} if own else frozenset()
    if others:
        raise ValueError(
            f"model: {own!r} is tied to {min(others)!r}, so editing one would change both; "
            "untie them, or leave the target out"
        )


def _require_single_copies(places: Mapping[str, Place], stored: Mapping[str, StoredTensor]) -> None:
    """Refuse targets stored twice: without the model's class it is not known if they are tied."""
    for name, tensor in ((name, each) for name, place in places.items() for each in place.tensors):
        for other in stored.values():
            if other.key != tensor.key and tensor.is_copy_of(other):
                raise ValueError(
                    f"model: the weight of {name!r} is also stored as {other.key!r}, and "
                    "config.json names no class of transformers that says whether the two are "
                    "tied; leave the target out"
                )


def _place(
    name: str,
    target: FittedWeight,
    stored: Mapping[str, StoredTensor],
    names: _Names | None,
    layers: Layers,
) -> Place:
    """Find the stored tensor of a target by name, or else by content, and verify it."""
    expert = expert_of(name)
    if expert is not None and f"{name}.weight" not in stored and _is_fused(expert, stored, names):
        return find_expert(name, target, expert, layers)
    key = _match(f"{name}.weight", stored)
    if key is None:
        return _place_by_content(name, target, stored, names)
    tensor = stored[key]
    weight = tensor.read()
    if weight.shape == target.shape[::-1]:
        square = weight.shape[0] == weight.shape[1]
        if not square or (target.weight_sha256 and is_fitted(weight.T, target)):
            require_fitted(name, weight.T, target)
            return Place((tensor,), transposed=True)
    require_fitted(name, weight, target)
    return Place((tensor,))


def _place_by_content(
    name: str, target: FittedWeight, stored: Mapping[str, StoredTensor], names: _Names | None
) -> Place:
    found: list[tuple[StoredTensor, bool]] = []
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
    return Place((tensor,), transposed)


def _require_renamed(name: str, key: str, names: _Names | None) -> None:
    """Refuse a tensor found by content unless it can only be the target under another name."""
    own = None if names is None else _own(name, names)
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


def _is_fused(expert: Expert, stored: Mapping[str, StoredTensor], names: _Names | None) -> bool:
    """Whether the model, or a checkpoint of an unknown class, has a parameter of all experts."""
    if names is not None:
        return expert.fused in names or _match(expert.fused, names) is not None
    return expert.fused in stored and len(stored[expert.fused].shape) == 3


def _own(name: str, names: _Names) -> str | None:
    """Return the model's parameter that holds a target's weight, or None if there is none."""
    expert = expert_of(name)
    return _match(f"{name}.weight", names) or (_match(expert.fused, names) if expert else None)


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
