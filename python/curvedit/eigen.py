"""Eigendecomposition of a factor that refuses to return a bad basis.

The factor is symmetrised and scaled to unit size, decomposed, and the result is checked against
its defining equations: the residual ``|A V - V diag(w)| / |A|`` and the loss of orthogonality
``|V^T V - I|``, both as largest column norms. On a GPU float32 goes first, since float64 runs at
1/32 to 1/64 of its rate on consumer cards; float64 follows where float32 fails the checks or does
not converge. On a CPU float64 costs about twice as much and is used at once.
"""

import torch
from torch import Tensor

from curvedit.check import require_finite
from curvedit.selection import Basis

RESIDUAL_LIMIT = 1e-4  # of the stored float32 basis; a good one reaches 1e-6
ORTHOGONALITY_LIMIT = 1e-4


def decompose(
    name: str,
    factor: Tensor,  # (n, n), symmetric up to rounding
    *,
    attempts: tuple[torch.dtype, ...] | None = None,
) -> Basis:
    """Eigenvalues (float64, descending, clamped at 0) and eigenvectors (float32) of a factor.

    Args:
        name: The factor's name, for messages.
        factor: Positive semi-definite up to rounding.
        attempts: Working precisions in order; by default as the module says.

    Returns:
        The basis. Its certificate holds ``residual``, ``orthogonality``, ``rank``, ``smallest``
        (eigenvalue before clamping, over the largest) and ``precision``.

    Raises:
        ValueError: the factor is not finite.
        RuntimeError: no attempt satisfied the checks; the message has the figures.
    """
    require_finite(name, factor)
    if attempts is None:
        attempts = (torch.float64,) if factor.device.type == "cpu" else (torch.float32, torch.float64)
    scale = float(factor.diagonal().abs().max()) if factor.numel() else 0.0
    if scale == 0.0:
        identity = torch.eye(factor.shape[0], device=factor.device)
        return Basis(
            torch.zeros(factor.shape[0], dtype=torch.float64), identity, _certificate(0.0, 0.0, 0, 0.0, "exact")
        )
    failures = []
    for dtype in attempts:
        work = factor.to(dtype) / scale
        work = (work + work.mT) / 2
        try:
            values, vectors = torch.linalg.eigh(work)
        except RuntimeError as error:  # torch.linalg.LinAlgError: no convergence
            failures.append(f"{dtype}: {error}")
            continue
        vectors = vectors.flip(1).float()
        values = values.flip(0).double()
        residual, orthogonality = _check(work, values, vectors)
        if residual <= RESIDUAL_LIMIT and orthogonality <= ORTHOGONALITY_LIMIT:
            eps = torch.finfo(torch.float32).eps * factor.shape[0]
            rank = int((values > eps * values[0]).sum())
            smallest = float(values[-1] / values[0])
            certificate = _certificate(residual, orthogonality, rank, smallest, str(dtype).removeprefix("torch."))
            return Basis((values * scale).clamp(min=0).cpu(), vectors.contiguous(), certificate)
        failures.append(f"{dtype}: residual {residual:.1e}, orthogonality {orthogonality:.1e}")
    raise RuntimeError(
        f"{name}: no eigendecomposition within residual {RESIDUAL_LIMIT:.0e} and "
        f"orthogonality {ORTHOGONALITY_LIMIT:.0e}; {'; '.join(failures)}"
    )


def _check(work: Tensor, values: Tensor, vectors: Tensor) -> tuple[float, float]:
    """Largest column norm of ``A V - V diag(w)`` over ``|A|``, and of ``V^T V - I``."""
    basis = vectors.to(work.dtype)
    residual = torch.addmm(basis * values.to(work.dtype), work, basis, beta=-1)
    gram = basis.mT @ basis
    gram.diagonal().sub_(1)
    size = float(values.abs().max())
    return float(residual.norm(dim=0).max()) / size, float(gram.norm(dim=0).max())


def _certificate(
    residual: float, orthogonality: float, rank: int, smallest: float, precision: str
) -> dict[str, float | int | str]:
    return {
        "residual": residual,
        "orthogonality": orthogonality,
        "rank": rank,
        "smallest": smallest,
        "precision": precision,
    }


def singular_bases(
    weight: Tensor,  # (d_out, d_in)
) -> tuple[Basis, Basis]:
    """Left and right singular vectors of a weight, complete; values are squared singular values."""
    left, values, right = torch.linalg.svd(weight.double(), full_matrices=True)
    scores = values.square().cpu()
    return Basis(scores, left.float().contiguous()), Basis(scores, right.mT.float().contiguous())
