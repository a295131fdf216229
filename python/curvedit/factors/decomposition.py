"""Eigendecomposition of factors that refuses to return a bad basis.

A factor is symmetrised and scaled to unit size, decomposed in place, and the result is checked
against its defining equations: the residual ``|A V - V diag(w)| / |A|`` and the loss of
orthogonality ``|V^T V - I|``, both as largest column norms of the float32 basis that is kept. On a
GPU float32 goes first, since float64 runs at 1/32 to 1/64 of its rate on consumer cards; float64
follows where float32 fails the checks or does not converge. On a CPU float64 costs about twice as
much and is used at once. All eigenvectors are computed: the leading quarter alone takes LAPACK as
long, and subspace iteration, faster from n = 2048 on, meets the same residual with vectors that
leave the true leading subspace (benchmarks/bench_eigen.py).

Memory: beside factor ``4 n^2`` bytes and result ``4 n^2``, one working copy and LAPACK's workspace,
``8 n^2`` and ``16 n^2`` bytes in float64, half of that in float32; never all at once.
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
NEGATIVE_LIMIT = 1e-3  # of the largest eigenvalue: rounding of float32 sums stays far below
LARGEST = 32766  # the workspace, 2 n^2 + 6 n + 1 numbers, must be countable in 32 bits
_SMALL = 512  # sizes up to here are decomposed several at a time
_GROUP = 1 << 26  # bytes of factors that are read at a time
_BATCH = 1 << 27  # bytes of them in float64
_STRIP = 512  # rows that are converted or checked at a time

_Name = TypeVar("_Name")


def decompose(
    name: str,
    factor: Tensor,  # (n, n), symmetric up to rounding
    *,
    attempts: Sequence[torch.dtype] | None = None,
) -> Basis:
    """Eigenvalues (float64, descending, clamped at 0) and eigenvectors (float32) of a factor.

    Args:
        name: The factor's name, for messages.
        factor: Positive semi-definite up to rounding.
        attempts: Working precisions in order; by default as the module says.

    Returns:
        The basis. Its certificate holds ``residual``, ``orthogonality``, ``rank``, ``smallest``
        (eigenvalue before clamping, over the largest), ``condition`` (largest over smallest; None
        where the factor is singular in float32), ``precision`` and ``retried``.

    Raises:
        ValueError: the factor is not square, not finite, not positive semi-definite, or larger than
            the workspace of LAPACK can be.
        RuntimeError: no attempt satisfied the checks; the message has the figures.
    """
    scale = _scale(name, factor)
    if scale == 0.0:
        return _zero(factor)
    wanted = _attempts(factor.device) if attempts is None else attempts
    failures: list[str] = []
    for dtype in wanted:
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
    """Names of factors of one size, as many at a time as make 64 MiB, large ones alone; small sizes first."""
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
    """As :func:`decompose` for each; of small ones as many as fit 128 MiB in one call, a failed one alone again."""
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
    dtype, *_ = _attempts(factors[0].device) if attempts is None else attempts
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


def _attempts(device: torch.device) -> tuple[torch.dtype, ...]:
    return (torch.float64,) if device.type == "cpu" else (torch.float32, torch.float64)


def _scale(name: str, factor: Tensor) -> float:
    """Largest magnitude in the factor."""
    if factor.ndim != 2 or factor.shape[0] != factor.shape[1]:
        raise ValueError(f"{name}: expected a square matrix, got shape {tuple(factor.shape)}")
    if len(factor) > LARGEST:  # asked first: the other checks would take long
        raise ValueError(
            f"{name}: expected at most {LARGEST} dimensions, since LAPACK counts its workspace of 2 n^2 numbers in 32 "
            f"bits, got {len(factor)}; leave this target out"
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
    """Half the sum with the transpose, over the scale, column by column as LAPACK wants it."""
    work = torch.empty(factor.shape, dtype=dtype, device=factor.device).mT
    for rows in _strips(len(factor)):
        work[:, rows] = _symmetric(factor, rows, scale).mT
    return work


def _symmetric(factor: Tensor, rows: slice, scale: float) -> Tensor:
    """Some rows in float64; divided before they are added, so that nothing overflows or is lost."""
    return factor[rows].double().div_(2 * scale).add_(factor[:, rows].mT.double().div_(2 * scale))


def _flipped(vectors: Tensor) -> Tensor:
    """Eigenvectors in float32, those of the largest eigenvalues first."""
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
    """The basis with its certificate, or None, and why among the failures.

    Raises:
        ValueError: the factor has a negative eigenvalue beyond rounding.
    """
    residual, orthogonality = _check(factor, scale, values, vectors, dtype)
    if not (residual <= RESIDUAL_LIMIT and orthogonality <= ORTHOGONALITY_LIMIT):
        failures.append(f"{dtype}: residual {residual:.1e}, orthogonality {orthogonality:.1e}")
        return None
    largest, smallest = float(values[0]), float(values[-1])
    if smallest < -NEGATIVE_LIMIT * max(largest, -smallest):
        raise ValueError(
            f"{name}: expected a positive semi-definite matrix, got eigenvalues from {smallest * scale:.2e} to "
            f"{largest * scale:.2e}"
        )
    least = (
        torch.finfo(torch.float32).eps * math.sqrt(len(values)) * largest
    )  # rounding of float32 sums
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
    """Largest column norm of ``A V - V diag(w)`` over ``|A|``, and of ``V^T V - I``, a strip of rows at a time."""
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
    """Left and right singular vectors of a weight, complete; values are squared singular values."""
    left, values, right = torch.linalg.svd(weight.double(), full_matrices=True)
    scores = values.square().cpu()
    return Basis(scores, left.float().contiguous()), Basis(scores, right.mT.float().contiguous())
