"""The kernels as torch operators: schemas, fake implementations, torch.compile."""

import pytest
import torch
from cases import limits_of, normal, orthogonal

import curvedit  # noqa: F401 - registers the operators
from curvedit.kernels import tiles

ops = torch.ops.curvedit
D, TOKENS = 130, 40
OFFSETS = torch.tensor([0, 13, 13, 40])


def spectrum(size):
    return torch.arange(size, 0, -1, dtype=torch.float64)


def groups():
    return tiles.zeros(D).expand(3, -1, -1, -1).contiguous()


CASES = {
    "plain": (ops.syrk_accumulate, lambda: (tiles.zeros(D), normal(TOKENS, D))),
    "weighted, grouped": (
        ops.syrk_accumulate,
        lambda: (groups(), normal(TOKENS, D).bfloat16(), torch.rand(TOKENS), OFFSETS),
    ),
    "pair": (
        ops.syrk_accumulate_pair,
        lambda: (
            tiles.zeros(D),
            tiles.zeros(D),
            normal(TOKENS, D),
            torch.rand(TOKENS),
            torch.ones(TOKENS),
        ),
    ),
    "second moments": (
        ops.second_moment_accumulate,
        lambda: (torch.zeros(12, 9), normal(TOKENS, 12), normal(TOKENS, 9), OFFSETS),
    ),
    "limits": (ops.staircase_limits, lambda: (spectrum(12), spectrum(9), 0.6)),
    "projection": (
        ops.staircase_project,
        lambda: (normal(12, 9), orthogonal(12), orthogonal(9), limits_of(12, 9, 0.6)),
    ),
    "forward half": (
        ops.staircase_rotate,
        lambda: (normal(12, 9), orthogonal(12), orthogonal(9), limits_of(12, 9, 0.6)),
    ),
    "back half": (
        ops.staircase_restore,
        lambda: (normal(12, 9), orthogonal(12), orthogonal(9), limits_of(12, 9, 0.6)),
    ),
    "mask": (
        ops.masked_project,
        lambda: (
            normal(12, 9),
            orthogonal(12),
            orthogonal(9),
            torch.full((12, 2), 0x5A, dtype=torch.uint8),
        ),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_opcheck(case):
    op, arguments = CASES[case]
    torch.library.opcheck(op.default, arguments())


@pytest.mark.parametrize("case", CASES)
def test_runs_compiled(case):
    op, arguments = CASES[case]
    torch._dynamo.reset()  # one code object for all cases: each would count as a recompilation
    torch.manual_seed(0)
    expected = arguments()
    got = [a.clone() if isinstance(a, torch.Tensor) else a for a in expected]
    returned = op(*expected)
    compiled = torch.compile(lambda *a: op(*a), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*got), returned, rtol=0, atol=0)
    torch.testing.assert_close(got, list(expected), rtol=0, atol=0)


def test_shapes_are_refused_without_running():
    out, x = tiles.zeros(D, device="meta"), torch.empty(TOKENS, 3 * D, device="meta")
    with pytest.raises(
        ValueError, match=r"out: expected shape \(10, 128, 128\), got \(3, 128, 128\)"
    ):
        ops.syrk_accumulate(out, x)
