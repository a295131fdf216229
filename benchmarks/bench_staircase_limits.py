"""C++ ``staircase_limits`` beside sorting every product."""

from functools import partial

import pytest
import torch
from interleave import interleaved, record

from curvedit import ops


@pytest.mark.parametrize("shape", [(1376, 512), (4096, 11008)], ids=str)
def bench_shapes(benchmark, shape):
    lam, mu = (torch.arange(1, size + 1, dtype=torch.float64) ** -1.0 for size in shape)
    arguments = (lam, mu, 0.6)
    own = ops.choose("staircase_limits", *arguments)
    candidates = {"own": partial(own, *arguments)}
    if shape[0] * shape[1] < 1e6:  # sorting 45 million products takes seconds and a gigabyte
        sorting = ops.choose("staircase_limits", *arguments, backend="reference")
        assert torch.equal(own(*arguments)[0], sorting(*arguments)[0])
        candidates["sorting"] = partial(sorting, *arguments)
    benchmark.group = "staircase_limits"
    seconds = interleaved(candidates, rounds=9)
    record(benchmark, seconds, "own", backend=own.label, shape=shape)
    benchmark.pedantic(candidates["own"], rounds=20, warmup_rounds=2)
