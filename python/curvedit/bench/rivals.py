"""What the kernels are compared with: BLAS, torch's products, stored gradients.

Each function prepares one rival and returns a callable without arguments, so that only the
computation itself is timed. The callable returns the result. Rivals that accumulate add to the
``square`` they are given.
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from curvedit import ops

Run = Callable[[], Tensor]


def addmm(square: Tensor, x: Tensor) -> Run:
    """The full product by torch, ``square += x.T @ x``, rounded to their common dtype.

    Args:
        square: ``(d, d)``.
        x: ``(tokens, d)``.
    """
    return partial(square.addmm_, x.mT, x)


def addmm_float32_output(square: Tensor, x: Tensor) -> Run:
    """The same for bfloat16 input with the sum in float32, which torch offers on a GPU only.

    Args:
        square: ``(d, d)`` in float32.
        x: ``(tokens, d)`` in bfloat16.
    """
    return partial(torch.addmm, square, x.mT, x, out_dtype=torch.float32, out=square)


def addmm_per_expert(squares: Tensor, x: Tensor, offsets: Tensor) -> Run:
    """One product by torch per expert, one after the other.

    Args:
        squares: ``(experts, d, d)``.
        x: ``(tokens, d)``, sorted by expert.
        offsets: ``(experts + 1,)``, where each expert's tokens begin.
    """
    bounds = offsets.tolist()

    def run() -> Tensor:
        for square, (start, stop) in zip(squares, pairwise(bounds), strict=True):
            square.addmm_(x[start:stop].mT, x[start:stop])
        return squares

    return run


def ssyrk(square: Tensor, x: Tensor) -> Run | None:
    """OpenBLAS's symmetric product through scipy: one triangle. None without scipy.

    Args:
        square: ``(d, d)`` in float32 on the CPU; the upper triangle is added to.
        x: ``(tokens, d)`` in float32.

    Returns:
        The rival. Its result has the sums in the lower triangle.
    """
    try:
        from scipy.linalg import blas  # type: ignore[import-untyped]
    except ImportError:
        return None
    by_columns = square.numpy().T  # column-major, as BLAS wants it: its lower is our upper
    x_by_columns = x.numpy().T

    def run() -> Tensor:
        blas.ssyrk(1.0, x_by_columns, 1.0, by_columns, trans=0, lower=1, overwrite_c=1)
        return square.mT

    return run


def stored_gradients(g: Tensor, a: Tensor, length: int) -> Run:
    """Second moments of per-sequence gradients that are all stored, then squared and added up.

    Args:
        g: ``(tokens, m)``, output gradients.
        a: ``(tokens, n)``, inputs.
        length: Tokens per sequence; it divides ``tokens``.
    """
    per_sequence_g, per_sequence_a = (x.view(-1, length, x.shape[1]) for x in (g, a))

    def run() -> Tensor:
        return torch.bmm(per_sequence_g.mT, per_sequence_a).square_().sum(0)

    return run


def one_product(g: Tensor, a: Tensor) -> Run:
    """The gradient of all tokens together: the same products without the squares, a lower bound.

    Args:
        g: ``(tokens, m)``.
        a: ``(tokens, n)``.
    """
    return partial(torch.mm, g.mT, a)


def four_dense_products(w: Tensor, u_out: Tensor, u_in: Tensor, limits: Tensor) -> Run:
    """Rotate the whole weight, mask it, rotate it back.

    Args:
        w: ``(m, n)``.
        u_out: ``(m, m)``, basis of the outputs.
        u_in: ``(n, n)``, basis of the inputs.
        limits: ``(m,)``, components kept per row.
    """
    arguments = (w, u_out, u_in, limits)
    return partial(ops.choose("staircase_project", *arguments, backend="reference"), *arguments)
