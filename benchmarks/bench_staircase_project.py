"""``staircase_project`` beside the dense rotation, on the staircases of 1/i spectra."""

import pytest
import torch
from cases import limits_of, normal
from interleave import interleaved, record

from curvedit import ops


@pytest.mark.parametrize("share", [0.6, 0.8, 0.95])
@pytest.mark.parametrize("shape", [(1376, 512), (2752, 1024)], ids=str)
def bench_staircase_project(benchmark, shape, share):
    m, n = shape
    w, u_out, u_in, limits = (
        normal(m, n),
        normal(m, m, seed=1) / m**0.5,
        normal(n, n, seed=2) / n**0.5,
        limits_of(m, n, share),
    )
    own = lambda: ops.call("staircase_project", w, u_out, u_in, limits)  # noqa: E731
    dense = lambda: ops.call("staircase_project", w, u_out, u_in, limits, backend="reference")  # noqa: E731
    # the bases are scaled noise, whose error grows as an orthogonal one's does not: compare loosely
    torch.testing.assert_close(own(), dense(), rtol=1e-3, atol=1e-3)
    seconds = interleaved({"own": own, "dense": dense}, rounds=9)
    record(benchmark, seconds, "own", shape=shape, keep_mass=share, kept=int(limits.sum()) / (m * n))
    benchmark.pedantic(own, rounds=5, warmup_rounds=1)
    benchmark.group = "staircase_project"
