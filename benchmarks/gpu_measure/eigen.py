"""``torch.linalg.eigh`` at the widths of LLMs, and the package's checked decomposition.

python benchmarks/gpu_measure/eigen.py --json FILE

The matrices have the spectrum 1/i. ``residual`` is |A V - V diag(l)| / |A| in the Frobenius norm,
``orthogonality`` the largest element of |V^T V - I|, both computed in float64. A size is skipped
where its time, extrapolated from a smaller one by the cube, exceeds what is left.
"""

import math
import sys
import time

import common
import torch
from staircase import orthogonal

from curvedit.factors import decompose

_SIZES = (4096, 11008, 14336)
_MARGIN = 1.3  # of the extrapolated time


def run(session):
    sizes = (64, 96) if session.dry else _SIZES
    dtypes = (torch.float32, torch.float64)
    torch.linalg.eigh(torch.eye(64, device=session.device))  # loads the library
    todo = {f"n={n} {str(kind)[6:]}": (n, kind) for n in sizes for kind in dtypes}
    todo |= {f"n={n} decompose": (n, None) for n in sizes}
    found, matrix = {}, None
    for name in session.cases(todo, 2):
        size, dtype = todo[name]
        known = found.get(dtype or torch.float32, [])
        expected = max(((size / other) ** 3 * taken for other, taken in known), default=0.5)
        if session.left() < _MARGIN * expected + 2:
            session.write("skipped", why=f"{expected:.1f} s expected", seconds=expected)
            session.show("eigh", f"skipped: {expected:.1f} s expected")
            continue
        if matrix is None or len(matrix) != size:
            matrix = None  # frees the other first
            matrix = _matrix(size, session.device)
        taken = session.attempt(
            "decompose" if dtype is None else "eigh",
            lambda matrix=matrix, dtype=dtype: _measure(session, matrix, dtype),
        )
        if taken and dtype:
            found.setdefault(dtype, []).append((size, taken))


def _matrix(size, device):
    basis = orthogonal(size, device).double()
    return (basis / torch.arange(1, size + 1, device=device)) @ basis.mT


def _measure(session, matrix, dtype):
    """Seconds of one call; two at the smallest size, whose second counts."""
    given = matrix.to(dtype or torch.float32)
    if not session.dry:
        torch.cuda.reset_peak_memory_stats()
    for turn in range(2 if len(matrix) <= _SIZES[0] else 1):
        session.wait()
        began = time.perf_counter()
        if dtype is None:
            basis = decompose("matrix", given)
            values, vectors = basis.values, basis.vectors
        else:
            values, vectors = torch.linalg.eigh(given)
        session.wait()
        taken = time.perf_counter() - began
        if not turn:
            session.write("first", candidate=session.candidate, seconds=round(taken, 4))
    peak = 0 if session.dry else torch.cuda.max_memory_allocated()
    v, values = vectors.to(matrix.device).double(), values.to(matrix.device).double()
    residual = float((matrix @ v - v * values).norm() / matrix.norm())
    gram = v.mT @ v
    gram.diagonal().sub_(1)
    exact = 1 / torch.arange(1, len(v) + 1, device=matrix.device, dtype=torch.float64)
    off = float((values.sort(descending=True).values - exact).abs().max())
    figures = {"residual": residual, "orthogonality": float(gram.abs().max()), "eigenvalues": off}
    figures = {key: float(f"{value:.3g}") for key, value in figures.items()}
    session.write(
        "row",
        candidate=session.candidate,
        seconds=round(taken, 4),
        peak_bytes=peak,
        **figures,
    )
    session.show(session.candidate, f"{taken:9.3f} s {figures}")
    return taken


if __name__ == "__main__":
    sys.exit(common.main(__doc__, run, seconds=30, stall=math.inf))
