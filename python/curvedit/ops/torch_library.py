"""The ops as ``torch.ops.curvedit.*``, which ``torch.compile`` and ``torch.export`` can trace.

Each runs the backend that ``choose`` picks for its arguments. Output shapes follow from the input
shapes alone.
"""

import torch
from torch import Tensor

from curvedit.kernels.tiles import TILE, tile_count
from curvedit.ops.dispatch import call


@torch.library.custom_op("curvedit::syrk_accumulate", mutates_args=("out",))
def syrk_accumulate(
    out: Tensor, x: Tensor, weight: Tensor | None = None, offsets: Tensor | None = None
) -> None:
    """Add ``sum_t w_t x_t x_t^T`` to the packed lower tiles of ``out``, in place."""
    call("syrk_accumulate", out, x, weight, offsets)


@torch.library.custom_op("curvedit::syrk_accumulate_pair", mutates_args=("out", "out_weighted"))
def syrk_accumulate_pair(
    out: Tensor,
    out_weighted: Tensor,
    x: Tensor,
    weight: Tensor,
    mask: Tensor | None = None,
    offsets: Tensor | None = None,
) -> None:
    """Add the plain sum to ``out`` and the weighted sum to ``out_weighted``, in place."""
    call("syrk_accumulate_pair", out, out_weighted, x, weight, mask, offsets)


@torch.library.custom_op("curvedit::second_moment_accumulate", mutates_args=("out",))
def second_moment_accumulate(
    out: Tensor, g: Tensor, a: Tensor, offsets: Tensor | None = None
) -> None:
    """Add the squared gradients of each sequence, or of each token, to ``out``, in place."""
    call("second_moment_accumulate", out, g, a, offsets)


@torch.library.custom_op("curvedit::staircase_limits", mutates_args=())
def staircase_limits(lam: Tensor, mu: Tensor, keep_mass: float) -> tuple[Tensor, Tensor]:
    """Return the limits (d_out,) int32, and the threshold, number and mass kept (3,) float64."""
    limits, *numbers = call("staircase_limits", lam, mu, keep_mass)
    return limits, torch.tensor(numbers, dtype=torch.float64)


@torch.library.custom_op("curvedit::staircase_project", mutates_args=())
def staircase_project(w: Tensor, u_out: Tensor, u_in: Tensor, limits: Tensor) -> Tensor:
    """Project: ``U_G ((U_G^T W U_A) * M) U_A^T``, (…, d_out, d_in), in the bases' dtype."""
    return _tensor("staircase_project", w, u_out, u_in, limits)


@torch.library.custom_op("curvedit::staircase_rotate", mutates_args=())
def staircase_rotate(w: Tensor, u_out: Tensor, u_in: Tensor, limits: Tensor) -> Tensor:
    """Rotate forward: ``(U_G^T W U_A) * M``, (…, d_out, d_in)."""
    return _tensor("staircase_rotate", w, u_out, u_in, limits)


@torch.library.custom_op("curvedit::staircase_restore", mutates_args=())
def staircase_restore(components: Tensor, u_out: Tensor, u_in: Tensor, limits: Tensor) -> Tensor:
    """Rotate back: ``U_G (C * M) U_A^T``, (…, d_out, d_in)."""
    return _tensor("staircase_restore", components, u_out, u_in, limits)


@torch.library.custom_op("curvedit::masked_project", mutates_args=())
def masked_project(w: Tensor, u_out: Tensor, u_in: Tensor, mask: Tensor) -> Tensor:
    """Project with packed bits as ``M``: ``U_G ((U_G^T W U_A) * M) U_A^T``, (d_out, d_in)."""
    return _tensor("masked_project", w, u_out, u_in, mask)


def _tensor(op: str, *arguments: Tensor) -> Tensor:
    returned: Tensor = call(op, *arguments)
    return returned


@syrk_accumulate.register_fake
def _(out: Tensor, x: Tensor, weight: Tensor | None = None, offsets: Tensor | None = None) -> None:
    _require_tiles("out", out, x, offsets)


@syrk_accumulate_pair.register_fake
def _(
    out: Tensor,
    out_weighted: Tensor,
    x: Tensor,
    weight: Tensor,
    mask: Tensor | None = None,
    offsets: Tensor | None = None,
) -> None:
    _require_tiles("out", out, x, offsets)
    _require_tiles("out_weighted", out_weighted, x, offsets)


@second_moment_accumulate.register_fake
def _(out: Tensor, g: Tensor, a: Tensor, offsets: Tensor | None = None) -> None:
    if tuple(out.shape) != (g.shape[1], a.shape[1]):
        raise ValueError(f"out: expected shape {(g.shape[1], a.shape[1])}, got {tuple(out.shape)}")


@staircase_limits.register_fake
def _(lam: Tensor, mu: Tensor, keep_mass: float) -> tuple[Tensor, Tensor]:
    return lam.new_empty(lam.shape[0], dtype=torch.int32), lam.new_empty(3, dtype=torch.float64)


@staircase_project.register_fake
@staircase_rotate.register_fake
@staircase_restore.register_fake
@masked_project.register_fake
def _(w: Tensor, u_out: Tensor, u_in: Tensor, which: Tensor) -> Tensor:
    return torch.empty_like(w, dtype=u_out.dtype, memory_format=torch.contiguous_format)


def _require_tiles(name: str, out: Tensor, x: Tensor, offsets: Tensor | None) -> None:
    groups = () if offsets is None else (offsets.shape[0] - 1,)
    expected = (*groups, tile_count(x.shape[1]), TILE, TILE)
    if tuple(out.shape) != expected:
        raise ValueError(f"{name}: expected shape {expected}, got {tuple(out.shape)}")
