"""Checks large results against float64 on a sample of their entries.

Products are checked at sampled elements. Projections are checked whole, with bases that make the
true result cheap.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from curvedit.ops import tiles

SAMPLE = 256  # elements
Elements = Callable[[int, Tensor, Tensor], Tensor]  # (group, rows, columns) to values
_TINY = 1e-30  # stands in for a scale of zero


def packed_elements(out: Tensor, group: int, rows: Tensor, columns: Tensor) -> Tensor:
    """Elements of a result in packed tiles, or of one group's; ``rows >= columns``."""
    packed = out[group] if out.dim() == 4 else out
    row, column = rows // tiles.TILE, columns // tiles.TILE
    return packed[row * (row + 1) // 2 + column, rows % tiles.TILE, columns % tiles.TILE]


def square_elements(out: Tensor, group: int, rows: Tensor, columns: Tensor) -> Tensor:
    """Elements of a square matrix, or of one group's."""
    return (out[group] if out.dim() == 3 else out)[rows, columns]


def syrk_error(elements: Elements, x: Tensor, offsets: Tensor | None = None) -> float:
    """Largest sampled error of ``x.T @ x``, relative to the roots of its diagonal.

    Args:
        elements: Reads the result, such as a partial of :func:`packed_elements`; it is asked for
            elements of the lower triangle.
        x: ``(tokens, d)``.
        offsets: ``(groups + 1,)``, where each group's tokens begin: the first, the middle and the
            last group are sampled. None for a single group.
    """
    first, second = _sampled(x.shape[1], x.shape[1], x.device)
    rows, columns = torch.maximum(first, second), torch.minimum(first, second)
    bounds = [0, len(x)] if offsets is None else offsets.tolist()
    groups, worst = len(bounds) - 1, 0.0
    for group in {0, groups // 2, groups - 1}:
        part = x[bounds[group] : bounds[group + 1]].double()
        left, right = part[:, rows], part[:, columns]
        scale = (left.square().sum(0) * right.square().sum(0)).sqrt().clamp_min(_TINY)
        off = elements(group, rows, columns).double() - (left * right).sum(0)
        worst = max(worst, float((off.abs() / scale).max()))
    return worst


def second_moment_error(result: Tensor, g: Tensor, a: Tensor, length: int) -> float:
    """Largest sampled relative error of squared per-sequence gradients, added up.

    Args:
        result: ``(m, n)``.
        g: ``(tokens, m)``.
        a: ``(tokens, n)``.
        length: Tokens per sequence; the last may have fewer.
    """
    rows, columns = _sampled(g.shape[1], a.shape[1], g.device)
    sequences = -(-len(g) // length)
    products = torch.zeros(sequences, SAMPLE, dtype=torch.float64, device=g.device)
    sequence = torch.arange(len(g), device=g.device) // length
    products.index_add_(0, sequence, g[:, rows].double() * a[:, columns].double())
    truth = products.square().sum(0)
    off = result[rows, columns].double() - truth
    return float((off.abs() / truth.clamp_min(_TINY)).max())


@dataclass(frozen=True)
class Reflections:
    """Two reflections, taken as orthonormal bases.

    A product with ``1 - 2 v v.T`` takes few operations, so that a projection's true result is cheap
    even in float64.
    """

    v_out: Tensor  # (m,), float64, of norm 1
    v_in: Tensor  # (n,)

    @classmethod
    def draw(cls, m: int, n: int, device: torch.device) -> "Reflections":
        """Random reflections of the outputs and of the inputs."""
        generator = torch.Generator().manual_seed(0)
        vectors = (
            torch.randn(size, generator=generator, dtype=torch.float64).to(device)
            for size in (m, n)
        )
        return cls(*(vector / vector.norm() for vector in vectors))

    def bases(self) -> tuple[Tensor, Tensor]:
        """Both as float32 matrices, ``(m, m)`` and ``(n, n)``."""
        u_out, u_in = (
            torch.eye(len(v), device=v.device) - 2 * torch.outer(v, v).float()
            for v in (self.v_out, self.v_in)
        )
        return u_out, u_in

    def error(self, result: Tensor, w: Tensor, limits: Tensor) -> float:
        """Largest error of a projected weight, relative to its largest element.

        Args:
            result: ``(m, n)``, what came out.
            w: ``(m, n)``, what went in.
            limits: ``(m,)``, components kept per row.
        """
        kept = torch.arange(w.shape[1], device=w.device) < limits[:, None]
        truth = self._rotated(self._rotated(w.double()) * kept)
        return float((result.double() - truth).abs().max() / truth.abs().max())

    def _rotated(self, x: Tensor) -> Tensor:
        x = x - 2 * torch.outer(self.v_out, self.v_out @ x)
        return x - 2 * torch.outer(x @ self.v_in, self.v_in)


def _sampled(rows: int, columns: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Random places in a matrix, the same on every call."""
    generator = torch.Generator().manual_seed(1)
    row, column = (
        torch.randint(size, (SAMPLE,), generator=generator).to(device) for size in (rows, columns)
    )
    return row, column
