"""Which weight components are kept: the value that ``rank`` returns and ``project`` takes."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

# Kinds of the output and the input factor whose bases a criterion selects in; "svd" has its own.
BASES = {"curvature": ("G", "A"), "weighted": ("G_w", "A_w"), "ekfac": ("G", "A"), "random": ("G", "A")}


@dataclass(frozen=True)
class Basis:
    """Eigenvalues, descending and clamped at 0, and eigenvectors of a symmetric matrix.

    Shapes: ``values`` (n,) float64; ``vectors`` (n, n) float32, column ``k`` belongs to
    ``values[k]``. ``certificate`` records how well they satisfy the defining equations.
    """

    values: Tensor
    vectors: Tensor
    certificate: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TargetSelection:
    """The kept components of one linear map ``W (d_out, d_in)``.

    Component ``(i, j)`` is the weight's coefficient on output eigenvector ``i`` and input
    eigenvector ``j``. Either ``limits`` holds the staircase (output eigenvector ``i`` keeps input
    eigenvectors ``0 … limits[i] - 1``, non-increasing) or ``mask`` holds a packed bit mask.
    """

    name: str
    shape: tuple[int, int]  # (d_out, d_in)
    limits: Tensor | None  # (d_out,) int32
    mask: Tensor | None  # (d_out, ceil(d_in / 8)) uint8, as numpy.packbits packs rows
    threshold: float  # the smallest kept score; curvature units for "curvature"
    kept: int  # number of kept components
    mass: float  # share of the total score in fact kept
    weight_sha256: str  # of the weight the factors were fitted on
    weight_dtype: str  # its dtype, "torch.bfloat16"
    values_out: Tensor | None = field(repr=False, compare=False)  # (d_out,) float64 eigenvalues
    values_in: Tensor | None = field(repr=False, compare=False)  # (d_in,); both None for controls
    # the bases of the components; takes the (d_out, d_in) weight, which only "svd" reads
    bases: Callable[[Tensor], tuple[Basis, Basis]] = field(repr=False, compare=False)

    @property
    def keeps_all(self) -> bool:
        """Whether every component is kept, so that the weight stays as it is."""
        return self.kept == self.shape[0] * self.shape[1]

    def dense_mask(self) -> Tensor:
        """The kept components as a bool tensor ``(d_out, d_in)``; for tests and small matrices."""
        rows, columns = self.shape
        if self.limits is not None:
            return torch.arange(columns)[None, :] < self.limits.cpu()[:, None]
        if self.mask is None:
            raise ValueError(f"selection of {self.name}: expected limits or a mask, got neither")
        shifts = torch.arange(7, -1, -1, dtype=torch.uint8)
        return ((self.mask.cpu()[:, :, None] >> shifts) & 1).reshape(rows, -1)[:, :columns].bool()


@dataclass(frozen=True)
class Selection(Mapping[str, TargetSelection]):
    """The kept components of every target, and how they were chosen."""

    targets: dict[str, TargetSelection]
    recipe: Mapping[str, Any]  # criterion, keep_mass, scope, factors' identity

    def __getitem__(self, name: str) -> TargetSelection:
        """The selection of one target."""
        if name not in self.targets:
            raise KeyError(f"target {name!r} is not in the selection, which has {sorted(self.targets)}")
        return self.targets[name]

    def __iter__(self) -> Iterator[str]:
        """Target names."""
        return iter(self.targets)

    def __len__(self) -> int:
        """Number of targets."""
        return len(self.targets)
