"""The kernels on a real GPU: exact where nothing rounds, close to float64 elsewhere.

Every backend that can run there is run, also those that a call must name. Each test goes through
all of its sizes and reports those that failed. ``CURVEDIT_REHEARSE=1`` runs the same on a CPU.
"""

import itertools
import math

import numpy as np
import pytest
import torch
from gpu_cases import (
    DEVICE,
    DTYPES,
    HAS_GPU,
    IS_REHEARSED,
    LAYOUTS,
    SHAPES,
    SHARES,
    SIZES,
    Guarded,
    bounds,
    draw,
    errors,
    laid_out,
    moment_truth,
    staircase,
    syrk_truth,
    weights,
)

from curvedit import ops
from curvedit.doctor import truncation
from curvedit.kernels import staircase_project_plan as staircase_plan
from curvedit.kernels import staircase_project_ref as staircase_reference

pytestmark = pytest.mark.skipif(not (HAS_GPU or IS_REHEARSED), reason="needs a GPU")
on_gpu_only = pytest.mark.skipif(not HAS_GPU, reason="needs a GPU")


def backends(*names):
    """Marks a test for every backend of these ops that has a chance here."""
    other = {"cpp"} if HAS_GPU else {"cuda", "wgmma"}
    pairs = [(op, each) for op in names for each in ops.backends(op) if each not in other]
    return pytest.mark.parametrize(("op", "backend"), pairs)


dtyped = pytest.mark.parametrize("dtype", DTYPES, ids=str)
SUMS = ("syrk_accumulate", "syrk_accumulate_pair")
PROJECTIONS = ("staircase_project", "staircase_rotate", "staircase_restore", "masked_project")


class Report:
    """Collects what failed, so that one test reports all of its sizes."""

    def __init__(self):
        self.lines, self.count = [], 0

    def add(self, condition, *what):
        self.count += 1
        if not condition:
            self.lines.append(" ".join(map(str, what)))

    def done(self):
        if not self.count:
            pytest.skip("the backend takes none of these arguments")
        assert not self.lines, "\n".join(
            [f"{len(self.lines)} of {self.count} failed:", *self.lines[:40]]
        )


def runs(op, backend, arguments):
    return ops.explain(op, *arguments)[backend] == ""


def syrk_case(op, tokens, d, dtype, *, weighted, grouped, layout, integer):
    """Outputs, arguments, and the weights of each output."""
    x = draw(tokens, d, seed=1, integer=integer, dtype=dtype)
    weight, offsets = weights(tokens, integer=integer), bounds(tokens) if grouped else None
    groups = len(offsets) - 1 if grouped else None
    mask = (torch.arange(tokens, device=DEVICE) % 3 > 0).float()
    of = [mask, weight] if op.endswith("pair") else [weight if weighted else None]
    used = [torch.ones(tokens, device=DEVICE) if each is None else each for each in of]
    x[torch.stack(used).amax(0) == 0] = torch.nan  # tokens that nothing counts
    outs = [Guarded(d, groups) for _ in of]
    given = (weight, mask) if op.endswith("pair") else (of[0],)
    arguments = (*(each.out for each in outs), laid_out(x, layout), *given, offsets)
    return outs, arguments, of


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@backends(*SUMS)
@dtyped
def test_sums(op, backend, dtype, weighted, grouped):
    if op.endswith("pair") and not weighted:
        pytest.skip("one of its sums is weighted")
    report = Report()
    for (number, (tokens, d)), integer in itertools.product(enumerate(SIZES), (True, False)):
        layout = LAYOUTS[number % 3]
        options = {"weighted": weighted, "grouped": grouped, "layout": layout, "integer": integer}
        outs, arguments, of = syrk_case(op, tokens, d, dtype, **options)
        if not runs(op, backend, arguments):
            continue
        ops.call(op, *arguments, backend=backend)
        x = arguments[len(outs)]
        for out, weight in zip(outs, of, strict=True):
            is_split = backend == "wgmma" and splits(x, weight)
            said, good = judged(
                out.sums(), x, weight, arguments[-1], exact=integer, is_split=is_split
            )
            report.add(good, (tokens, d), layout, "integers" if integer else "real", said)
    report.done()


def splits(x, weight):
    """Whether Hopper's kernel takes these tokens as sums of two bfloat16 numbers."""
    return x.dtype == torch.float32 or (x.dtype == torch.float16 and weight is not None)


def judged(got, x, weight, offsets, *, exact, is_split):
    """What there is to say of a sum, and whether it is right."""
    truth = syrk_truth(x, weight, offsets)
    ours = errors(got, truth)
    if exact:
        wrong = int((got != truth).sum())
        return f"{wrong} of {truth.numel()} wrong, errors {ours}", not wrong
    plain = errors(syrk_truth(x, weight, offsets, torch.float32), truth)
    halves = x.dtype != torch.float32
    lost = truncation(len(x)) if halves else math.sqrt(len(x)) * 2.0**-24
    if is_split:
        lost = truncation(3 * len(x)) + 2.0**-16
    lost += 2.0**-22  # the start of 1 rounds too
    good = all(a <= 2 * b + lost for a, b in zip(ours, plain, strict=True))
    return f"errors {ours}, of torch {plain}, allowed beside {lost:.1e}", good


@pytest.mark.parametrize("grouped", [False, True])
@dtyped
@backends("second_moment_accumulate")
def test_second_moments(op, backend, dtype, grouped):
    report = Report()
    for (number, (tokens, m)), integer in itertools.product(enumerate(SIZES), (True, False)):
        n = SIZES[(number + 3) % len(SIZES)][1]
        g, a = (
            laid_out(draw(tokens, d, seed=d, integer=integer, dtype=dtype), LAYOUTS[at % 3])
            for at, d in ((number, m), (number + 1, n))
        )
        out, offsets = torch.ones(m, n, device=DEVICE), bounds(tokens) if grouped else None
        too_long = tokens > (
            300 if backend == "reference" else 4097 if grouped and integer else 1e9
        )
        if not too_long and runs(op, backend, (out, g, a, offsets)):  # squares stay below 2^24
            ops.call(op, out, g, a, offsets, backend=backend)
            truth = moment_truth(g, a, offsets)
            plain = errors(moment_truth(g, a, offsets, torch.float32), truth)
            ours = errors(out.double() - 1, truth)
            # the square doubles what is lost; 3xTF32 makes three products, eight at a time
            lost = 2 * truncation(tokens * (1 if dtype != torch.float32 else 6)) + 2.0**-21
            limit = 0 if integer else lost
            good = all(a <= 2 * b * (not integer) + limit for a, b in zip(ours, plain, strict=True))
            name = (tokens, m, n, "integers" if integer else "real")
            report.add(good, name, f"errors {ours}, of torch {plain}, lost {lost:.1e}")
    report.done()


def projection(op, m, n, share, *, integer, dtype):
    """Arguments, and the truth in float64 and in float32."""
    w, u_out, u_in, limits = staircase(m, n, share, integer=integer, dtype=dtype)
    kept = torch.arange(n, device=DEVICE) < limits[:, None]
    truths = []
    for as_ in (torch.float64, torch.float32):
        components = (u_out.to(as_).mT @ w.to(as_) @ u_in.to(as_)) * kept
        back = u_out.to(as_) @ components @ u_in.to(as_).mT
        truths.append(components if op == "staircase_rotate" else back)
    which = limits
    if op == "masked_project":
        which = torch.from_numpy(np.packbits(kept.cpu().numpy(), axis=1)).to(DEVICE)
    if op == "staircase_restore":
        w = ((u_out.double().mT @ w.double() @ u_in.double()) * kept).to(w.dtype)
        back = (each @ (w.to(each.dtype) * kept) for each in (u_out.double(), u_out))
        truths = [each @ u_in.to(each.dtype).mT for each in back]
    return (w, u_out, u_in, which), truths


@dtyped
@backends(*PROJECTIONS)
def test_projections(op, backend, dtype, monkeypatch):
    monkeypatch.setattr(staircase_plan, "_OVERHEAD", -1e30)  # small matrices follow plans too
    if op == "staircase_restore" and dtype != torch.float32:
        pytest.skip("components have the bases' dtype")
    report = Report()
    shapes = SHAPES if dtype == torch.float32 else SHAPES[-3:]
    for (m, n), share, integer in itertools.product(shapes, SHARES, (True, False)):
        arguments, (truth, plain) = projection(op, m, n, share, integer=integer, dtype=dtype)
        if runs(op, backend, arguments):
            got = ops.call(op, *arguments, backend=backend)
            off, base = ((each.double() - truth).abs().max() for each in (got, plain))
            largest = float(arguments[0].double().abs().max())
            bound = 4 * base + largest * (1e-6 + truncation(6 * (m + n)))
            good = off <= bound * (not integer) and bool(got.isfinite().all())
            name = (m, n, share, "integers" if integer else "real")
            report.add(good, name, f"off by {off:.1e}, torch {base:.1e}, of {largest:.1e}")
    report.done()


@backends("staircase_project")
def test_a_batch_has_staircases_of_its_own(op, backend):
    cases = [staircase(264, 136, share, integer=True) for share in SHARES]
    arguments = tuple(map(torch.stack, zip(*cases, strict=True)))
    truth = staircase_reference.staircase_project(*(each.double() for each in arguments))
    assert torch.equal(ops.call(op, *arguments, backend=backend).double(), truth)


@on_gpu_only
def test_limits_are_those_of_the_cpu():
    lam, mu = (torch.arange(1, n + 1).double() ** -0.7 for n in (300, 1000))
    for share in SHARES:
        ours = ops.call("staircase_limits", lam.to(DEVICE), mu.to(DEVICE), share)
        expected = ops.call("staircase_limits", lam, mu, share, backend="reference")
        assert torch.equal(ours[0].cpu(), expected[0])
        assert ours[1:3] == expected[1:3]


def queued(op, dtype, tokens=4097, d=520):
    """An op's outputs and arguments, real numbers, without values that the host must read."""
    if op in SUMS:
        options = {"weighted": False, "grouped": False, "layout": "whole", "integer": False}
        outs, arguments, _ = syrk_case(op, tokens, d, dtype, **options)
        return [each.out for each in outs], arguments
    if op == "second_moment_accumulate":
        g, a = (draw(tokens, d, seed=s, integer=False, dtype=dtype) for s in (1, 2))
        out = torch.zeros(d, d, device=DEVICE)
        return [out], (out, g, a)
    arguments, _ = projection(op, d, d // 2, 0.8, integer=False, dtype=torch.float32)
    return [], arguments


@dtyped
@backends(*SUMS, "second_moment_accumulate", *PROJECTIONS)
def test_two_runs_are_bit_identical(op, backend, dtype):
    found, sizes = [], [(4097, 520), (20000, 128)] if HAS_GPU else [(65, 130)]
    for tokens, d in sizes:
        for _ in range(2):
            outs, arguments = queued(op, dtype, tokens, d)
            if not runs(op, backend, arguments):
                pytest.skip(ops.explain(op, *arguments)[backend])
            returned = ops.call(op, *arguments, backend=backend)
            found.append([each.nan_to_num() for each in outs or [returned]])
        one, other = found[-2:]
        assert all(map(torch.equal, one, other))


@on_gpu_only
@backends(*SUMS, "second_moment_accumulate", *PROJECTIONS)
def test_work_is_queued_on_the_current_stream(op, backend):
    """The input arrives late, on the same stream: a kernel on another one would read NaN."""
    outs, arguments = queued(op, torch.bfloat16 if backend != "reference" else torch.float32)
    if not runs(op, backend, arguments):
        pytest.skip(ops.explain(op, *arguments)[backend])
    run = ops.choose(op, *arguments, backend=backend)
    starts, late = [each.clone() for each in outs], arguments[len(outs)]
    expected = [each.nan_to_num() for each in [run(*arguments), *outs] if each is not None]
    values = late.clone()
    for out, start in zip(outs, starts, strict=True):
        out.copy_(start)
    late.fill_(torch.nan)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(200_000_000)
        late.copy_(values)
        returned = run(*arguments)
    side.synchronize()
    found = [each.nan_to_num() for each in [returned, *outs] if each is not None]
    assert all(map(torch.equal, found, expected))


@on_gpu_only
@backends(*SUMS, "second_moment_accumulate")
def test_a_graph_replays_it(op, backend):
    if backend == "reference":
        pytest.skip("the reference waits for the device")
    outs, arguments = queued(op, torch.bfloat16)
    if not runs(op, backend, arguments):
        pytest.skip(ops.explain(op, *arguments)[backend])
    run = ops.choose(op, *arguments, backend=backend)
    starts = [each.clone() for each in outs]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run(*arguments)
    torch.cuda.current_stream().wait_stream(side)
    once = [each.clone() for each in outs]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run(*arguments)
    for _ in range(2):
        for out, start in zip(outs, starts, strict=True):
            out.copy_(start)
        graph.replay()
        torch.cuda.synchronize()
        for out, want in zip(outs, once, strict=True):
            assert torch.equal(out.nan_to_num(), want.nan_to_num())
