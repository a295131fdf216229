"""Inputs and truths for the kernels on a real GPU; on a CPU the same, smaller, as a rehearsal."""

import os
from itertools import pairwise

import torch
from cases import limits_of

from curvedit.ops import tiles

HAS_GPU = torch.cuda.is_available()
IS_REHEARSED = bool(os.environ.get("CURVEDIT_REHEARSE"))  # run the tests of a GPU on a CPU
DEVICE = "cuda" if HAS_GPU else "cpu"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# (tokens, d): every width, every length, and the corners
SIZES = [(300, d) for d in (1, 127, 128, 136, 200, 264, 520, 1000, 2056)]
SIZES += [(tokens, 136) for tokens in (0, 1, 63, 64, 65, 4097)]
SIZES += [(20000, d) for d in (128, 200, 1000, 2056)] + [(65, 2056), (4097, 520), (4097, 1)]
SHAPES = [(1, 7), (9, 1), (127, 200), (128, 128), (264, 136), (520, 1000), (2056, 1000)]
SHARES = (0.3, 0.8, 0.97)
if not HAS_GPU:
    SIZES = [(33, 130), (0, 9), (65, 8)]
    SHAPES = [(1, 7), (65, 129)]


def draw(*shape, seed, integer, dtype=torch.float32):
    generator = torch.Generator(DEVICE).manual_seed(seed)
    if integer:
        values = torch.randint(-4, 5, shape, generator=generator, device=DEVICE)
    else:
        values = torch.randn(*shape, generator=generator, device=DEVICE)
    return values.to(dtype)


def weights(tokens, *, integer):
    """Squares of 0 … 4; of 0, 1, 2 for real tokens, whose multiples are then exact in halves."""
    generator = torch.Generator(DEVICE).manual_seed(7)
    top = 5 if integer else 3
    return torch.randint(top, (tokens,), generator=generator, device=DEVICE).float().square()


def bounds(tokens):
    """Ragged groups: empty ones at the start, the end and between; some tokens in no group."""
    inner = [tokens // 50, tokens // 3, tokens // 3, tokens // 2, max(0, tokens - 1)]
    return torch.tensor([0, 0, *sorted(inner), max(0, tokens - 1)], device=DEVICE)


LAYOUTS = ("whole", "bordered", "transposed")


def laid_out(x, layout):
    """The same values elsewhere: amid NaN in 16-byte steps, or with the tokens side by side."""
    if layout == "whole":
        return x
    if layout == "transposed":
        return x.mT.contiguous().mT
    rows, columns = x.shape
    memory = torch.full((rows + 5, -(-columns // 8) * 8 + 16), torch.nan, dtype=x.dtype).to(DEVICE)
    inside = memory[2 : 2 + rows, 8 : 8 + columns]
    inside.copy_(x)
    return inside


class Guarded:
    """A packed sum of ones amid known memory, NaN where nothing may be read."""

    def __init__(self, d, groups=None):
        shape = (*(() if groups is None else (groups,)), tiles.tile_count(d), 128, 128)
        count = torch.Size(shape).numel()
        side = -(-d // 128) * 128
        is_inside = torch.zeros(side, side, device=DEVICE)
        is_inside[:d, :d] = torch.ones(d, d, device=DEVICE).tril()
        start = torch.where(tiles.pack(is_inside) > 0, 1.0, torch.nan)
        self.memory = torch.full((count + 4096,), 7.0, device=DEVICE)
        self.out = self.memory[2048 : 2048 + count].view(shape)
        self.out.copy_(start.expand(shape))
        self.d = d

    def sums(self):
        """What was added, (groups, d, d); the memory around must be as before."""
        assert (self.memory[:2048] == 7).all(), "memory before the output was written"
        assert (self.memory[-2048:] == 7).all(), "memory after the output was written"
        every = self.out if self.out.ndim == 4 else self.out[None]
        return torch.stack([tiles.unpack(each, self.d) for each in every]).double() - 1


def syrk_truth(x, weight, offsets, dtype=torch.float64):
    """(groups, d, d), by one product per group."""
    ends = [0, len(x)] if offsets is None else offsets.tolist()
    rows = x.to(dtype)
    if weight is not None:
        rows = torch.where(weight[:, None] > 0, rows, 0) * weight.to(dtype).sqrt()[:, None]
    parts = [rows[a:b].mT @ rows[a:b] for a, b in pairwise(ends)]
    return torch.stack(parts)


def moment_truth(g, a, offsets, dtype=torch.float64):
    g, a = g.to(dtype), a.to(dtype)
    if offsets is None:
        return g.square().mT @ a.square()
    ends = offsets.tolist()
    total = torch.zeros(g.shape[1], a.shape[1], dtype=dtype, device=g.device)
    for start, stop in pairwise(ends):
        total += (g[start:stop].mT @ a[start:stop]).square()
    return total


def basis(size, seed, *, integer):
    """A permutation, or a random rotation; float32."""
    if integer:
        order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
        return torch.eye(size)[order].to(DEVICE)
    square = draw(size, size, seed=seed, integer=False).double()
    return torch.linalg.qr(square).Q.float()


def staircase(m, n, share, *, integer, dtype=torch.float32):
    """Arguments of ``staircase_project``."""
    w = draw(m, n, seed=1, integer=integer, dtype=dtype)
    bases = basis(m, 2, integer=integer), basis(n, 3, integer=integer)
    return w, *bases, limits_of(m, n, share).to(DEVICE)


def errors(got, truth):
    """Average and worst error, relative to the truth; both 0 where both are 0."""
    off, truth = got.double() - truth, truth.double()
    if not truth.any():
        return (float(off.abs().sum()),) * 2
    return float(off.norm() / truth.norm()), float(off.abs().max() / truth.abs().max())
