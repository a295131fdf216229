"""Eigendecomposition of factors: ``decompose`` with its checks beside LAPACK and cheaper routes.

The cheaper routes find the leading quarter only: LAPACK's ``syevr`` for a range of indices, and
block subspace iteration, whose Gram products are the package's own symmetric ones.
"""

import functools

import pytest
import torch
from cases import normal
from interleave import extra_memory, interleaved, record
from scipy import linalg

from curvedit import ops
from curvedit.factors import decompose
from curvedit.ops import tiles

RESIDUAL_LIMIT = 1e-4  # what decompose refuses to exceed


@functools.cache
def factor(n):
    """A factor with the spectrum 1/i, roughly that of activations."""
    basis = torch.linalg.qr(normal(n, n).double()).Q
    return ((basis / torch.arange(1, n + 1)) @ basis.T).float()


def orthonormal(block):
    """Shifted Cholesky QR, twice (Fukaya et al. 2020, arXiv:1809.11085)."""
    width = block.shape[1]
    for _ in range(2):
        packed = tiles.zeros(width)
        ops.call("syrk_accumulate", packed, block)
        gram = tiles.unpack(packed, width)
        gram.diagonal().add_(1e-6 * float(gram.diagonal().max()))
        block = torch.linalg.solve_triangular(
            torch.linalg.cholesky(gram).mT, block, upper=True, left=False
        )
    return block


def subspace_iteration(matrix, count, limit):
    """The leading eigenpairs, and the number of iterations that they took.

    The residual is brought below ``limit`` times the norm.
    """
    block = orthonormal(normal(len(matrix), count + 32))
    for iteration in range(1, 101):
        image = matrix @ block
        values, turn = torch.linalg.eigh(block.mT @ image)
        leading = turn[:, -count:]
        off = image @ leading - (block @ leading) * values[-count:]
        if off.norm(dim=0).max() / values[-1] <= limit:
            return values[-count:], block @ leading, iteration
        block = orthonormal(image)
    return values[-count:], block @ leading, iteration


@pytest.mark.parametrize("n", [512, 1024, 2048, 4096])
def bench_decompose(benchmark, n):
    matrix, count = factor(n), n // 4
    double = matrix.double()
    own = functools.partial(decompose, "A", matrix)
    candidates = {
        "own": own,
        "torch float64": functools.partial(torch.linalg.eigh, double),
        "torch float32": functools.partial(torch.linalg.eigh, matrix),
        "LAPACK syevr, leading quarter": functools.partial(
            linalg.eigh, double.numpy(), subset_by_index=[n - count, n - 1]
        ),
        "subspace iteration, leading quarter": functools.partial(
            subspace_iteration, matrix, count, RESIDUAL_LIMIT
        ),
    }
    benchmark.group = "eigendecomposition"
    seconds = interleaved(candidates, rounds=5 if n <= 1024 else 2)
    _, vectors, iterations = subspace_iteration(matrix, count, RESIDUAL_LIMIT)
    leading = decompose("A", matrix).vectors[:, :count].double()
    lost = (vectors.double() - leading @ (leading.T @ vectors.double())).norm(dim=0).max()
    facts = {
        "n": n,
        "certificate": dict(own().certificate),
        "memory_of_factor": round(extra_memory(own) / (4 * n * n), 2),
    }
    found = {
        "iterations": iterations,
        "residual_limit": RESIDUAL_LIMIT,
        "outside_the_true_subspace": round(float(lost), 4),
    }
    record(benchmark, seconds, "own", **facts, subspace=found)
    benchmark.pedantic(own, rounds=2 if n <= 2048 else 1)
