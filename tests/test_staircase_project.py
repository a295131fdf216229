"""Every backend of staircase_project against float64, and on cases that never round."""

import pytest
import torch
from cases import integers, limits_of, normal, orthogonal, permutation, run
from compare import assert_as_accurate

from curvedit import ops
from curvedit.kernels.staircase_project_ref import staircase_project_ref

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = [(1, 1), (1, 7), (9, 1), (5, 3), (64, 64), (65, 129), (257, 96)]
INTERPRETED = [(5, 3), (65, 129)]
SHARES = [0.3, 0.8, 0.97]
BACKENDS = ops.backends("staircase_project")

sized = pytest.mark.parametrize(
    ("backend", "m", "n"),
    [(b, *shape) for b in BACKENDS for shape in (INTERPRETED if b == "triton" else SHAPES)],
)


def project(w, u_out, u_in, limits, backend):
    got, _ = run("staircase_project", w, u_out, u_in, limits, backend=backend, device=DEVICE)
    return got.cpu()


@sized
@pytest.mark.parametrize("share", SHARES)
def test_matches_float64(backend, m, n, share):
    w, u_out, u_in, limits = normal(m, n), orthogonal(m, 1), orthogonal(n, 2), limits_of(m, n, share)
    truth = staircase_project_ref(w.double(), u_out.double(), u_in.double(), limits)
    plain = staircase_project_ref(w, u_out, u_in, limits)
    got = project(w, u_out, u_in, limits, backend)
    if 2 * int(limits.sum()) > m * n:  # the complement is removed: errors are relative to the weight
        plain = w - staircase_project_ref(w, u_out.flip(1), u_in.flip(1), (n - limits).flip(0))
        assert (got.double() - truth).abs().max() <= 4 * (plain.double() - truth).abs().max() + 1e-6
        return
    assert_as_accurate(got, plain, truth)


@sized
@pytest.mark.parametrize("share", SHARES)
def test_is_exact_when_nothing_rounds(backend, m, n, share):
    w, u_out, u_in, limits = integers(m, n), permutation(m, 1), permutation(n, 2), limits_of(m, n, share)
    truth = staircase_project_ref(w.double(), u_out.double(), u_in.double(), limits)
    assert torch.equal(project(w, u_out, u_in, limits, backend).double(), truth)


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b != "reference"])
def test_keeping_all_returns_the_weight_and_nothing_zero(backend):
    w, u_out, u_in = normal(40, 30), orthogonal(40), orthogonal(30)
    assert torch.equal(project(w, u_out, u_in, torch.full((40,), 30), backend), w)
    assert not project(w, u_out, u_in, torch.zeros(40, dtype=torch.int32), backend).any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "limits", [[7] + [0] * 11, [1] * 12, [7, 7, 7, 3, 3, 1, 1, 1, 0, 0, 0, 0], [7] * 11 + [6]], ids=str
)
def test_ragged_staircases(backend, limits):
    w, u_out, u_in, limits = integers(12, 7), permutation(12, 1), permutation(7, 2), torch.tensor(limits)
    truth = staircase_project_ref(w.double(), u_out.double(), u_in.double(), limits)
    assert torch.equal(project(w, u_out, u_in, limits, backend).double(), truth)


def test_half_precision_weight_is_projected_in_float32():
    w, u_out, u_in, limits = (
        normal(64, 48, dtype=torch.bfloat16),
        orthogonal(64),
        orthogonal(48),
        limits_of(64, 48, 0.8),
    )
    got = project(w, u_out, u_in, limits, "torch")
    truth = staircase_project_ref(w.double(), u_out.double(), u_in.double(), limits)
    assert_as_accurate(got, staircase_project_ref(w.float(), u_out, u_in, limits), truth)


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b != "reference"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"limits": torch.tensor([1, 2, 0])}, "limits: expected non-increasing"),
        ({"limits": torch.tensor([5, 2, 0])}, r"limits: expected non-increasing numbers in \[0, 4\]"),
        ({"limits": torch.tensor([2, 1])}, r"limits: expected \(3,\) integers"),
        ({"limits": torch.ones(3)}, r"limits: expected \(3,\) integers"),
        ({"u_in": torch.eye(3)}, r"u_in: expected shape \(4, 4\)"),
        ({"u_out": torch.eye(4)}, r"u_out: expected shape \(3, 3\)"),
        ({"w": torch.ones(3)}, r"w: expected shape \(d_out, d_in\)"),
    ],
)
def test_refuses(backend, change, message):
    case = {"w": torch.ones(3, 4), "u_out": torch.eye(3), "u_in": torch.eye(4), "limits": torch.tensor([2, 1, 0])}
    with pytest.raises(ValueError, match=message):
        project(*{**case, **change}.values(), backend)


def test_a_planted_fault_is_seen():
    w, u_out, u_in, limits = integers(64, 48), permutation(64, 1), permutation(48, 2), limits_of(64, 48, 0.8)
    truth = staircase_project_ref(w.double(), u_out.double(), u_in.double(), limits)
    wrong = limits.clone()
    wrong[int((limits > 0).sum()) - 1] -= 1
    assert not torch.equal(project(w, u_out, u_in, wrong, "torch").double(), truth)
