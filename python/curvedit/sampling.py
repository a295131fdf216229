"""Random numbers keyed by (seed, sample, position), and labels drawn with them.

A draw depends on its key alone: not on batching, order, device or resume. The generator is
SplitMix64 (Steele, Lea, Flood 2014) applied to the key's words in turn, in int64 arithmetic that
wraps the same way on every device.
"""

import torch
from torch import Tensor

_GAMMA = -0x61C8864680B583EB  # 0x9E3779B97F4A7C15 as a signed 64-bit number
_MIX_1 = -0x40A7B892E31B1A47  # 0xBF58476D1CE4E5B9
_MIX_2 = -0x6B2FB644ECCEEE15  # 0x94D049BB133111EB


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift; torch's own keeps the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = x + _GAMMA
    x = (x ^ _shift(x, 30)) * _MIX_1
    x = (x ^ _shift(x, 27)) * _MIX_2
    return x ^ _shift(x, 31)


def uniform(
    seed: int,
    sample: Tensor,  # int64, any shape
    position: Tensor,  # int64, broadcasts with sample
) -> Tensor:
    """One number in [0, 1) per (seed, sample, position), float64, of the broadcast shape."""
    state = _mix(torch.full((), seed, dtype=torch.int64, device=sample.device))
    state = _mix(_mix(state ^ sample) ^ position)
    return _shift(state, 11).double() * 2.0**-53


def sample_labels(
    logits: Tensor,  # (n, classes)
    draws: Tensor,  # (n,) in [0, 1), float64
) -> Tensor:
    """One label per row from the softmax of its logits, by inversion of the distribution: (n,)."""
    cumulative = logits.float().softmax(-1).cumsum(-1, dtype=torch.float64)
    wanted = draws[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, wanted, right=True)[:, 0].clamp_(max=logits.shape[-1] - 1)
