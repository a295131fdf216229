"""Eigendecomposition of a factor, with a check of its error; raises if that is too large.

A factor is symmetrised, scaled to unit size and decomposed in place. The float32 basis that is kept
is then checked against its defining equations: the residual ``|A V - V diag(w)| / |A|`` and the
loss of orthogonality ``|V^T V - I|``, each the largest column norm. Float32 is tried first: it has
the precision of the sums, and float64 takes two to three times as long on a CPU, on consumer GPUs
32 to 64 times. Float64 follows where float32 fails the checks or does not converge.

All eigenvectors are computed. LAPACK takes as long for the leading quarter alone, and subspace
iteration, though faster from n = 2048 on, reaches the same residual with vectors that are not in
the true leading subspace (benchmarks/bench_eigen.py).

Memory: besides the factor and the result, ``4 n^2`` bytes each, a working copy of ``4 n^2`` bytes
and LAPACK's workspace of ``8 n^2`` bytes, twice that in float64; never all at once.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from curvedit.checks import require_finite
from curvedit.factors.basis import Basis

RESIDUAL_LIMIT = 1e-4  # of the stored float32 basis; a good one reaches 1e-6
ORTHOGONALITY_LIMIT = 1e-4
NEGATIVE_LIMIT = 1e-3  # times the largest eigenvalue; rounding of float32 sums stays far below
LARGEST = 32766  # LAPACK counts its workspace, 2 n^2 + 6 n + 1 numbers, in 32 bits
_ATTEMPTS = (torch.float32, torch.float64)
_SMALL = 512  # largest size of which several are decomposed at a time
_GROUP = 1 << 26  # bytes of factors read at a time
_BATCH = 1 << 27  # bytes of factors, in float64, decomposed at a time
_STRIP = 512  # rows converted or checked at a time

_Name = TypeVar("_Name")


def decompose(
    name: str,
    factor: Tensor,  # (n, n), symmetric up to rounding
    *,
    attempts: Sequence[torch.dtype] | None = None,
) -> Basis:
    """Decompose a factor into eigenvalues (float64, descending) and eigenvectors (float32).

    Args:
        name: The factor's name, for messages.
        factor: Positive semi-definite up to rounding.
        attempts: Working precisions to try, in order; None for the module's default.

    Returns:
        The basis, with eigenvalues clamped at 0. Its certificate holds ``residual``,
        ``orthogonality``, ``rank``, ``smallest`` (the smallest eigenvalue before clamping, divided
        by the largest), ``condition`` (largest over smallest; None if the factor is singular in
        float32), ``precision`` and ``retried``.

    Raises:
        ValueError: the factor is not square, finite or positive semi-definite, or is too large for
            LAPACK's workspace.
        RuntimeError: no attempt passed the checks; the message gives the figures.
    """
    scale = _scale(name, factor)
    if scale == 0.0:
        return _zero(factor)
    failures: list[str] = []
    for dtype in _ATTEMPTS if attempts is None else attempts:
        work = _working_copy(factor, scale, dtype)
        values = torch.empty(len(work), dtype=dtype, device=work.device)
        try:
            torch.linalg.eigh(work, out=(values, work))
        except LinAlgError as error:  # no convergence
            failures.append(f"{dtype}: {error}")
            continue
        descending, vectors = values.flip(0).double().cpu(), _flipped(work)
        del work, values
        basis = _certified(name, factor, scale, descending, vectors, dtype, failures)
        if basis is not None:
            return basis
    raise RuntimeError(
        f"{name}: no eigendecomposition within residual {RESIDUAL_LIMIT:.0e} and "
        f"orthogonality {ORTHOGONALITY_LIMIT:.0e}; {'; '.join(failures)}"
    )


def groups(sizes: Mapping[_Name, int]) -> Iterator[list[_Name]]:
    """Yield names of equally large factors, in groups of up to 64 MiB, smallest sizes first.

    A factor of more than 512 dimensions is a group of its own.
    """
    by_size: dict[int, list[_Name]] = {}
    for name in sorted(sizes, key=lambda name: sizes[name]):
        by_size.setdefault(sizes[name], []).append(name)
    for size, names in by_size.items():
        number = 1 if size > _SMALL else max(1, _GROUP // (4 * size * size))
        for start in range(0, len(names), number):
            yield names[start : start + number]


def decompose_several(
    names: Sequence[str],
    factors: Sequence[Tensor],  # each (n, n), the same n
    *,
    attempts: Sequence[torch.dtype] | None = None,
) -> Iterator[Basis]:
    """Decompose factors of one size, each as :func:`decompose` does.

    Small ones are decomposed together, up to 128 MiB per call; one that fails is retried alone.
    """
    size = len(factors[0])
    if size > _SMALL:
        for name, factor in zip(names, factors, strict=True):
            yield decompose(name, factor, attempts=attempts)
        return
    number = max(1, _BATCH // max(1, 8 * size**2))
    for start in range(0, len(factors), number):
        yield from _together(
            names[start : start + number], factors[start : start + number], attempts
        )


def _together(
    names: Sequence[str], factors: Sequence[Tensor], attempts: Sequence[torch.dtype] | None
) -> list[Basis]:
    dtype, *_ = _ATTEMPTS if attempts is None else attempts
    scales = [_scale(name, factor) for name, factor in zip(names, factors, strict=True)]
    copies = [
        _working_copy(factor, scale or 1.0, dtype)
        for factor, scale in zip(factors, scales, strict=True)
    ]
    try:
        values, vectors = torch.linalg.eigh(torch.stack(copies))
    except LinAlgError:
        return [
            decompose(name, factor, attempts=attempts)
            for name, factor in zip(names, factors, strict=True)
        ]
    del copies
    bases = []
    for name, factor, scale, its, columns in zip(
        names, factors, scales, values, vectors, strict=True
    ):
        basis = _zero(factor)
        if scale:
            found = _certified(
                name, factor, scale, its.flip(0).double().cpu(), _flipped(columns), dtype, []
            )
            basis = decompose(name, factor, attempts=attempts) if found is None else found
        bases.append(basis)
    return bases


def _scale(name: str, factor: Tensor) -> float:
    """Return the largest magnitude in the factor, after checking it."""
    if factor.ndim != 2 or factor.shape[0] != factor.shape[1]:
        raise ValueError(f"{name}: expected a square matrix, got shape {tuple(factor.shape)}")
    if len(factor) > LARGEST:  # checked first, because the other checks would take long
        raise ValueError(
            f"{name}: expected at most {LARGEST} dimensions, because LAPACK counts its workspace "
            f"of 2 n^2 numbers in 32 bits, got {len(factor)}; leave this target out"
        )
    require_finite(name, factor)
    if not factor.numel():
        return 0.0
    low, high = factor.aminmax()
    return max(-float(low), float(high))


def _zero(factor: Tensor) -> Basis:
    size = len(factor)
    identity = torch.eye(size, device=factor.device)
    facts = {"residual": 0.0, "orthogonality": 0.0, "rank": 0, "smallest": 0.0, "condition": None}
    return Basis(
        torch.zeros(size, dtype=torch.float64),
        identity,
        {**facts, "precision": "exact", "retried": False},
    )


def _working_copy(factor: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """Return the symmetric part divided by the scale, in LAPACK's column-major order."""
    work = torch.empty(factor.shape, dtype=dtype, device=factor.device).mT
    for rows in _strips(len(factor)):
        work[:, rows] = _symmetric(factor, rows, scale).mT
    return work


def _symmetric(factor: Tensor, rows: slice, scale: float) -> Tensor:
    """Return rows of the scaled symmetric part, float64; dividing first avoids overflow."""
    return factor[rows].double().div_(2 * scale).add_(factor[:, rows].mT.double().div_(2 * scale))


def _flipped(vectors: Tensor) -> Tensor:
    """Return the eigenvectors in float32, largest eigenvalue first."""
    size = len(vectors)
    flipped = torch.empty(size, size, device=vectors.device)
    for rows in _strips(size):
        flipped[rows] = vectors[rows].flip(1)
    return flipped


def _certified(
    name: str,
    factor: Tensor,
    scale: float,
    values: Tensor,  # (n,) float64, descending, of the scaled factor
    vectors: Tensor,  # (n, n) float32
    dtype: torch.dtype,
    failures: list[str],
) -> Basis | None:
    """Return the basis with its certificate, or None after adding the reason to ``failures``.

    Raises:
        ValueError: the factor has an eigenvalue that is more negative than rounding explains.
    """
    residual, orthogonality = _check(factor, scale, values, vectors, dtype)
    if not (residual <= RESIDUAL_LIMIT and orthogonality <= ORTHOGONALITY_LIMIT):
        failures.append(f"{dtype}: residual {residual:.1e}, orthogonality {orthogonality:.1e}")
        return None
    largest, smallest = float(values[0]), float(values[-1])
    if smallest < -NEGATIVE_LIMIT * max(largest, -smallest):
        raise ValueError(
            f"{name}: expected a positive semi-definite matrix, got eigenvalues from "
            f"{smallest * scale:.2e} to {largest * scale:.2e}"
        )
    # rounding error of float32 sums
    least = torch.finfo(torch.float32).eps * math.sqrt(len(values)) * largest
    certificate: dict[str, Any] = {
        "residual": residual,
        "orthogonality": orthogonality,
        "rank": int((values > least).sum()),
        "smallest": smallest / largest,
        "condition": largest / smallest if smallest > least else None,
        "precision": str(dtype).removeprefix("torch."),
        "retried": bool(failures),
    }
    return Basis((values * scale).clamp(min=0), vectors, certificate)


def _check(
    factor: Tensor, scale: float, values: Tensor, vectors: Tensor, dtype: torch.dtype
) -> tuple[float, float]:
    """Return the largest column norms of ``A V - V diag(w)``, over ``|A|``, and of ``V^T V - I``.

    Works on strips of rows, to bound memory.
    """
    size, device = len(vectors), vectors.device
    weights = values.to(device, dtype)
    residuals = torch.zeros(size, dtype=dtype, device=device)
    products = torch.zeros(size, dtype=dtype, device=device)
    for columns in _strips(size):
        block = vectors[:, columns].to(dtype)
        gram = torch.zeros(size, block.shape[1], dtype=dtype, device=device)
        for rows in _strips(size):
            part = vectors[rows].to(dtype)
            gram.addmm_(part.mT, block[rows])
            off = torch.addmm(
                block[rows] * weights[columns],
                _symmetric(factor, rows, scale).to(dtype),
                block,
                beta=-1,
            )
            residuals[columns] += off.square().sum(0)
        gram[columns].diagonal().sub_(1)
        products[columns] = gram.square().sum(0)
    norm = float(values.abs().max())
    return float(residuals.max().sqrt()) / norm, float(products.max().sqrt())


def _strips(size: int) -> Iterator[slice]:
    for start in range(0, size, _STRIP):
        yield slice(start, start + _STRIP)


def singular_bases(
    weight: Tensor,  # (d_out, d_in)
) -> tuple[Basis, Basis]:
    """Return the complete left and right singular bases of a weight; values are squared."""
    left, values, right = torch.linalg.svd(weight.double(), full_matrices=True)
    scores = values.square().cpu()
    return Basis(scores, left.float().contiguous()), Basis(scores, right.mT.float().contiguous())
