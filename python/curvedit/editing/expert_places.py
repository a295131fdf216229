"""Finds where an expert's matrix is stored that the model fuses while it is loaded.

Checkpoints hold each expert's matrices under names of their own, and the gate and the up projection
as two. They are told by their content, among the tensors of the same layer and expert.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from curvedit.editing.fitted import FittedWeight, is_fitted, require_fitted
from curvedit.editing.place import Place
from curvedit.editing.stored import DTYPES, StoredTensor

_EXPERT = re.compile(r"(.*)\.(\d+)\.(gate_up_proj|up_proj|down_proj)")
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
Layers = Mapping[tuple[str, ...], Sequence[StoredTensor]]


@dataclass(frozen=True)
class Expert:
    """A matrix of a fused parameter."""

    fused: str  # name of the parameter
    number: int


def expert_of(name: str) -> Expert | None:
    """The expert's matrix that a target's name may stand for; None if it cannot."""
    found = _EXPERT.fullmatch(name)
    return None if found is None else Expert(f"{found[1]}.{found[3]}", int(found[2]))


def by_layer(stored: Mapping[str, StoredTensor]) -> Layers:
    """Stored tensors by the numbers in their names: those of a layer, or of one of its experts."""
    found: dict[tuple[str, ...], list[StoredTensor]] = {}
    for key, tensor in stored.items():
        found.setdefault(tuple(_NUMBER.findall(key)), []).append(tensor)
    return found


def find_expert(name: str, target: FittedWeight, expert: Expert, layers: Layers) -> Place:
    """Find the one tensor, the part of one, or the two that hold an expert's matrix.

    Raises:
        ValueError: there are none, or the factors do not know the weight's content.
    """
    numbers = tuple(_NUMBER.findall(name))
    near = [
        *(each for each in layers.get(numbers, ()) if len(each.shape) == 2),
        *(
            each.matrix(expert.number)
            for each in layers.get(numbers[:-1], ())
            if len(each.shape) == 3 and expert.number < each.shape[0]
        ),
    ]
    near = [each for each in near if each.dtype in DTYPES]
    candidates = [
        *(Place((each,)) for each in near if each.shape == target.shape),
        *(Place((each,), transposed=True) for each in near if each.shape == target.shape[::-1]),
        *(Place(pair) for pair in itertools.permutations(near, 2) if _stacked(pair, target.shape)),
    ]
    found = [
        place for place in candidates if target.weight_sha256 and is_fitted(place.read(), target)
    ]
    if len(found) != 1:
        got = [place.keys for place in found] or f"none among {[each.key for each in near]}"
        raise ValueError(
            f"model: expected the matrix of expert {expert.number} that the model loads into "
            f"{expert.fused!r} in one tensor or two, got {got}"
        )
    require_fitted(name, found[0].read(), target)
    return found[0]


def _stacked(pair: tuple[StoredTensor, StoredTensor], shape: tuple[int, int]) -> bool:
    """Whether two matrices, one above the other, have a shape."""
    first, second = (each.shape for each in pair)
    return (first[0] + second[0], first[1]) == shape and first[1] == second[1]
