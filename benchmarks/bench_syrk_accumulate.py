"""C++ ``syrk_accumulate`` beside torch's full product and OpenBLAS's ssyrk; 4096 tokens."""

import numpy as np
import pytest
import torch
from cases import normal
from compare import assert_as_accurate
from interleave import interleaved, record
from scipy.linalg import blas
from threadpoolctl import threadpool_limits

from curvedit import ops
from curvedit.kernels import tiles

TOKENS = 4096


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("d", [256, 512, 1024, 2048, 4096])
def bench_syrk_accumulate(benchmark, d, threads):
    x = normal(TOKENS, d)
    half = x.bfloat16()
    half_square = torch.zeros(
        d, d, dtype=torch.bfloat16
    )  # rounds at every call: faster than it should be
    out, weighted, square = tiles.zeros(d), tiles.zeros(d), torch.zeros(d, d)
    weight = torch.rand(TOKENS, generator=torch.Generator().manual_seed(0))
    packed, columns = np.zeros((d, d), dtype=np.float32, order="F"), x.numpy().T

    ops.call("syrk_accumulate", out, x)
    if d <= 1024:  # a float64 product of the larger ones takes longer than their benchmark
        truth = x.double().T @ x.double()
        assert_as_accurate(tiles.unpack(out, d), x.T @ x, truth)

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    candidates = {
        "own float32": lambda: ops.call("syrk_accumulate", out, x),
        "own bfloat16": lambda: ops.call("syrk_accumulate", out, half),
        "own pair": lambda: ops.call("syrk_accumulate_pair", out, weighted, x, weight),
        "torch addmm_ bfloat16": lambda: half_square.addmm_(half.T, half),
        "torch addmm_": lambda: square.addmm_(x.T, x),
        "OpenBLAS ssyrk": lambda: blas.ssyrk(
            1.0, columns, 1.0, packed, trans=0, lower=1, overwrite_c=1
        ),
    }
    with threadpool_limits(threads, "blas"):
        seconds = interleaved(
            candidates, 15 if d < 4096 else 7, pause=0.15, calls=3 if d < 2048 else 1
        )
        benchmark.pedantic(candidates["own float32"], rounds=5, warmup_rounds=1)
    torch.set_num_threads(before)
    flop = TOKENS * d * (d + 1)
    gflops = round(flop / seconds["own float32"] / 1e9, 1)
    record(
        benchmark,
        seconds,
        "own float32",
        tokens=TOKENS,
        d=d,
        threads=threads,
        flop=flop,
        own_gflops=gflops,
    )
    benchmark.group = f"syrk_accumulate, {threads} thread(s)"
