"""What the implementations of ``syrk_accumulate`` and its pair check before any work, on every device."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from curvedit.kernels.tiles import TILE, tile_count

HALVES = (torch.bfloat16, torch.float16)


def require_syrk(
    out: Tensor,
    x: Tensor,
    weight: Tensor | None,
    offsets: Tensor | None,
    *,
    dtypes: tuple[torch.dtype, ...] = (torch.float32, *HALVES),
    names: tuple[str, str] = ("out", "weight"),
) -> None:
    """Raise unless the tensors fit each other; their values are not looked at.

    Args:
        out: ``(tile_count(d), 128, 128)`` float32, contiguous; ``(groups, …)`` with offsets.
        x: ``(tokens, d)``.
        weight: ``(tokens,)`` float32, or None.
        offsets: ``(groups + 1,)`` int64, or None.
        dtypes: That ``x`` may have.
        names: Of ``out`` and ``weight`` in messages.

    Raises:
        TypeError: a dtype is not accepted.
        ValueError: a shape, layout or device does not fit, or ``out`` shares memory with an input.
    """
    if x.ndim != 2:
        raise ValueError(f"x: expected shape (tokens, d), got {tuple(x.shape)}")
    shapes: dict[str, tuple[Tensor | None, tuple[int, ...], tuple[torch.dtype, ...]]] = {
        "x": (x, tuple(x.shape), dtypes),
        names[1]: (weight, (x.shape[0],), (torch.float32,)),
    }
    expected: tuple[int, ...] = (tile_count(x.shape[1]), TILE, TILE)
    if offsets is not None:
        groups = offsets.numel() - 1
        if offsets.ndim != 1 or groups < 0:
            raise ValueError(f"offsets: expected shape (groups + 1,), got {tuple(offsets.shape)}")
        shapes["offsets"] = (offsets, (groups + 1,), (torch.int64,))
        expected = (groups, *expected)
    shapes[names[0]] = (out, expected, (torch.float32,))
    for name, (tensor, shape, accepted) in shapes.items():
        if tensor is None:
            continue
        if tensor.dtype not in accepted:
            raise TypeError(f"{name}: expected one of {list(accepted)}, got {tensor.dtype}")
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name}: expected shape {shape}, got {tuple(tensor.shape)}")
        if tensor.device != x.device:
            raise ValueError(f"{name}: expected a tensor on {x.device}, as x, got {tensor.device}")
    if not out.is_contiguous():
        raise ValueError(f"{names[0]}: expected a contiguous tensor, got strides {out.stride()}")
    require_apart(names[0], out, {"x": x, names[1]: weight})


def require_apart(name: str, out: Tensor, others: Mapping[str, Tensor | None]) -> None:
    """Raise ``ValueError`` if ``out`` shares memory with another; tensors that only interleave count too."""
    first, last = _span(out)
    for other, tensor in others.items():
        if tensor is not None and tensor.untyped_storage().data_ptr() == out.untyped_storage().data_ptr():
            start, stop = _span(tensor)
            if first < stop and start < last:
                raise ValueError(f"{name}: expected memory of its own, got memory that {other} uses too")


def _span(tensor: Tensor) -> tuple[int, int]:
    """First address and the one past the last."""
    start = tensor.data_ptr()
    if not tensor.numel():
        return start, start
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return start, start + (last + 1) * tensor.element_size()


Single = Callable[[Tensor, Tensor, Tensor | None, Tensor | None], None]
Pair = Callable[..., None]


def in_two_calls(single: Single) -> Pair:
    """``syrk_accumulate_pair`` out of an implementation of ``syrk_accumulate``."""

    def syrk_accumulate_pair(
        out: Tensor,  # as the single one's
        out_weighted: Tensor,  # as out
        x: Tensor,  # (tokens, d)
        weight: Tensor,  # (tokens,) float32, >= 0
        mask: Tensor | None = None,  # (tokens,) float32, 0 where a token does not count in out
        offsets: Tensor | None = None,  # (groups + 1,) int64
    ) -> None:
        """Add ``sum_t x_t x_t^T`` to ``out`` and ``sum_t w_t x_t x_t^T`` to ``out_weighted``."""
        require_apart("out", out, {"out_weighted": out_weighted})
        single(out, x, mask, offsets)
        single(out_weighted, x, weight, offsets)

    return syrk_accumulate_pair
