"""Small calls of one backend, for compute-sanitizer to watch; fails where a sum is not exact.

``python benchmarks/gpu_small_calls.py BACKEND``: on the GPU, or with torch's backend on a CPU.
"""

import sys

import torch

from curvedit import ops
from curvedit.ops import tiles

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZES = [(1, 8), (65, 136), (300, 264), (4200, 8)]  # (tokens, d); the last is shared by programs


def calls():
    """The outputs' truths beside the arguments of each call."""
    generator = torch.Generator().manual_seed(0)
    for tokens, d in SIZES:
        x = torch.randint(-4, 5, (tokens, d), generator=generator).bfloat16()
        weight = torch.randint(4, (tokens,), generator=generator).float().square()
        bounds = torch.tensor([0, tokens // 3, tokens // 3, tokens])
        for weights in (None, weight):
            for offsets in (None, bounds):
                groups = () if offsets is None else (len(bounds) - 1,)
                out = torch.zeros(*groups, tiles.tile_count(d), tiles.TILE, tiles.TILE)
                expected = out.clone()
                ops.call(
                    "syrk_accumulate", expected, x.float(), weights, offsets, backend="reference"
                )
                yield d, expected, (out, x, weights, offsets)


def main(backend):
    ran = wrong = 0
    for d, expected, arguments in calls():
        placed = [each if each is None else each.to(DEVICE) for each in arguments]
        if ops.explain("syrk_accumulate", *placed)[backend]:
            continue
        ops.call("syrk_accumulate", *placed, backend=backend)
        shape = (-1, *expected.shape[-3:])
        pairs = zip(placed[0].cpu().view(shape), expected.view(shape), strict=True)
        exact = all(torch.equal(*(tiles.unpack(each, d) for each in pair)) for pair in pairs)
        ran, wrong = ran + 1, wrong + (not exact)
    print(f"{backend}: {ran} calls, {wrong} wrong")
    return wrong > 0 or not ran


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if DEVICE == "cuda" else "torch"))
