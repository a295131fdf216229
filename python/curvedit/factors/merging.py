"""What factors of different data must have in common to be added up, and what comes of it."""

import functools
import itertools
import operator
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from curvedit.data import RowSketch

if TYPE_CHECKING:
    from curvedit.factors.value import Factors

_OVERLAP = 0.01  # share of the samples from which on parts are not disjoint


def require_alike(first: "Factors", other: "Factors") -> None:
    """Refuse parts that are not of the same model, targets and kind.

    Raises:
        ValueError: the message names what differs.
    """
    for name in sorted({*first.targets, *other.targets}):
        if name not in first.targets or name not in other.targets:
            raise ValueError(f"merge: target {name!r} is in only one part")
        ours, theirs = (replace(part.targets[name], tokens=0).to_json() for part in (first, other))
        if ours != theirs:
            raise ValueError(f"merge: target {name!r} differs: {ours} and {theirs}")
    if first.keys_of_sums() != other.keys_of_sums():
        raise ValueError("merge: the parts hold different kinds of factors")
    for field in ("labels", "task"):
        one, two = first.provenance.get(field), other.provenance.get(field)
        if one != two:
            raise ValueError(f"merge: {field} differs: {one!r} and {two!r}")


def require_disjoint(provenances: Sequence[Mapping[str, Any]]) -> None:
    """Refuse parts that were fitted on the same data, as far as their manifests show.

    Raises:
        ValueError: they were.
    """
    sketches = [RowSketch.from_json(each.get("rows")) for each in provenances]
    for (first, one), (second, other) in itertools.combinations(enumerate(sketches, 1), 2):
        share = one.overlap(other) if one is not None and other is not None else 0.0
        if share > _OVERLAP:
            raise ValueError(
                f"merge: expected factors of disjoint data, got parts {first} and {second}, about "
                f"{share:.0%} of whose samples are the same; they would count twice"
            )


def merged_provenance(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The first part's, with the data, counts and costs of all."""
    found = {**parts[0], "data": [part.get("data") for part in parts], "merged": len(parts)}
    for key in ("samples", "positions", "loss_terms", "seconds"):
        if all(key in part for part in parts):
            found[key] = sum(part[key] for part in parts)
    if all("peak_memory_bytes" in part for part in parts):
        found["peak_memory_bytes"] = max(part["peak_memory_bytes"] for part in parts)
    sketches = [RowSketch.from_json(part.get("rows")) for part in parts]
    known = [each for each in sketches if each is not None]
    if len(known) == len(parts):
        found["rows"] = functools.reduce(operator.add, known).to_json()
    return found
