"""``second_moment_accumulate`` beside gradients that are stored, or made one after the other."""

from functools import partial

import pytest
import torch
from cases import normal
from interleave import extra_memory, extra_resident, interleaved, record, torch_threads

from curvedit import ops
from curvedit.bench import rivals, second_moment_error

SEQUENCES, LENGTH = 64, 128
TOLERANCE = 1e-4  # relative
# filled: memory that was never written would not be resident; the small call loads the code
SETUP = """
import torch
from curvedit import ops
out = torch.zeros({m}, {n}).fill_(0)
g, a = torch.randn({tokens}, {m}), torch.randn({tokens}, {n})
offsets = torch.arange(0, {tokens} + 1, {length})
ops.call("second_moment_accumulate", torch.zeros(9, 9), g[:, :9], a[:, :9], offsets)
"""
RUN = 'ops.call("second_moment_accumulate", out, g, a, offsets)'


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", [(1376, 512), (2752, 1024)], ids=str)
def bench_sequences(benchmark, shape, threads):
    m, n = shape
    tokens = SEQUENCES * LENGTH
    g, a = normal(tokens, m), normal(tokens, n, seed=1)
    offsets = torch.arange(SEQUENCES + 1) * LENGTH
    out, looped = torch.zeros(m, n), torch.zeros(m, n)
    arguments = ("second_moment_accumulate", out, g, a, offsets)
    own = ops.choose(*arguments)
    stored = rivals.stored_gradients(g, a, LENGTH)
    others = ("second_moment_accumulate", looped, g, a, offsets)
    candidates = {
        "own": partial(own, *arguments[1:]),
        "torch, one after the other": partial(ops.choose(*others, backend="torch"), *others[1:]),
        "torch, stored": stored,
        "one product": rivals.one_product(g, a),
    }
    halves = (torch.zeros(m, n), g.bfloat16(), a.bfloat16(), offsets)
    own_halves = ops.choose(arguments[0], *halves)
    candidates["own, bfloat16"] = partial(own_halves, *halves)
    candidates["own, bfloat16"]()
    assert second_moment_error(halves[0], *(x.float() for x in halves[1:3]), LENGTH) < TOLERANCE
    candidates["own"]()
    candidates["torch, one after the other"]()
    for result in (out, looped, stored()):  # right before timed
        assert second_moment_error(result, g, a, LENGTH) < TOLERANCE

    benchmark.group = f"second_moment_accumulate, {threads} thread(s)"
    with torch_threads(threads):
        seconds = interleaved(candidates, rounds=7)
        benchmark.pedantic(candidates["own"], rounds=3, warmup_rounds=1)
    setup = SETUP.format(m=m, n=n, tokens=tokens, length=LENGTH)
    record(
        benchmark,
        seconds,
        "own",
        backends={"own": own.label, "own, bfloat16": own_halves.label},
        shape=shape,
        threads=threads,
        own_gflops=round(2 * tokens * m * n / seconds["own"] / 1e9, 1),
        extra_bytes={
            "own": extra_resident(setup, RUN),
            "torch, stored": extra_memory(stored),
        },
    )
