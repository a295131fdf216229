"""C++ ``syrk_accumulate`` beside torch's full product and OpenBLAS's ``ssyrk``; 4096 tokens."""

from functools import partial

import pytest
import torch
from cases import normal
from interleave import interleaved, record, torch_threads
from threadpoolctl import threadpool_limits

from curvedit import ops
from curvedit.bench import packed_elements, rivals, square_elements, syrk_error
from curvedit.ops import tiles

TOKENS = 4096
TOLERANCE = 1e-4  # relative
ROUNDED = 2e-2  # of a bfloat16 sum


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("d", [256, 512, 1024, 2048, 4096])
def bench_sizes(benchmark, d, threads):
    x = normal(TOKENS, d)
    half = x.bfloat16()
    weight = torch.rand(TOKENS, generator=torch.Generator().manual_seed(0))
    out, weighted = tiles.zeros(d), tiles.zeros(d)
    square, half_square = torch.zeros(d, d), torch.zeros(d, d, dtype=torch.bfloat16)
    calls = {
        "own float32": ("syrk_accumulate", out, x),
        "own bfloat16": ("syrk_accumulate", out, half),
        "own pair": ("syrk_accumulate_pair", out, weighted, x, weight),
    }
    own = {name: ops.choose(*call) for name, call in calls.items()}
    candidates = {name: partial(run, *calls[name][1:]) for name, run in own.items()}
    candidates |= {
        # its sum is rounded at every call, which makes it faster than one that could be used
        "torch addmm_ bfloat16": rivals.addmm(half_square, half),
        "torch addmm_": rivals.addmm(square, x),
        "OpenBLAS ssyrk": rivals.ssyrk(square, x),
    }
    for name, run in candidates.items():  # right before timed
        for result in (out, square, half_square):
            result.zero_()
        returned, given = run(), half if "bfloat16" in name else x
        elements = (
            partial(packed_elements, out) if name in own else partial(square_elements, returned)
        )
        limit = ROUNDED if name == "torch addmm_ bfloat16" else TOLERANCE
        assert syrk_error(elements, given) < limit, name

    flop = TOKENS * d * (d + 1)
    benchmark.group = f"syrk_accumulate, {threads} thread(s)"
    with torch_threads(threads), threadpool_limits(threads, "blas"):
        seconds = interleaved(
            candidates, 15 if d < 4096 else 7, pause=0.15, calls=3 if d < 2048 else 1
        )
        record(
            benchmark,
            seconds,
            "own float32",
            backends={name: run.label for name, run in own.items()},
            tokens=TOKENS,
            d=d,
            threads=threads,
            flop=flop,
            own_gflops=round(flop / seconds["own float32"] / 1e9, 1),
        )
        benchmark.pedantic(candidates["own float32"], rounds=5, warmup_rounds=1)
