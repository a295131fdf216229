"""C++ ``staircase_limits`` beside sorting every product."""

import pytest
import torch
from interleave import interleaved, record

from curvedit import ops


@pytest.mark.parametrize("shape", [(1376, 512), (4096, 11008)], ids=str)
def bench_staircase_limits(benchmark, shape):
    lam, mu = (torch.arange(1, size + 1, dtype=torch.float64) ** -1.0 for size in shape)
    own = lambda: ops.call("staircase_limits", lam, mu, 0.6)  # noqa: E731
    candidates = {"own": own}
    if shape[0] * shape[1] < 1e6:  # sorting 45 million products takes seconds and a gigabyte
        expected = ops.call("staircase_limits", lam, mu, 0.6, backend="reference")
        assert torch.equal(own()[0], expected[0])
        candidates["sorting"] = lambda: ops.call(
            "staircase_limits", lam, mu, 0.6, backend="reference"
        )
    record(benchmark, interleaved(candidates, rounds=9), "own", shape=shape)
    benchmark.pedantic(own, rounds=20, warmup_rounds=2)
    benchmark.group = "staircase_limits"
