"""Every backend of staircase_project against float64, and on cases that never round."""

import numpy as np
import pytest
import torch
from cases import integers, limits_of, normal, orthogonal, permutation, run
from compare import assert_as_accurate

from curvedit import ops
from curvedit.doctor import truncation
from curvedit.kernels import staircase_project_plan as staircase_plan
from curvedit.kernels import staircase_project_ref as reference
from curvedit.kernels.staircase_project_plan import plan

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = [(1, 1), (1, 7), (9, 1), (5, 3), (64, 64), (65, 129), (257, 96)]
INTERPRETED = [(5, 3), (65, 129)]
SHARES = [0.3, 0.8, 0.97]
BACKENDS = ops.backends("staircase_project")
FAST = [b for b in BACKENDS if b != "reference"]


@pytest.fixture(autouse=True)
def every_plan_pays(monkeypatch):
    """Matrices here are so small that dense products would be made of all."""
    monkeypatch.setattr(staircase_plan, "_OVERHEAD", -1e30)


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
    w, u_out, u_in, limits = (
        normal(m, n),
        orthogonal(m, 1),
        orthogonal(n, 2),
        limits_of(m, n, share),
    )
    truth = reference.staircase_project(w.double(), u_out.double(), u_in.double(), limits)
    plain = reference.staircase_project(w, u_out, u_in, limits)
    got = project(w, u_out, u_in, limits, backend)
    if (
        2 * int(limits.sum()) > m * n
    ):  # the complement is removed: errors are relative to the weight
        plain = w - reference.staircase_project(
            w, u_out.flip(1), u_in.flip(1), (n - limits).flip(0)
        )
        bound = 4 * (plain.double() - truth).abs().max() + 1e-6
        bound += w.abs().max() * truncation(6 * (m + n) * (backend == "triton"))
        assert (got.double() - truth).abs().max() <= bound
        return
    # Triton multiplies as 3xTF32, which tensor cores add eight at a time, there and back
    assert_as_accurate(got, plain, truth, truncated=6 * (m + n) * (backend == "triton"))


@sized
@pytest.mark.parametrize("share", SHARES)
def test_is_exact_when_nothing_rounds(backend, m, n, share):
    w, u_out, u_in, limits = (
        integers(m, n),
        permutation(m, 1),
        permutation(n, 2),
        limits_of(m, n, share),
    )
    truth = reference.staircase_project(w.double(), u_out.double(), u_in.double(), limits)
    assert torch.equal(project(w, u_out, u_in, limits, backend).double(), truth)


@pytest.mark.parametrize("backend", FAST)
def test_keeping_all_returns_the_weight_and_nothing_zero(backend):
    w, u_out, u_in = normal(40, 30), orthogonal(40), orthogonal(30)
    assert torch.equal(project(w, u_out, u_in, torch.full((40,), 30), backend), w)
    assert not project(w, u_out, u_in, torch.zeros(40, dtype=torch.int32), backend).any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "limits",
    [[7] + [0] * 11, [1] * 12, [7, 7, 7, 3, 3, 1, 1, 1, 0, 0, 0, 0], [7] * 11 + [6]],
    ids=str,
)
def test_ragged_staircases(backend, limits):
    w, u_out, u_in, limits = (
        integers(12, 7),
        permutation(12, 1),
        permutation(7, 2),
        torch.tensor(limits),
    )
    truth = reference.staircase_project(w.double(), u_out.double(), u_in.double(), limits)
    assert torch.equal(project(w, u_out, u_in, limits, backend).double(), truth)


def test_half_precision_weight_is_projected_in_float32():
    w, u_out, u_in, limits = (
        normal(64, 48, dtype=torch.bfloat16),
        orthogonal(64),
        orthogonal(48),
        limits_of(64, 48, 0.8),
    )
    got = project(w, u_out, u_in, limits, "torch")
    truth = reference.staircase_project(w.double(), u_out.double(), u_in.double(), limits)
    assert_as_accurate(got, reference.staircase_project(w.float(), u_out, u_in, limits), truth)


def dense(limits, n):
    return torch.arange(n) < limits[..., None]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_batch_has_staircases_of_its_own(backend):
    limits = torch.stack(
        [limits_of(12, 7, share) for share in (0.3, 0.7, 0.99)] + [torch.zeros(12).int()]
    )
    w = integers(4, 12, 7)
    u_out, u_in = (torch.stack([permutation(size, seed) for seed in range(4)]) for size in (12, 7))
    truth = reference.staircase_project(w.double(), u_out.double(), u_in.double(), limits)
    assert torch.equal(project(w, u_out, u_in, limits, backend).double(), truth)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("m", "n"), [(5, 3), (65, 129)])
def test_the_forward_half_serves_every_staircase_inside(backend, m, n):
    w, u_out, u_in, most = (
        integers(m, n),
        permutation(m, 1),
        permutation(n, 2),
        limits_of(m, n, 0.9),
    )
    components, _ = run("staircase_rotate", w, u_out, u_in, most, backend=backend, device=DEVICE)
    assert torch.equal(components.cpu(), (u_out.T @ w @ u_in) * dense(most, n))
    for share in (0.9, 0.6):
        limits = limits_of(m, n, share)
        got, _ = run(
            "staircase_restore",
            components.cpu(),
            u_out,
            u_in,
            limits,
            backend=backend,
            device=DEVICE,
        )
        assert torch.equal(got.cpu(), reference.staircase_project(w, u_out, u_in, limits))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("m", "n"), [(1, 1), (5, 3), (65, 129)])
def test_any_mask(backend, m, n):
    w, u_out, u_in, kept = (
        integers(m, n),
        permutation(m, 1),
        permutation(n, 2),
        integers(m, n, seed=3) > 0,
    )
    mask = torch.from_numpy(np.packbits(kept.numpy(), axis=1))
    got, _ = run("masked_project", w, u_out, u_in, mask, backend=backend, device=DEVICE)
    assert torch.equal(got.cpu(), u_out @ ((u_out.T @ w @ u_in) * kept) @ u_in.T)
    assert torch.equal(got.cpu(), reference.masked_project(w, u_out, u_in, mask))


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("share", [0.5, 0.98])
def test_long_staircases_go_in_chunks(backend, share, monkeypatch):
    if backend == "triton":
        monkeypatch.setattr(
            pytest.importorskip("curvedit.kernels.staircase_project_triton"), "CHUNK", 20
        )
    w, u_out, u_in, limits = (
        integers(70, 60),
        permutation(70, 1),
        permutation(60, 2),
        limits_of(70, 60, share),
    )
    assert torch.equal(
        project(w, u_out, u_in, limits, backend),
        reference.staircase_project(w, u_out, u_in, limits),
    )


@pytest.mark.parametrize("complement", [False, True])
@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize(("m", "n"), [*SHAPES, (700, 90), (90, 700)])
def test_a_plan_covers_its_side_once(m, n, share, complement):
    limits = limits_of(m, n, share)
    found = plan(limits.numpy(), n, complement=complement)
    times = torch.zeros(m, n)
    for part in found.parts:
        lines = times if part.by_rows else times.T
        for band in (band for chunk in part.chunks() for band in chunk):
            for line in range(band.start, band.stop):
                span = slice(part.begin[line - part.first], part.end[line - part.first])
                assert band.low <= span.start <= span.stop <= band.high
                lines[line, span] += 1
    assert torch.equal(times, (dense(limits, n) ^ complement).float())
    assert found.operations <= found.dense


def test_a_plan_rotates_the_smaller_side():
    assert not plan(limits_of(300, 200, 0.5).numpy(), 200).is_complement
    assert plan(limits_of(300, 200, 0.999).numpy(), 200).is_complement
    assert plan(np.full(300, 200), 200).operations == 0


def test_a_planted_fault_is_seen():
    w, u_out, u_in, limits = (
        integers(64, 48),
        permutation(64, 1),
        permutation(48, 2),
        limits_of(64, 48, 0.8),
    )
    truth = reference.staircase_project(w.double(), u_out.double(), u_in.double(), limits)
    wrong = limits.clone()
    wrong[int((limits > 0).sum()) - 1] -= 1
    assert not torch.equal(project(w, u_out, u_in, wrong, "torch").double(), truth)


def test_small_matrices_are_multiplied_densely(monkeypatch):
    monkeypatch.undo()
    w, u_out, u_in, limits = (
        integers(64, 48),
        permutation(64, 1),
        permutation(48, 2),
        limits_of(64, 48, 0.8),
    )
    assert not plan(limits.numpy(), 48).pays
    assert plan(limits_of(2752, 1024, 0.97).numpy(), 1024).pays
    assert torch.equal(
        project(w, u_out, u_in, limits, "torch"),
        reference.staircase_project(w, u_out, u_in, limits),
    )
