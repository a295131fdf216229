"""One contract per op: every backend refuses the same arguments with the same message."""

import numpy as np
import pytest
import torch

from curvedit import ops
from curvedit.ops import tiles

NAN = float("nan")


def syrk():
    return {"out": tiles.zeros(3), "x": torch.ones(4, 3), "weight": torch.ones(4), "offsets": None}


def pair():
    case = {"out": tiles.zeros(3), "out_weighted": tiles.zeros(3), "x": torch.ones(4, 3)}
    return {**case, "weight": torch.ones(4), "mask": torch.ones(4), "offsets": None}


def second_moment():
    case = {"out": torch.zeros(4, 5), "g": torch.ones(6, 4), "a": torch.ones(6, 5)}
    return {**case, "offsets": torch.tensor([0, 6])}


def limits():
    return {"lam": torch.ones(3).double(), "mu": torch.ones(4).double(), "keep_mass": 0.5}


def staircase():
    case = {"w": torch.ones(3, 4), "u_out": torch.eye(3), "u_in": torch.eye(4)}
    return {**case, "limits": torch.tensor([2, 1, 0])}


def mask():
    case = {"w": torch.ones(3, 4), "u_out": torch.eye(3), "u_in": torch.eye(4)}
    return {**case, "mask": torch.zeros(3, 1, dtype=torch.uint8)}


def overlapping():
    memory = tiles.zeros(3)
    return {"out": memory, "x": memory[0, :4, :3]}


def shared_sums():
    memory = tiles.zeros(3)
    return {"out": memory, "out_weighted": memory}


def shared_moments():
    memory = torch.zeros(6, 5)
    return {"out": memory[:4], "a": memory}


def grouped(*bounds):
    groups = len(bounds) - 1
    return {"offsets": torch.tensor(bounds), "out": torch.zeros(groups, 1, 128, 128)}


# Changes to a valid case, the error that they cause, and its message.
SYRK = [
    ({"x": torch.ones(4)}, ValueError, r"x: expected shape \(tokens, d\), got \(4,\)"),
    ({"x": torch.ones(4, 3).double()}, TypeError, "x: expected one of"),
    (
        {"x": torch.ones(4, 3, device="meta")},
        ValueError,
        "expected a tensor on meta, as x, got cpu",
    ),
    ({"out": tiles.zeros(3, device="meta")}, ValueError, "out: expected a tensor on cpu, as x"),
    ({"x": torch.ones(4, 200)}, ValueError, r"out: expected shape \(3, 128, 128\), got \(1, 128"),
    ({"out": tiles.zeros(3).double()}, TypeError, "out: expected one of"),
    ({"out": tiles.zeros(3).mT}, ValueError, "out: expected a contiguous tensor"),
    ({"weight": torch.ones(3)}, ValueError, r"weight: expected shape \(4,\), got \(3,\)"),
    ({"weight": torch.tensor([1, -1, 1, 1.0])}, ValueError, "weight: expected values >= 0, got -1"),
    ({"weight": torch.tensor([1, NAN, 1, 1])}, ValueError, "weight: expected finite values, got 1"),
    ({"weight": torch.ones(4).double()}, TypeError, "weight: expected one of"),
    ({"offsets": torch.tensor([0, 4])}, ValueError, r"out: expected shape \(1, 1, 128, 128\)"),
    ({"offsets": torch.tensor([0.0, 4])}, TypeError, "offsets: expected one of"),
    ({"offsets": torch.zeros(0).long()}, ValueError, r"offsets: expected shape \(groups \+ 1,\)"),
    (grouped(0, 3, 2), ValueError, "offsets: expected ascending numbers from 0 to 4"),
    (grouped(0, 5), ValueError, "offsets: expected ascending numbers from 0 to 4"),
    (grouped(-1, 4), ValueError, "offsets: expected ascending numbers from 0 to 4"),
]
BASES = [
    ({"u_in": torch.eye(3)}, ValueError, r"u_in: expected shape \(4, 4\)"),
    ({"u_out": torch.eye(4)}, ValueError, r"u_out: expected shape \(3, 3\)"),
    ({"w": torch.ones(3)}, ValueError, r"w: expected shape \(d_out, d_in\)"),
    ({"u_in": torch.eye(4).double()}, TypeError, "u_in: expected dtype torch.float32, as u_out"),
    ({"w": torch.full((3, 4), NAN)}, ValueError, "w: expected finite values, got 12 that are not"),
    ({"u_in": torch.eye(4) * 1.01}, ValueError, "u_in: expected orthonormal columns to 0.001"),
    ({"u_out": torch.ones(3, 3)}, ValueError, "u_out: expected orthonormal columns"),
    ({"u_out": torch.full((3, 3), NAN)}, ValueError, "u_out: expected orthonormal columns"),
    ({"u_out": torch.eye(3, device="meta")}, ValueError, "u_out: expected a tensor on cpu, as w"),
]
LIMITS = [
    ({"limits": torch.tensor([1, 2, 0])}, ValueError, "limits: expected non-increasing"),
    ({"limits": torch.tensor([5, 2, 0])}, ValueError, r"non-increasing numbers in \[0, 4\]"),
    ({"limits": torch.tensor([2, 1, -1])}, ValueError, r"non-increasing numbers in \[0, 4\]"),
    ({"limits": torch.tensor([2, 1])}, ValueError, r"limits: expected shape \(3,\), got \(2,\)"),
    ({"limits": torch.ones(3)}, TypeError, "limits: expected integers, got torch.float32"),
]
REFUSED = {
    "syrk_accumulate": (
        syrk,
        [*SYRK, (overlapping(), ValueError, "out: must not share memory with x")],
    ),
    "syrk_accumulate_pair": (
        pair,
        [
            *[entry for entry in SYRK if not ({"offsets", "out"} <= set(entry[0]))],
            ({"mask": -torch.ones(4)}, ValueError, "mask: expected values >= 0, got -1"),
            ({"out_weighted": tiles.zeros(200)}, ValueError, "out_weighted: expected shape"),
            (overlapping(), ValueError, "out: must not share memory with x"),
            (shared_sums(), ValueError, "out: must not share memory with out_weighted"),
        ],
    ),
    "second_moment_accumulate": (
        second_moment,
        [
            ({"g": torch.ones(3, 4)}, ValueError, r"g, a: expected shapes \(tokens, d_out\)"),
            ({"out": torch.ones(4, 3)}, ValueError, r"out: expected shape \(4, 5\), got \(4, 3\)"),
            ({"out": torch.ones(5, 4).T}, ValueError, "out: expected a contiguous tensor"),
            ({"out": torch.ones(4, 5).double()}, TypeError, "out: expected one of"),
            ({"g": torch.ones(6, 4).double()}, TypeError, "g: expected one of"),
            ({"a": torch.ones(6, 5).half()}, TypeError, r"a: expected one of \[torch.float32\]"),
            ({"a": torch.ones(6, 5, device="meta")}, ValueError, "a: expected a tensor on cpu"),
            ({"offsets": torch.tensor([0, 7])}, ValueError, "offsets: expected ascending numbers"),
            ({"offsets": torch.tensor([0, 4, 2])}, ValueError, "offsets: expected ascending"),
            ({"offsets": torch.tensor([0.0, 2.0])}, TypeError, "offsets: expected one of"),
            ({"offsets": torch.zeros(1, 2).long()}, ValueError, r"offsets: expected shape \(seq"),
            (shared_moments(), ValueError, "out: must not share memory with a"),
        ],
    ),
    "staircase_limits": (
        limits,
        [
            ({"lam": torch.ones(3)}, TypeError, "lam: expected one of"),
            ({"mu": torch.ones(0).double()}, ValueError, r"mu: expected shape \(n,\)"),
            ({"mu": torch.ones(2, 2).double()}, ValueError, r"mu: expected shape \(n,\)"),
            ({"lam": torch.tensor([1, 2]).double()}, ValueError, "lam: expected descending"),
            ({"lam": torch.tensor([1, -1]).double()}, ValueError, "lam: expected descending"),
            ({"mu": torch.tensor([1, NAN]).double()}, ValueError, "mu: expected finite values"),
            ({"mu": torch.ones(2, device="meta").double()}, ValueError, "mu: expected a tensor on"),
            ({"keep_mass": 0.0}, ValueError, r"keep_mass: expected a number in \(0, 1\]"),
            ({"keep_mass": 1.5}, ValueError, r"keep_mass: expected a number in \(0, 1\]"),
            ({"keep_mass": NAN}, ValueError, r"keep_mass: expected a number in \(0, 1\]"),
        ],
    ),
    **{
        op: (staircase, [*BASES, *LIMITS])
        for op in ("staircase_project", "staircase_rotate", "staircase_restore")
    },
    "masked_project": (
        mask,
        [
            *BASES,
            ({"mask": torch.zeros(3, 2).byte()}, ValueError, r"mask: expected shape \(3, 1\)"),
            ({"mask": torch.zeros(3, 1).int()}, TypeError, "mask: expected torch.uint8"),
            ({"w": torch.ones(2, 3, 4)}, ValueError, r"w: expected shape \(d_out, d_in\)"),
        ],
    ),
}
EVERY = [
    pytest.param(op, backend, number, id=f"{op}-{backend}-{number}")
    for op, (_, entries) in REFUSED.items()
    for backend in ops.backends(op)
    for number in range(len(entries))
]


def test_every_op_is_here():
    assert set(REFUSED) == set(ops.operations())
    for op, (sound, _) in REFUSED.items():
        ops.choose(op, *sound().values())  # the unchanged case is accepted


@pytest.mark.parametrize(("op", "backend", "number"), EVERY)
def test_refuses(op, backend, number):
    sound, entries = REFUSED[op]
    change, error, message = entries[number]
    with pytest.raises(error, match=message):
        ops.choose(op, *{**sound(), **change}.values(), backend=backend)


@pytest.mark.parametrize("op", REFUSED)
def test_nothing_is_written_before_a_refusal(op):
    sound, entries = REFUSED[op]
    for change, error, _ in entries:
        case = {**sound(), **change}
        kept = {k: v.clone() for k, v in case.items() if isinstance(v, torch.Tensor)}
        with pytest.raises(error):
            ops.call(op, *case.values())
        for name, value in kept.items():
            if value.device.type == "cpu":
                np.testing.assert_array_equal(case[name].numpy(), value.numpy())


def test_a_caller_can_vouch_for_values():
    case = {**syrk(), "weight": torch.tensor([1.0, -1.0, 1.0, 1.0])}
    ops.choose("syrk_accumulate", *case.values(), trusted=True)
    with pytest.raises(ValueError, match="weight: expected shape"):
        ops.choose("syrk_accumulate", *{**case, "weight": torch.ones(3)}.values(), trusted=True)


def test_a_meta_tensor_has_no_values_to_check():
    x, out = torch.ones(4, 3, device="meta"), tiles.zeros(3, device="meta")
    weight = torch.ones(4, device="meta")
    assert ops.choose("syrk_accumulate", out, x, weight).backend == "torch"
