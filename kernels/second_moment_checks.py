"""What every implementation of ``second_moment_accumulate`` checks, and the sum over single tokens."""

import torch
from torch import Tensor

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_TOKENS = 1024  # squared at a time


def require_second_moment(out: Tensor, g: Tensor, a: Tensor, offsets: Tensor | None) -> None:
    """Raise ``TypeError`` or ``ValueError`` unless the arguments fit together."""
    if g.ndim != 2 or a.ndim != 2 or len(g) != len(a):
        raise ValueError(
            f"g, a: expected shapes (tokens, d_out) and (tokens, d_in), got {tuple(g.shape)} and {tuple(a.shape)}"
        )
    if tuple(out.shape) != (g.shape[1], a.shape[1]) or not out.is_contiguous():
        layout = "" if out.is_contiguous() else ", not contiguous"
        raise ValueError(f"out: expected contiguous ({g.shape[1]}, {a.shape[1]}), got {tuple(out.shape)}{layout}")
    if out.dtype != torch.float32:
        raise TypeError(f"out: expected float32, got {out.dtype}")
    for name, x in (("g", g), ("a", a)):
        if x.dtype not in _DTYPES:
            raise TypeError(f"{name}: expected float32, bfloat16 or float16, got {x.dtype}")
        if x.device != out.device:
            raise ValueError(f"{name}: expected a tensor on {out.device}, as out, got {x.device}")
        if x.numel() and out.untyped_storage().data_ptr() == x.untyped_storage().data_ptr():
            raise ValueError(f"out: expected memory of its own, got that of {name}")
    if g.dtype != a.dtype:
        raise TypeError(f"a: expected {g.dtype}, as g, got {a.dtype}")
    if offsets is None:
        return
    if offsets.ndim != 1 or not len(offsets) or offsets.dtype != torch.int64:
        raise ValueError(f"offsets: expected (sequences + 1,) int64, got {tuple(offsets.shape)} {offsets.dtype}")
    if int(offsets[0]) < 0 or int(offsets[-1]) > len(g) or bool((offsets.diff() < 0).any()):
        raise ValueError(f"offsets: expected ascending numbers from 0 to {len(g)}, got {offsets[:8].tolist()}")


def accumulate_tokens(out: Tensor, g: Tensor, a: Tensor) -> None:
    """Every token a sequence of its own: ``out += (g * g)^T (a * a)``, one product."""
    for start in range(0, len(g), _TOKENS):
        part = slice(start, start + _TOKENS)
        out.addmm_(g[part].float().square().mT, a[part].float().square())
