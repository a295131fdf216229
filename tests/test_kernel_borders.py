"""Every op and backend where tensors are empty, lazily negated, strided, shared or extreme."""

import itertools
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases import integers, limits_of, permutation, run

from curvedit import _C, ops
from curvedit.ops import tiles

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def syrk(d=5, tokens=6, groups=None):
    shape = (*(() if groups is None else (groups,)), tiles.tile_count(d), 128, 128)
    weight = integers(tokens, seed=1).abs()
    return {
        "out": torch.ones(shape),
        "x": integers(tokens, d),
        "weight": weight.square(),  # whose roots are whole numbers too
        "offsets": bounds(tokens, groups),
    }


def pair(d=5, tokens=6, groups=None):
    case = syrk(d, tokens, groups)
    mask = (integers(tokens, seed=2) > 0).float()
    return {
        "out": case["out"],
        "out_weighted": case["out"].clone(),
        "x": case["x"],
        "weight": case["weight"],
        "mask": mask,
        "offsets": case["offsets"],
    }


def moments(d_out=4, d_in=5, tokens=6, groups=None):
    return {
        "out": torch.ones(d_out, d_in),
        "g": integers(tokens, d_out),
        "a": integers(tokens, d_in, seed=1),
        "offsets": bounds(tokens, groups),
    }


def bounds(tokens, groups):
    if groups is None:
        return None
    return torch.tensor([tokens * g // max(1, groups) for g in range(groups + 1)])


def spectra():
    lam, mu = torch.tensor([8.0, 4, 2, 2]).double(), torch.tensor([3.0, 1, 1]).double()
    return {"lam": lam, "mu": mu, "keep_mass": 0.6}


def staircase(m=5, n=6, batch=None, share=0.7):
    many = () if batch is None else (batch,)
    return {
        "w": integers(*many, m, n),
        "u_out": permutation(m, 1).expand(*many, m, m).clone(),
        "u_in": permutation(n, 2).expand(*many, n, n).clone(),
        "limits": (limits_of(m, n, share) if m and n else torch.zeros(m).int())
        .expand(*many, m)
        .clone(),
    }


def masked(m=5, n=6):
    case = staircase(m, n)
    del case["limits"]
    mask = torch.arange(m * -(-n // 8), dtype=torch.uint8).mul(73).view(m, -(-n // 8))
    return {**case, "mask": mask}


HALVES = ("staircase_rotate", "staircase_restore")
VALID = {
    "syrk_accumulate": syrk,
    "syrk_accumulate_pair": pair,
    "second_moment_accumulate": moments,
    "staircase_limits": spectra,
    **dict.fromkeys(("staircase_project", *HALVES), staircase),
    "masked_project": masked,
}
OUTPUTS = ("out", "out_weighted")


def results(op, case, backend):
    """What the op returned, or what it made of its outputs."""
    case = {k: v.clone() if k in OUTPUTS else v for k, v in case.items()}
    returned, placed = run(op, *case.values(), backend=backend, device=DEVICE)
    if returned is None:
        placed = dict(zip(case, placed, strict=True))
        return [placed[name].cpu() for name in OUTPUTS if name in placed]
    return [(returned[0] if isinstance(returned, tuple) else returned).cpu()]


def everywhere(*which):
    return pytest.mark.parametrize(
        ("op", "backend"), [(op, b) for op in which or VALID for b in ops.backends(op)]
    )


EMPTY = {
    "syrk_accumulate": {"d": (0, 5), "tokens": (0, 6), "groups": (None, 0, 2)},
    "syrk_accumulate_pair": {"d": (0, 5), "tokens": (0, 6), "groups": (None, 0, 2)},
    "second_moment_accumulate": {
        "d_out": (0, 4),
        "d_in": (0, 5),
        "tokens": (0, 6),
        "groups": (None, 0, 2),
    },
    **{
        op: {"m": (0, 5), "n": (0, 6), "batch": (None, 0, 2)}
        for op in ("staircase_project", *HALVES)
    },
    "masked_project": {"m": (0, 5), "n": (0, 6)},
}


@everywhere(*EMPTY)
def test_nothing_has_a_right_sum(op, backend):
    for sizes in itertools.product(*EMPTY[op].values()):
        case = VALID[op](**dict(zip(EMPTY[op], sizes, strict=True)))
        expected = results(op, case, "reference")
        for got, want in zip(results(op, case, backend), expected, strict=True):
            assert got.shape == want.shape
            assert torch.equal(used(op, got, case), used(op, want, case)), sizes


def used(op, result, case):
    """The part of a result that is read: a packed tile holds more than its matrix."""
    if not op.startswith("syrk"):
        return result
    groups = result if result.ndim == 4 else result[None]
    size = case["x"].shape[1]
    return torch.cat([torch.zeros(0), *(tiles.unpack(x, size).flatten() for x in groups)])


def negated(x):
    return (-x)._neg_view() if x.is_floating_point() else x


def of_a_conjugate(x):
    return torch.complex(x, -x).conj().imag if x.dtype in (torch.float32, torch.float64) else x


def at_an_odd_address(x):
    memory = torch.zeros(x.numel() + 1, dtype=x.dtype)
    return memory[1:].view(x.shape).copy_(x)


def every_second(x):
    return torch.stack([x, torch.full_like(x, 77)], dim=-1)[..., 0] if x.ndim else x


def turned(x):
    return x.mT.contiguous().mT if x.ndim > 1 else x


def far_apart(x):
    if not x.ndim or x.shape[0] > 8:
        return x
    return torch.stack([x, *[torch.full_like(x, 77)] * 3000], dim=1)[:, 0]


VIEWS = [negated, of_a_conjugate, at_an_odd_address, every_second, turned, far_apart]


@everywhere()
@pytest.mark.parametrize("view", VIEWS)
def test_any_view_of_an_input_counts_as_its_values(op, backend, view):
    groups = {"groups": 2} if "accumulate" in op else {}
    case = VALID[op](**groups)
    expected = results(op, case, backend)
    for name, value in case.items():
        if isinstance(value, torch.Tensor) and name not in OUTPUTS:
            changed = {**case, name: view(value)}
            assert torch.equal(changed[name], value)
            for got, want in zip(results(op, changed, backend), expected, strict=True):
                assert torch.equal(got, want), name


@everywhere()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("view", VIEWS)
def test_any_view_in_half_precision(op, backend, dtype, view):
    if "accumulate" not in op:
        return
    case = VALID[op](groups=2)
    case = {k: v.to(dtype) if k in ("x", "g", "a") else v for k, v in case.items()}
    expected = results(op, case, backend)
    for name in {"x", "g", "a"} & set(case):
        for got, want in zip(
            results(op, {**case, name: view(case[name])}, backend), expected, strict=True
        ):
            assert torch.equal(got, want), name


@everywhere(*[op for op in VALID if "accumulate" in op])
def test_one_row_for_all(op, backend):
    """Expanded inputs: every token is the same memory."""
    case = VALID[op]()
    for name in {"x", "g", "a", "weight", "mask"} & set(case):
        case[name] = case[name][:1].expand(case[name].shape)
    plain = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in case.items()}
    for got, want in zip(results(op, case, backend), results(op, plain, backend), strict=True):
        assert torch.equal(got, want)


@everywhere(*[op for op in VALID if "accumulate" in op])
@pytest.mark.parametrize("name", OUTPUTS)
def test_an_output_that_is_lazily_negated_is_refused(op, backend, name):
    case = VALID[op]()
    if name in case:
        case[name] = case[name]._neg_view()
        with pytest.raises(ValueError, match=f"{name}: expected a contiguous tensor, got a lazily"):
            ops.choose(op, *case.values(), backend=backend)


@everywhere("second_moment_accumulate", "syrk_accumulate")
def test_offsets_in_the_memory_of_an_output_are_refused(op, backend):
    case = VALID[op](groups=2)
    case["offsets"] = case["out"].flatten()[:6].view(torch.int64).zero_()
    with pytest.raises(ValueError, match="out: must not share memory with offsets"):
        ops.choose(op, *case.values(), backend=backend)


@pytest.mark.parametrize("op", ["staircase_project", *HALVES, "masked_project"])
@pytest.mark.parametrize(
    ("name", "dtype"), [("w", torch.complex64), ("w", torch.int32), ("u_out", torch.complex64)]
)
def test_weights_and_bases_are_real(op, name, dtype):
    case = VALID[op]()
    case[name] = case[name].to(dtype)
    with pytest.raises(TypeError, match=f"{name}: expected a floating-point dtype, got"):
        ops.choose(op, *case.values())


@pytest.mark.parametrize("column", range(0, 64, 4))
def test_sixteen_columns_of_a_basis_are_sampled(column):
    case = staircase(64, 6)
    case["u_out"][:, column] *= 1.01
    with pytest.raises(ValueError, match="u_out: expected orthonormal columns"):
        ops.choose("staircase_project", *case.values())


@everywhere("staircase_project", *HALVES, "masked_project")
@pytest.mark.parametrize("kept", ["all", "nothing"])
def test_a_result_is_memory_of_its_own(op, backend, kept):
    case = VALID[op]()
    chosen = case["mask" if op == "masked_project" else "limits"]
    full = 255 if op == "masked_project" else case["w"].shape[1]
    chosen.fill_(full if kept == "all" else 0)
    inputs = {name: value.clone() for name, value in case.items()}
    (result,) = results(op, case, backend)
    result += 1
    for name, value in inputs.items():
        assert torch.equal(case[name], value), name


@pytest.mark.parametrize("backend", ops.backends("staircase_limits"))
@pytest.mark.parametrize(
    "scale", [(1e200, 1e200), (1e-200, 1e-200), (1e300, 1e-300), (1e-290, 1e-30), (1e308, 1e308)]
)
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95, 1.0])
def test_only_ratios_of_eigenvalues_count(backend, scale, share):
    lam, mu = (torch.arange(1, size + 1).double() ** -1.3 for size in (37, 20))
    powers = [2.0 ** round(math.log2(each)) for each in scale]
    large = [side * power for side, power in zip((lam, mu), powers, strict=True)]
    plain = ops.call("staircase_limits", lam, mu, share, backend=backend)
    found = ops.call("staircase_limits", *large, share, backend=backend)
    assert torch.equal(found[0], plain[0])
    assert found[2:] == plain[2:]
    threshold = plain[1] * powers[0]
    assert found[1] == min(max(threshold * powers[1], 5e-324), 1.7976931348623157e308)


@pytest.mark.parametrize("backend", ops.backends("staircase_limits"))
def test_infinite_eigenvalues_are_refused(backend):
    for values in ([math.inf, 1.0], [math.inf, math.inf], [math.nan, 1.0]):
        bad = torch.tensor(values).double()
        with pytest.raises(ValueError, match="lam: expected finite values"):
            ops.choose("staircase_limits", bad, torch.ones(2).double(), 0.5, backend=backend)


CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


@pytest.mark.parametrize("dtype", CODES, ids=str)
@pytest.mark.parametrize("view", [at_an_odd_address, every_second, turned])
@pytest.mark.parametrize("instruction_set", _C.instruction_sets("syrk_accumulate"))
def test_every_instruction_set_reads_any_address(instruction_set, view, dtype):
    x, plain = view(integers(70, 130, dtype=dtype)), integers(70, 130).double()
    out = tiles.zeros(130)
    source = (x.data_ptr(), CODES[dtype], 130, *x.stride())
    _C.syrk_accumulate([(out.data_ptr(), 0)], *source, [0, 70], 2, instruction_set)
    assert torch.equal(tiles.unpack(out, 130).double(), plain.T @ plain)
    if instruction_set in _C.instruction_sets("second_moment_accumulate"):
        out = torch.zeros(130, 130)
        _C.second_moment_accumulate(out.data_ptr(), source, source, [0, 70], 2, instruction_set)
        assert torch.equal(out.double(), (plain.T @ plain).square())


def test_scratch_memory_need_not_be_zero():
    """glibc fills what the compiled kernels allocate, as torch.empty is filled in every test."""
    code = """
import torch
from cases import integers
from curvedit import _C, ops
from curvedit.ops import tiles
x, weight, bounds = integers(37, 141), integers(37, seed=1).square(), torch.tensor([0, 30, 37])
for offsets, groups in ((None, ()), (bounds, (2,))):
    for weights in (None, weight):
        sums = [torch.zeros(*groups, 3, 128, 128) for _ in range(2)]
        for out, backend in zip(sums, ("cpp", "reference")):
            ops.call("syrk_accumulate", out, x, weights, offsets, backend=backend)
        got, want = ([tiles.unpack(t, 141) for t in s.reshape(-1, 3, 128, 128)] for s in sums)
        assert all(map(torch.equal, got, want)), (offsets, weights)
sums = [torch.zeros(141, 19) for _ in range(2)]
for out, backend in zip(sums, ("cpp", "reference")):
    ops.call("second_moment_accumulate", out, x, x[:, :19], bounds, backend=backend)
assert torch.equal(*sums)
"""
    filled = {"MALLOC_PERTURB_": "1", "MALLOC_MMAP_THRESHOLD_": str(1 << 30)}
    command = [sys.executable, "-c", code]
    here = Path(__file__).parent
    done = subprocess.run(command, cwd=here, env=os.environ | filled, check=False)
    assert done.returncode == 0


def test_memory_of_every_kind_is_nan_until_written():
    """What the fixture relies on: in Python, in torch's own kernels, and for integers."""
    assert torch.empty(3, dtype=torch.bfloat16).isnan().all()
    assert torch.ones(2, 3).new_empty(4).isnan().all()
    assert torch.empty_like(torch.ones(2, 3).mT, dtype=torch.float64).isnan().all()
    assert (torch.empty(3, dtype=torch.int32) == torch.iinfo(torch.int32).max).all()
