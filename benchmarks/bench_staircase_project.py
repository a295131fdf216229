"""``staircase_project`` beside the four dense products, on the staircases of 1/i spectra.

Also a sweep over ten shares.
"""

import functools
from collections import deque
from functools import partial

import pytest
import torch
from cases import limits_of, normal
from interleave import extra_memory, interleaved, record

from curvedit import ops
from curvedit.bench import Reflections, rivals
from curvedit.ops import plan

SHAPES = [(1376, 512), (2752, 1024), (5504, 2048)]
SWEEP = [share / 100 for share in range(50, 100, 5)]
TOLERANCE = 1e-4  # of the largest element


@functools.cache
def case(m, n):
    """A weight, and bases with which its true projection is cheap."""
    reflections = Reflections.draw(m, n, torch.device("cpu"))
    return normal(m, n), *reflections.bases(), reflections


def exhaust(sweep):
    """Run a sweep, and drop each result before the next is computed."""
    deque(sweep(), maxlen=0)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.8, 0.9, 0.95, 0.97, 0.99, 0.999])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def bench_shares(benchmark, shape, share):
    w, u_out, u_in, reflections = case(*shape)
    limits = limits_of(*shape, share)
    arguments = (w, u_out, u_in, limits)
    chosen = ops.choose("staircase_project", *arguments)
    own, dense = partial(chosen, *arguments), rivals.four_dense_products(*arguments)
    for run in (own, dense):  # right before timed
        assert reflections.error(run(), w, limits) < TOLERANCE

    benchmark.group = "staircase_project"
    seconds = interleaved({"own": own, "dense": dense}, rounds=9 if shape[0] < 4000 else 5)
    found = plan(limits.numpy(), shape[1])
    record(
        benchmark,
        seconds,
        "own",
        backend=chosen.label,
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


@pytest.mark.parametrize("shape", SHAPES[1:], ids=str)
def bench_sweep(benchmark, shape):
    w, u_out, u_in, reflections = case(*shape)
    staircases = [limits_of(*shape, share) for share in SWEEP]

    def shared():
        components = ops.call("staircase_rotate", w, u_out, u_in, staircases[-1])
        for limits in staircases:
            yield ops.call("staircase_restore", components, u_out, u_in, limits)

    def each():
        for limits in staircases:
            yield ops.call("staircase_project", w, u_out, u_in, limits)

    def dense():
        for limits in staircases:
            yield rivals.four_dense_products(w, u_out, u_in, limits)()

    sweeps = {"own": shared, "one after the other": each, "dense": dense}
    for sweep in sweeps.values():  # right before timed
        for result, limits in zip(sweep(), staircases, strict=True):
            assert reflections.error(result, w, limits) < TOLERANCE
    candidates = {name: partial(exhaust, sweep) for name, sweep in sweeps.items()}
    benchmark.group = "staircase_project, a sweep"
    seconds = interleaved(candidates, rounds=3)
    record(
        benchmark,
        seconds,
        "own",
        shape=shape,
        shares=SWEEP,
        time_of_dense=round(seconds["own"] / seconds["dense"], 4),
    )
    benchmark.pedantic(candidates["own"], rounds=1)
