"""Eigendecomposition: for any factor, a certified basis or a clear error."""

import itertools
import math

import pytest
import torch

from curvedit import Factors, rank
from curvedit.factors import decomposition as eigen

SINGLE_FIRST = (torch.float32, torch.float64)


def turned(values, seed):
    """A float32 factor with these eigenvalues, in a random basis."""
    n = len(values)
    basis = torch.linalg.qr(
        torch.randn(n, n, generator=torch.Generator().manual_seed(seed)).double()
    ).Q
    return ((basis * values.double()) @ basis.T).float()


def kinds(n, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(max(1, n // 3), n, generator=generator)
    alive = (torch.arange(n) > 0).float()
    return {
        "rank one": lambda: torch.ones(n, n),
        "rank-deficient": lambda: x.T @ x,
        "condition 1e12": lambda: turned(10.0 ** -torch.linspace(0, 12, n).double(), seed),
        "repeated": lambda: turned(
            torch.tensor([3.0, 1.0, 1.0, 0.5])[torch.arange(n) % 4].double(), seed
        ),
        "identity": lambda: torch.eye(n),
        "zero": lambda: torch.zeros(n, n),
        "denormal": lambda: turned(torch.arange(1.0, n + 1) * 1e-41, seed),
        "1e30": lambda: turned(torch.arange(1.0, n + 1) * 1e30, seed),
        "1e38": lambda: torch.diag(torch.linspace(1e37, 3e38, n)),
        "1e-30": lambda: turned(torch.arange(1.0, n + 1) * 1e-30, seed),
        "not symmetric": lambda: (
            turned(torch.arange(1.0, n + 1), seed) * (1 + 1e-7 * torch.randn(n, n))
        ),
        "one dead input": lambda: turned(torch.arange(1.0, n + 1), seed) * alive * alive[:, None],
    }


HOSTILE = [
    (n, seed, kind)
    for n, seed in itertools.product((1, 2, 3, 17, 64, 130), (0, 1, 2))
    for kind in kinds(1, 0)
]


def test_there_are_enough():
    assert len(HOSTILE) >= 200


@pytest.mark.parametrize(("n", "seed", "kind"), HOSTILE)
def test_hostile_factors_get_a_certified_basis(n, seed, kind):
    factor = kinds(n, seed)[kind]()
    exact = (factor.double() + factor.double().T) / 2
    for attempts in (None, SINGLE_FIRST):
        (together,) = eigen.decompose_several([kind], [factor], attempts=attempts)
        for basis in (eigen.decompose(kind, factor, attempts=attempts), together):
            assert basis.vectors.isfinite().all()
            assert basis.values.isfinite().all()
            assert (basis.values >= 0).all()
            assert (basis.values.diff() <= 0).all()
            assert basis.certificate["residual"] < 1e-5
            assert basis.certificate["orthogonality"] < 1e-5
            vectors = basis.vectors.double()
            assert (vectors.T @ vectors - torch.eye(n)).norm(dim=0).max() < 1e-5
            rebuilt = (vectors * basis.values) @ vectors.T
            assert (rebuilt - exact).norm() <= 1e-5 * math.sqrt(n) * exact.norm()


def test_the_certificate_says_what_the_factor_is():
    found = eigen.decompose("A", turned(torch.tensor([8.0, 4.0, 2.0, 1.0]), 0)).certificate
    assert (found["rank"], found["precision"], found["retried"]) == (4, "float32", False)
    assert found["condition"] == pytest.approx(8, rel=1e-5)
    assert found["smallest"] == pytest.approx(1 / 8, rel=1e-5)
    found = eigen.decompose("A", turned(torch.tensor([8.0, 4.0, 0.0, 0.0]), 0)).certificate
    assert (found["rank"], found["condition"]) == (2, None)


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize(
    ("factor", "message"),
    [
        (torch.full((3, 3), torch.nan), "A of x: expected finite values"),
        (torch.diag(torch.tensor([1.0, torch.inf])), "A of x: expected finite values"),
        (
            torch.diag(torch.tensor([1.0, -0.1])),
            "A of x: expected a positive semi-definite matrix, got",
        ),
        (torch.tensor([[0.0, 1.0], [1.0, 0.0]]), "A of x: expected a positive semi-definite"),
        (torch.ones(2, 3), r"A of x: expected a square matrix, got shape \(2, 3\)"),
        (
            torch.ones(1, 1).expand(32767, 32767),
            "A of x: expected at most 32766 dimensions, because LAPACK",
        ),
    ],
)
def test_refuses(factor, message, together):
    with pytest.raises(ValueError, match=message):
        list(eigen.decompose_several(["A of x"], [factor])) if together else eigen.decompose(
            "A of x", factor
        )


def test_an_empty_factor_has_an_empty_basis():
    assert eigen.decompose("A", torch.empty(0, 0)).vectors.shape == (0, 0)


def test_float64_follows_a_failed_float32(monkeypatch):
    real = torch.linalg.eigh

    def fail_in_single(matrix, out):
        real(matrix, out=out)
        out[1].mul_(1.5 if matrix.dtype == torch.float32 else 1)

    monkeypatch.setattr(torch.linalg, "eigh", fail_in_single)
    factor = torch.diag(torch.arange(1.0, 9))
    basis = eigen.decompose("A", factor, attempts=SINGLE_FIRST)
    assert basis.certificate["precision"] == "float64"
    assert basis.certificate["retried"]
    with pytest.raises(RuntimeError, match="A: no eigendecomposition within residual"):
        eigen.decompose("A", factor, attempts=(torch.float32,))


def test_one_that_does_not_converge_goes_on_alone(monkeypatch):
    real = torch.linalg.eigh

    def fail_on_stacks(matrix, **options):
        if matrix.ndim == 3:
            raise torch.linalg.LinAlgError("did not converge")
        return real(matrix, **options)

    monkeypatch.setattr(torch.linalg, "eigh", fail_on_stacks)
    factors = [torch.diag(torch.arange(1.0, 4)) * k for k in (1, 2)]
    assert [
        float(basis.values[0]) for basis in eigen.decompose_several(["a", "b"], factors)
    ] == pytest.approx([3, 6])


def test_lack_of_memory_is_no_failed_attempt(monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(torch.linalg, "eigh", full)
    with pytest.raises(torch.OutOfMemoryError):
        eigen.decompose("A", torch.eye(3), attempts=SINGLE_FIRST)


def test_small_and_large_together(monkeypatch, tmp_path):
    moments = {
        f"t{n}": (turned(torch.arange(1.0, n + 1), 0), turned(torch.arange(1.0, 8), n), 9)
        for n in (5, 5 + 1, 12)
    }
    calls = []
    monkeypatch.setattr(eigen, "_SMALL", 8)
    together = eigen._together
    monkeypatch.setattr(
        eigen, "_together", lambda n, *rest: calls.append(len(n)) or together(n, *rest)
    )
    factors = Factors.from_moments(moments)
    factors.save(tmp_path / "factors")
    rank(factors, keep_mass=0.5, progress=False)
    assert calls == [
        1,
        1,
        3,
    ]  # sizes 5 and 6, and the three output factors of size 7; 12 is decomposed alone
    for name in factors:
        fresh = eigen.decompose("A", factors[name].A)
        torch.testing.assert_close(factors.basis("A", name).values, fresh.values)
        assert factors.certificate("A", name)["rank"] == len(fresh.values)
    calls.clear()
    rank(Factors.load(tmp_path / "factors"), keep_mass=0.9, progress=False)
    assert not calls
