"""Selection, the value that ``rank`` returns and ``project`` takes: which components are kept."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from curvedit.factors import Basis, Factors, singular_bases
from curvedit.selection.consistency import first_fault
from curvedit.selection.directory import (
    StoredSelection,
    read_directory,
    reporting_damage,
    write_directory,
)

# Kinds of the output and input factor, ("G", "A"), in whose bases components are selected.
Kinds = tuple[str, str]
_FACTS = ("threshold", "kept", "mass", "weight_sha256", "weight_dtype")
_PARTS = ("limits", "mask", "values_out", "values_in")


@dataclass(frozen=True, eq=False)
class TargetSelection:
    """The kept components of one linear map ``W (d_out, d_in)``.

    Component ``(i, j)`` is the weight's coefficient on output eigenvector ``i`` and input
    eigenvector ``j``. Either ``limits`` holds a staircase (output eigenvector ``i`` keeps input
    eigenvectors ``0 … limits[i] - 1``, non-increasing in ``i``), or ``mask`` a packed bit mask.
    """

    name: str
    shape: tuple[int, int]  # (d_out, d_in)
    limits: Tensor | None  # (d_out,) int32
    mask: Tensor | None  # (d_out, ceil(d_in / 8)) uint8, as numpy.packbits packs rows
    threshold: float  # the smallest kept score; a curvature for the criterion "curvature"
    kept: int  # number of kept components
    mass: float  # share of the total score that is actually kept
    weight_sha256: str  # hash of the weight the factors were fitted on
    weight_dtype: str  # that weight's dtype, such as "torch.bfloat16"
    # Eigenvalues (d_out,) and (d_in,) float64; None if the scores are not their products.
    values_out: Tensor | None = field(repr=False)
    values_in: Tensor | None = field(repr=False)

    def __eq__(self, other: object) -> bool:
        """Whether both keep the same components of the same weight."""
        if not isinstance(other, TargetSelection):
            return NotImplemented
        return self._facts() == other._facts() and all(
            one is two if one is None or two is None else torch.equal(one, two)
            for one, two in ((self.limits, other.limits), (self.mask, other.mask))
        )

    def __hash__(self) -> int:
        """Hash what :meth:`__eq__` compares, except the components themselves."""
        return hash(self._facts())

    def _facts(self) -> tuple[Any, ...]:
        return self.name, self.shape, *(getattr(self, fact) for fact in _FACTS)

    @property
    def keeps_all(self) -> bool:
        """Whether every component is kept, so that the weight stays unchanged."""
        return self.kept == self.shape[0] * self.shape[1]

    @property
    def kept_share(self) -> float:
        """Share of the components that are kept."""
        return self.kept / (self.shape[0] * self.shape[1])

    def dense_mask(self) -> Tensor:
        """Return the kept components as a bool tensor ``(d_out, d_in)``, for small matrices.

        Raises:
            ValueError: there are neither limits nor a mask.
        """
        rows, columns = self.shape
        if self.limits is not None:
            return torch.arange(columns)[None, :] < self.limits.cpu()[:, None]
        if self.mask is None:
            raise ValueError(f"selection of {self.name}: expected limits or a mask, got neither")
        shifts = torch.arange(7, -1, -1, dtype=torch.uint8)
        return ((self.mask.cpu()[:, :, None] >> shifts) & 1).reshape(rows, -1)[:, :columns].bool()

    def to_json(self) -> dict[str, Any]:
        """Return everything but the tensors, as in ``selection.json``."""
        return {"shape": self.shape, **{fact: getattr(self, fact) for fact in _FACTS}}

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that are present, by field name."""
        return {part: value for part in _PARTS if (value := getattr(self, part)) is not None}

    @classmethod
    def from_json(
        cls, name: str, entry: Mapping[str, Any], tensors: Mapping[str, Tensor]
    ) -> "TargetSelection":
        """Invert :meth:`to_json` and :meth:`tensors`.

        Raises:
            KeyError: an entry is missing.
            ValueError: the entry and the tensors do not agree with each other.
        """
        rows, columns = entry["shape"]
        found = cls(
            name=name,
            shape=(rows, columns),
            limits=tensors.get("limits"),
            mask=tensors.get("mask"),
            threshold=entry["threshold"],
            kept=entry["kept"],
            mass=entry["mass"],
            weight_sha256=entry["weight_sha256"],
            weight_dtype=entry["weight_dtype"],
            values_out=tensors.get("values_out"),
            values_in=tensors.get("values_in"),
        )
        wrong = first_fault(
            found.shape,
            found.kept,
            found.limits,
            found.mask,
            (found.values_out, found.values_in),
            (found.threshold, found.mass),
        )
        if wrong:
            raise ValueError(f"selection: {name!r}: {wrong}; run rank again")
        return found


@dataclass(frozen=True)
class Selection(Mapping[str, TargetSelection]):
    """The kept components of every target, how they were chosen, and the factors behind them.

    The factors provide the bases that the components refer to.
    """

    targets: dict[str, TargetSelection]
    recipe: Mapping[str, Any]  # criterion, keep_mass, scope, seed, and the factors' origin
    factors: Factors | None = field(default=None, repr=False, compare=False)
    kinds: Kinds | None = None  # None for components in the weight's own singular vectors

    def __getitem__(self, name: str) -> TargetSelection:
        """Return the selection of one target."""
        if name not in self.targets:
            raise KeyError(
                f"target {name!r} is not in the selection, which contains {sorted(self.targets)}"
            )
        return self.targets[name]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the target names."""
        return iter(self.targets)

    def __len__(self) -> int:
        """Number of targets."""
        return len(self.targets)

    def bases(self, name: str, weight: Tensor) -> tuple[Basis, Basis]:
        """Return the output and input bases of one target's components.

        Args:
            name: The target.
            weight: ``(d_out, d_in)``; only read if the bases are its own singular vectors.

        Raises:
            KeyError: the target is not in the selection.
            ValueError: the selection has no factors, or their bases are not those it was made from.
        """
        if self.kinds is None:
            return singular_bases(weight)
        if self.factors is None:
            raise ValueError("selection: expected a selection with its factors, got one without")
        target = self[name]
        out, inputs = (self.factors.basis(kind, name) for kind in self.kinds)
        for side, basis, values in (
            ("output", out, target.values_out),
            ("input", inputs, target.values_in),
        ):
            if values is not None and not torch.equal(values, basis.values):
                raise ValueError(
                    f"selection of {name}: the {side} basis is not the one it was made from "
                    "(it belongs to another factor, or was recomputed); run rank again"
                )
        return out, inputs

    def save(self, directory: str | Path) -> Path:
        """Write the selection to a new directory, with a reference to its factor directory.

        Returns:
            The directory, as an absolute path.

        Raises:
            ValueError: the factors were never saved, or the selection has none.
            FileExistsError: the directory is not empty.
            OSError: it cannot be written; nothing is left behind.
        """
        if self.factors is None:
            raise ValueError("selection: expected a selection with its factors, got one without")
        entries = {
            name: {
                **target.to_json(),
                "certificates": {
                    kind: dict(self.factors.certificate(kind, name)) for kind in self.kinds or ()
                },
            }
            for name, target in self.items()
        }
        tensors = {
            f"{part}/{name}": value
            for name, target in self.items()
            for part, value in target.tensors().items()
        }
        directory = Path(directory).absolute()
        write_directory(directory, StoredSelection(self.recipe, entries, tensors, self.factors))
        return directory

    @classmethod
    def load(cls, directory: str | Path) -> "Selection":
        """Read a selection; bases are read from the factor directory when they are used.

        Raises:
            FileNotFoundError: it is not a selection directory, or the factor directory is missing.
            ValueError: it is damaged, or the factor directory is not the one it was made from.
        """
        directory = Path(directory).absolute()
        stored = read_directory(directory)
        with reporting_damage(directory):
            targets = {}
            for name, entry in stored.targets.items():
                tensors = {
                    part: stored.tensors[key]
                    for part in _PARTS
                    if (key := f"{part}/{name}") in stored.tensors
                }
                targets[name] = TargetSelection.from_json(name, entry, tensors)
            return cls(targets, stored.recipe, stored.factors, _kinds_of(stored))


def save_selection(selection: Selection, directory: str | Path, factors: Factors) -> Path:
    """Save a selection like ``selection.save(directory)``, but referring to these factors."""
    return replace(selection, factors=factors).save(directory)


def load_selection(directory: str | Path) -> Selection:
    """Load a selection; the same as ``Selection.load(directory)``."""
    return Selection.load(directory)


def _kinds_of(stored: StoredSelection) -> Kinds | None:
    """Return the kinds of factors that its certificates belong to; None if it has none."""
    for entry in stored.targets.values():
        if entry["certificates"]:
            output, inputs = entry["certificates"]
            return output, inputs
    return None
