"""``second_moment_accumulate`` beside gradients that are stored, or made one after the other."""

import pytest
import torch
from cases import normal
from interleave import extra_memory, extra_resident, interleaved, record

from curvedit import ops

SEQUENCES, LENGTH = 64, 128
SETUP = """
import torch
from curvedit import ops
def arguments(sequences):
    tokens = 128 * sequences
    out = torch.zeros({m}, {n}).fill_(0)  # memory that was never written would not be resident
    return out, torch.randn(tokens, {m}), torch.randn(tokens, {n}), 128 * torch.arange(sequences + 1)
given = arguments(64)
ops.call("second_moment_accumulate", torch.zeros(9, 9), *[x[:, :9] for x in given[1:3]], given[3][:2])  # loads code
"""
RUN = 'ops.call("second_moment_accumulate", *given)'


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", [(1376, 512), (2752, 1024)], ids=str)
def bench_second_moment_accumulate(benchmark, shape, threads):
    m, n = shape
    g, a = normal(SEQUENCES * LENGTH, m), normal(SEQUENCES * LENGTH, n, seed=1)
    offsets = torch.arange(SEQUENCES + 1) * LENGTH
    out, others = torch.zeros(m, n), torch.zeros(m, n)
    own = lambda: ops.call("second_moment_accumulate", out, g, a, offsets)  # noqa: E731
    loop = lambda: ops.call("second_moment_accumulate", others, g, a, offsets, backend="torch")  # noqa: E731

    def stored():
        gradients = torch.bmm(g.view(SEQUENCES, LENGTH, m).mT, a.view(SEQUENCES, LENGTH, n))
        return gradients.square_().sum(0)

    own()
    torch.testing.assert_close(out, stored(), rtol=1e-4, atol=1e-4 * float(out.max()))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    product = lambda: g.T @ a  # noqa: E731
    candidates = {
        "own": own,
        "torch, one after the other": loop,
        "torch, stored": stored,
        "one product": product,
    }
    seconds = interleaved(candidates, rounds=7)
    benchmark.pedantic(own, rounds=3, warmup_rounds=1)
    torch.set_num_threads(before)
    flop = 2 * SEQUENCES * LENGTH * m * n
    record(
        benchmark,
        seconds,
        "own",
        shape=shape,
        threads=threads,
        own_gflops=round(flop / seconds["own"] / 1e9, 1),
        extra_bytes={
            "own": extra_resident(SETUP.format(m=m, n=n), RUN),
            "torch, stored": extra_memory(stored),
        },
    )
    benchmark.group = f"second_moment_accumulate, {threads} thread(s)"
