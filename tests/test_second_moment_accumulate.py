"""Every backend of second_moment_accumulate against float64, and on cases that never round."""

from itertools import pairwise

import pytest
import torch
from cases import integers, normal, run
from compare import assert_as_accurate

from curvedit import _C, ops

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HALVES = [torch.bfloat16, torch.float16]
CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
BACKENDS = ops.backends("second_moment_accumulate")
SIZES = [(1, 1), (1, 7), (9, 1), (31, 17), (128, 127), (129, 257)]
INTERPRETED = [(9, 1), (70, 129)]
OFFSETS = torch.tensor(
    [0, 13, 13, 40, 41]
)  # 13 tokens, none, 27, one; the last 4 belong to no sequence

sized = pytest.mark.parametrize(
    ("backend", "m", "n"),
    [(b, *size) for b in BACKENDS for size in (INTERPRETED if b == "triton" else SIZES)],
)
grouped = pytest.mark.parametrize("offsets", [None, OFFSETS], ids=["tokens", "sequences"])
dtyped = pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)


def accumulate(g, a, offsets, backend, start=None):
    out = torch.zeros(g.shape[1], a.shape[1]) if start is None else start.clone()
    _, placed = run("second_moment_accumulate", out, g, a, offsets, backend=backend, device=DEVICE)
    return placed[0].cpu()


def truth_of(g, a, offsets, dtype=torch.float64):
    """Per-sequence gradients, stored, as autograd would have them."""
    bounds = range(len(g) + 1) if offsets is None else offsets.tolist()
    total = torch.zeros(g.shape[1], a.shape[1], dtype=dtype)
    for start, stop in pairwise(bounds):
        total += (g[start:stop].to(dtype).T @ a[start:stop].to(dtype)).square()
    return total


def products(backend, dtype):
    """Truncated products for each of the sum's: float32 input is three, eight at a time."""
    return 1 if dtype in HALVES else 6 * (backend == "triton")


@sized
@grouped
@dtyped
def test_matches_float64(backend, m, n, offsets, dtype):
    g, a = normal(45, m, dtype=dtype), normal(45, n, seed=1, dtype=dtype)
    if backend == "reference" and dtype in HALVES:
        pytest.skip("the reference multiplies in the input's own precision")
    assert_as_accurate(
        accumulate(g, a, offsets, backend),
        truth_of(g, a, offsets, torch.float32),
        truth_of(g, a, offsets),
        truncated=2 * 45 * products(backend, dtype),  # the square doubles what was lost
    )


@sized
@grouped
@dtyped
def test_is_exact_when_nothing_rounds(backend, m, n, offsets, dtype):
    g, a = integers(45, m, dtype=dtype), integers(45, n, seed=1, dtype=dtype)
    start = integers(m, n, seed=2)
    assert torch.equal(
        accumulate(g, a, offsets, backend, start).double(), truth_of(g, a, offsets) + start
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_autograd_of_each_sequence(backend):
    torch.manual_seed(0)
    layer = torch.nn.Linear(6, 5, bias=False).double()
    x, target = torch.randn(41, 6).double(), torch.randn(41, 5).double()
    y = layer(x)
    losses = (y - target).pow(4).sum(1)
    (g,) = torch.autograd.grad(losses.sum(), y, retain_graph=True)
    expected = torch.zeros(5, 6).double()
    for start, stop in pairwise(OFFSETS.tolist()):
        (gradient,) = torch.autograd.grad(losses[start:stop].sum(), layer.weight, retain_graph=True)
        expected += gradient.square()
    got = accumulate(g.float(), x.float(), OFFSETS, backend)
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5 * float(expected.max()))


@pytest.mark.parametrize("backend", BACKENDS)
def test_strides_are_respected(backend):
    g, a = integers(45, 60)[:, ::2], integers(33, 45, seed=1).T
    assert torch.equal(accumulate(g, a, OFFSETS, backend).double(), truth_of(g, a, OFFSETS))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("offsets", [None, torch.tensor([0, 0, 0]), torch.tensor([0])], ids=str)
def test_no_tokens_change_nothing(backend, offsets):
    start = normal(7, 5)
    assert torch.equal(
        accumulate(torch.empty(0, 7), torch.empty(0, 5), offsets, backend, start), start
    )


@pytest.mark.parametrize("instruction_set", _C.instruction_sets("second_moment_accumulate"))
@pytest.mark.parametrize(("m", "n"), [(1, 1), (129, 257), (300, 33)])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    "dtypes", [("float32",) * 2, ("bfloat16",) * 2, ("bfloat16", "float16")], ids=" and ".join
)
def test_every_instruction_set_is_exact_and_stays_inside(instruction_set, m, n, threads, dtypes):
    g, a = (
        integers(700, size, seed=seed, dtype=getattr(torch, dtype))
        for seed, (size, dtype) in enumerate(zip((m, n), dtypes, strict=True))
    )
    offsets = [0, 1, 400, 400, 650, 700]
    memory = torch.full((m * n + 128,), torch.nan)
    out = memory[64 : 64 + m * n].view(m, n).zero_()
    sources = [(x.data_ptr(), CODES[x.dtype], x.shape[1], *x.stride()) for x in (g, a)]
    _C.second_moment_accumulate(out.data_ptr(), *sources, offsets, threads, instruction_set)
    assert torch.equal(out.double(), truth_of(g, a, torch.tensor(offsets)))
    assert memory[:64].isnan().all()
    assert memory[64 + m * n :].isnan().all()


def test_long_sequences_go_in_parts():
    g, a = integers(5000, 1100), integers(5000, 600, seed=1)
    offsets = torch.tensor([0, 4000, 5000])
    assert torch.equal(accumulate(g, a, offsets, "cpp"), accumulate(g, a, offsets, "torch"))


def test_a_planted_fault_is_seen():
    g, a = normal(45, 31), normal(45, 17)
    got = accumulate(g, a, OFFSETS, "cpp")
    wrong = accumulate(g, a, torch.tensor([0, 12, 13, 40, 41]), "cpp")
    assert_as_accurate(got, truth_of(g, a, OFFSETS, g.dtype), truth_of(g, a, OFFSETS))
    with pytest.raises(AssertionError, match="error"):
        assert_as_accurate(wrong, truth_of(g, a, OFFSETS, g.dtype), truth_of(g, a, OFFSETS))
