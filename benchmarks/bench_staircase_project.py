"""``staircase_project`` beside the four dense products, on the staircases of 1/i spectra; a sweep over ten shares."""

import functools

import pytest
import torch
from cases import limits_of, normal
from interleave import extra_memory, interleaved, record

from curvedit import ops
from curvedit.kernels.staircase_project_plan import plan

SHAPES = [(1376, 512), (2752, 1024), (5504, 2048)]
SWEEP = [share / 100 for share in range(50, 100, 5)]


@functools.cache
def case(m, n):
    bases = [torch.linalg.qr(normal(size, size, seed=size)).Q.contiguous() for size in (m, n)]
    return normal(m, n), *bases


@pytest.mark.parametrize("share", [0.3, 0.6, 0.8, 0.9, 0.95, 0.97, 0.99, 0.999])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def bench_staircase_project(benchmark, shape, share):
    w, u_out, u_in = case(*shape)
    limits = limits_of(*shape, share)
    own = lambda: ops.call("staircase_project", w, u_out, u_in, limits)  # noqa: E731
    dense = lambda: ops.call("staircase_project", w, u_out, u_in, limits, backend="reference")  # noqa: E731
    torch.testing.assert_close(own(), dense(), rtol=1e-4, atol=1e-4)
    seconds = interleaved({"own": own, "dense": dense}, rounds=9 if shape[0] < 4000 else 5)
    found = plan(limits.numpy(), shape[1])
    record(
        benchmark,
        seconds,
        "own",
        shape=shape,
        keep_mass=share,
        kept=round(int(limits.sum()) / w.numel(), 5),
        operations_of_dense=round(found.operations / found.dense, 4),
        time_of_dense=round(seconds["own"] / seconds["dense"], 4),
        memory_of_weight={
            name: round(extra_memory(run) / (4 * w.numel()), 3)
            for name, run in (("own", own), ("dense", dense))
        },
    )
    benchmark.pedantic(own, rounds=3, warmup_rounds=1)
    benchmark.group = "staircase_project"


@pytest.mark.parametrize("shape", SHAPES[1:], ids=str)
def bench_sweep(benchmark, shape):
    w, u_out, u_in = case(*shape)
    staircases = [limits_of(*shape, share) for share in SWEEP]

    def shared():
        components = ops.call("staircase_rotate", w, u_out, u_in, staircases[-1])
        for limits in staircases:
            ops.call("staircase_restore", components, u_out, u_in, limits)

    def each(backend=None):
        for limits in staircases:
            ops.call("staircase_project", w, u_out, u_in, limits, backend=backend)

    candidates = {
        "own": shared,
        "one after the other": each,
        "dense": functools.partial(each, "reference"),
    }
    seconds = interleaved(candidates, rounds=3)
    record(
        benchmark,
        seconds,
        "own",
        shape=shape,
        shares=SWEEP,
        time_of_dense=round(seconds["own"] / seconds["dense"], 4),
    )
    benchmark.pedantic(shared, rounds=1)
    benchmark.group = "staircase_project, a sweep"
