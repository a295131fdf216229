"""Summarises a Selection for a report: kept share, staircase and spectra of each weight."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from curvedit.selection.value import Selection, TargetSelection

_POINTS = 256  # most points of a polyline


class Edited(Protocol):
    """What ``project`` records of one weight, such as a value of ``Edit.targets``."""

    @property
    def change(self) -> float:
        """Relative change of the weight, in the Frobenius norm."""

    @property
    def backend(self) -> str:
        """Backend that computed the edit."""

    @property
    def sha256_after(self) -> str:
        """Hash of the edited weight."""


@dataclass(frozen=True)
class TargetSummary:
    """One edited weight ``(d_out, d_in)``; polylines are thinned, and hold (index, value)."""

    name: str
    shape: tuple[int, int] | None  # None if only a checkpoint's record is known
    kept_share: float  # share of components kept
    mass: float  # kept share of the total score
    threshold: float | None  # smallest kept score; None if infinite
    limits: tuple[tuple[int, int], ...] = ()  # the staircase; empty if there is none
    values_out: tuple[tuple[int, float], ...] = ()  # eigenvalues of G; empty if unknown
    values_in: tuple[tuple[int, float], ...] = ()  # eigenvalues of A; empty if unknown
    weight_sha256: str = ""
    change: float | None = None  # |W' - W| / |W|; None if not recorded
    backend: str = ""
    sha256_after: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the entry for ``report.json``: empty fields left out, ``kept`` for the share."""
        values = {key: value for key, value in asdict(self).items() if value not in (None, "", ())}
        return {_SPELLED.get(key, key): value for key, value in values.items()}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "TargetSummary":
        """Invert :meth:`to_json`."""
        values = {
            name: document[key] for name in _FIELDS if (key := _SPELLED.get(name, name)) in document
        }
        for key in {"limits", "values_out", "values_in"} & set(values):
            values[key] = tuple((int(index), value) for index, value in document[key])
        rows, columns = document.get("shape") or (None, None)
        shape = None if rows is None or columns is None else (int(rows), int(columns))
        return cls(**{"threshold": None, **values, "shape": shape})


_SPELLED = {"kept_share": "kept"}  # fields whose key in a file differs
_FIELDS = [field.name for field in fields(TargetSummary)]


def summarise_selection(
    selection: Selection, edited: Mapping[str, Edited] | None = None, *, points: int = _POINTS
) -> tuple[TargetSummary, ...]:
    """Return one summary per target, in the selection's order.

    Args:
        selection: What ``rank`` returned.
        edited: ``Edit.targets`` as returned by ``project``; adds changes, backends and hashes.
        points: Most points of a polyline.
    """
    return tuple(
        _summary(target, (edited or {}).get(name), points) for name, target in selection.items()
    )


def _summary(target: TargetSelection, edited: Edited | None, points: int) -> TargetSummary:
    return TargetSummary(
        name=target.name,
        shape=target.shape,
        kept_share=target.kept_share,
        mass=float(target.mass),
        threshold=float(target.threshold) if math.isfinite(target.threshold) else None,
        limits=() if target.limits is None else _corners(target.limits.cpu().numpy(), points),
        values_out=_thinned(target.values_out, points),
        values_in=_thinned(target.values_in, points),
        weight_sha256=target.weight_sha256,
        change=None if edited is None else edited.change,
        backend="" if edited is None else edited.backend,
        sha256_after="" if edited is None else edited.sha256_after,
    )


def _indices(length: int, points: int) -> npt.NDArray[np.int64]:
    """Return about as many indices from 0 to ``length - 1``, denser at the start for log axes."""
    if length <= points:
        return np.arange(length)
    half = points // 2
    spread = np.concatenate([np.geomspace(1, length, half), np.linspace(1, length, half)])
    return np.unique(spread.round().astype(np.int64)) - 1


def _thinned(values: Tensor | None, points: int) -> tuple[tuple[int, float], ...]:
    if values is None:
        return ()
    array = values.double().cpu().numpy()
    return tuple(
        (int(index), float(f"{array[index]:.6g}")) for index in _indices(len(array), points)
    )


def _corners(limits: npt.NDArray[np.int32], points: int) -> tuple[tuple[int, int], ...]:
    """Return the rows where the staircase steps, thinned if many; always the first and last."""
    rows = np.flatnonzero(np.diff(limits, prepend=limits[0] + 1))
    if len(rows) >= points:
        rows = _indices(len(limits), points)
    return tuple((int(row), int(limits[row])) for row in np.union1d(rows, len(limits) - 1))
