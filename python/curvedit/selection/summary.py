"""What a report says of each edited weight: share kept, threshold, staircase and spectra."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from curvedit.selection.value import Selection, TargetSelection

_POINTS = 256  # of a polyline, at most


class Edited(Protocol):
    """What ``project`` says of one weight, as the values of ``Edit.targets`` do."""

    @property
    def change(self) -> float:
        """Relative change of the weight, Frobenius."""

    @property
    def backend(self) -> str:
        """What computed it."""

    @property
    def sha256_after(self) -> str:
        """Of the edited weight."""


@dataclass(frozen=True)
class TargetSummary:
    """One edited weight ``(d_out, d_in)``; polylines are thinned to 256 points ``(index, value)``."""

    name: str
    shape: tuple[int, int] | None  # None where only a checkpoint's record is known
    kept_share: float  # of components
    mass: float  # share of the total score
    threshold: float | None  # smallest kept score
    limits: tuple[tuple[int, int], ...] = ()  # the staircase; empty for a selection without one
    values_out: tuple[tuple[int, float], ...] = ()  # eigenvalues of G; empty where unknown
    values_in: tuple[tuple[int, float], ...] = ()  # eigenvalues of A
    weight_sha256: str = ""
    change: float | None = None  # |W' - W| / |W|; None where not recorded
    backend: str = ""
    sha256_after: str = ""

    def to_json(self) -> dict[str, Any]:
        """The summary as in ``report.json``; empty fields are left out, and ``kept`` is the share."""
        values = {key: value for key, value in asdict(self).items() if value not in (None, "", ())}
        return {_SPELLED.get(key, key): value for key, value in values.items()}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "TargetSummary":
        """The inverse of :meth:`to_json`."""
        values = {
            name: document[key] for name in _FIELDS if (key := _SPELLED.get(name, name)) in document
        }
        for key in {"limits", "values_out", "values_in"} & set(values):
            values[key] = tuple((int(index), value) for index, value in document[key])
        rows, columns = document.get("shape") or (None, None)
        shape = None if rows is None or columns is None else (int(rows), int(columns))
        return cls(**{"threshold": None, **values, "shape": shape})


_SPELLED = {"kept_share": "kept"}  # fields whose key in a file is another
_FIELDS = [field.name for field in fields(TargetSummary)]


def summarise_selection(
    selection: Selection, edited: Mapping[str, Edited] | None = None
) -> tuple[TargetSummary, ...]:
    """One summary per target, in the selection's order.

    Args:
        selection: What ``rank`` returned.
        edited: What ``project`` returned per target, ``Edit.targets``; adds change and hashes.
    """
    return tuple(_summary(target, (edited or {}).get(name)) for name, target in selection.items())


def _summary(target: TargetSelection, edited: Edited | None) -> TargetSummary:
    return TargetSummary(
        name=target.name,
        shape=target.shape,
        kept_share=target.kept_share,
        mass=float(target.mass),
        threshold=float(target.threshold) if math.isfinite(target.threshold) else None,
        limits=() if target.limits is None else _corners(target.limits.cpu().numpy()),
        values_out=_thinned(target.values_out),
        values_in=_thinned(target.values_in),
        weight_sha256=target.weight_sha256,
        change=None if edited is None else edited.change,
        backend="" if edited is None else edited.backend,
        sha256_after="" if edited is None else edited.sha256_after,
    )


def _indices(length: int) -> npt.NDArray[np.int64]:
    """At most 256 indices from 0 to ``length - 1``, dense at the start as a logarithmic axis is."""
    if length <= _POINTS:
        return np.arange(length)
    half = _POINTS // 2
    spread = np.concatenate([np.geomspace(1, length, half), np.linspace(1, length, half)])
    return np.unique(spread.round().astype(np.int64)) - 1


def _thinned(values: Tensor | None) -> tuple[tuple[int, float], ...]:
    if values is None:
        return ()
    array = values.double().cpu().numpy()
    return tuple((int(index), float(f"{array[index]:.6g}")) for index in _indices(len(array)))


def _corners(limits: npt.NDArray[np.int32]) -> tuple[tuple[int, int], ...]:
    """The rows at which the staircase steps, thinned where there are many; always first and last."""
    rows = np.flatnonzero(np.diff(limits, prepend=limits[0] + 1))
    if len(rows) >= _POINTS:
        rows = _indices(len(limits))
    return tuple((int(row), int(limits[row])) for row in np.union1d(rows, len(limits) - 1))
