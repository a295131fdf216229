"""Reproducible label draws: one random number for each (seed, sample, position).

A draw depends on its key alone, not on batching, order, device or resuming. The generator is
SplitMix64 (Steele, Lea, Flood 2014) applied to the words of the key in turn, in int64 arithmetic,
which wraps in the same way on every device.
"""

import torch
from torch import Tensor

_GAMMA = -0x61C8864680B583EB  # 0x9E3779B97F4A7C15 as a signed 64-bit number
_GROUP = 256  # classes per group; a whole vocabulary has about as many groups
_MIX_1 = -0x40A7B892E31B1A47  # 0xBF58476D1CE4E5B9
_MIX_2 = -0x6B2FB644ECCEEE15  # 0x94D049BB133111EB


def _shift(x: Tensor, bits: int) -> Tensor:
    """Shift right logically; torch's operator is arithmetic and keeps the sign."""
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
    """Return one number in [0, 1) per (seed, sample, position): float64, of the broadcast shape."""
    state = _mix(torch.full((), seed, dtype=torch.int64, device=sample.device))
    state = _mix(_mix(state ^ sample) ^ position)
    return _shift(state, 11).double() * 2.0**-53


def sample_labels(
    probabilities: Tensor,  # (…, classes), not negative; rows need not sum to 1
    draws: Tensor,  # (…) in [0, 1), float64
) -> Tensor:
    """Return one label per row (…), by inverting the row's cumulative distribution in float64.

    This takes two steps, first over groups of classes and then within one group, so that only the
    groups' sums are stored in float64.
    """
    classes = probabilities.shape[-1]
    whole = classes - classes % _GROUP
    groups = torch.cat(
        [
            probabilities[..., :whole].unflatten(-1, (-1, _GROUP)).sum(-1),
            probabilities[..., whole:].sum(-1, keepdim=True),
        ],
        dim=-1,
    )
    cumulative = groups.cumsum(-1, dtype=torch.float64)
    wanted = draws[..., None] * cumulative[..., -1:]
    group = _invert(cumulative, wanted)
    before = torch.nn.functional.pad(cumulative, (1, -1)).gather(-1, group)
    members = group * _GROUP + torch.arange(_GROUP, device=probabilities.device)
    inside = probabilities.gather(-1, members.clamp(max=classes - 1)).where(members < classes, 0.0)
    label: Tensor = group * _GROUP + _invert(
        inside.cumsum(-1, dtype=torch.float64), wanted - before
    )
    return label[..., 0].clamp_(max=classes - 1)


def _invert(cumulative: Tensor, wanted: Tensor) -> Tensor:
    """Return the index of each row's first entry above the wanted value.

    The entry never has probability 0, unless the whole row has.
    """
    end = cumulative[..., -1:]
    wanted = wanted.minimum(end.nextafter(torch.zeros_like(end)))
    return torch.searchsorted(cumulative, wanted, right=True).clamp_(max=cumulative.shape[-1] - 1)
