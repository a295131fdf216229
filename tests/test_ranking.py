"""``rank``: which components each criterion keeps, and what it refuses."""

import pickle
import warnings

import models
import numpy as np
import pytest
import torch

import curvedit
from curvedit import Factors
from curvedit.factors import decompose
from curvedit.models import weight_of

pytestmark = pytest.mark.filterwarnings("ignore:.*fewer positions:UserWarning")


def moments(sizes, seed=0):
    """Random factors with decaying spectra, for targets of the given (d_out, d_in)."""
    generator = torch.Generator().manual_seed(seed)

    def factor(n):
        basis = torch.linalg.qr(torch.randn(n, n, generator=generator)).Q
        return basis @ torch.diag(torch.arange(1, n + 1) ** -1.0) @ basis.T

    return {f"t{k}": (factor(n), factor(m) * (k + 1), 100) for k, (m, n) in enumerate(sizes)}


def curvatures(factors, name):
    lam, mu = factors.basis("G", name).values, factors.basis("A", name).values
    return lam[:, None] * mu[None]


def test_per_target_selection_is_the_smallest_prefix():
    factors = Factors.from_moments(moments([(7, 11), (16, 5)]))
    selection = curvedit.rank(factors, keep_mass=0.7)
    for name, target in selection.items():
        scores = curvatures(factors, name)
        ordered = scores.flatten().sort(descending=True).values
        kept = int((ordered.cumsum(0) < 0.7 * ordered.sum()).sum()) + 1
        assert target.kept == kept
        assert target.threshold == pytest.approx(float(ordered[kept - 1]))
        assert target.mass == pytest.approx(float(ordered[:kept].sum() / ordered.sum()))
        assert torch.equal(target.dense_mask(), scores >= ordered[kept - 1])


def test_model_scope_has_one_threshold():
    factors = Factors.from_moments(moments([(7, 11), (16, 5), (3, 3)]))
    selection = curvedit.rank(factors, keep_mass=0.6, scope="model")
    everything = (
        torch.cat([curvatures(factors, name).flatten() for name in factors])
        .sort(descending=True)
        .values
    )
    kept = int((everything.cumsum(0) < 0.6 * everything.sum()).sum()) + 1
    assert sum(target.kept for target in selection.values()) == kept
    assert {target.threshold for target in selection.values()} == {float(everything[kept - 1])}
    assert len({target.mass for target in selection.values()}) > 1


def test_scaling_a_factor_changes_only_the_threshold():
    given = moments([(7, 11)])
    scaled = {name: (a * 3, g * 5, n) for name, (a, g, n) in given.items()}
    one, two = (
        curvedit.rank(Factors.from_moments(m), keep_mass=0.6)["t0"] for m in (given, scaled)
    )
    assert torch.equal(one.limits, two.limits)
    assert two.threshold == pytest.approx(15 * one.threshold, rel=1e-5)


@pytest.mark.parametrize("criterion", ["curvature", "weighted", "svd", "random"])
def test_keeping_all_keeps_all(criterion):
    model = models.build("llama")
    factors = curvedit.fit(model, models.ragged_batches("llama"), targets="*.mlp.*", progress=False)
    selection = curvedit.rank(factors, keep_mass=1, criterion=criterion, model=model)
    assert all(target.keeps_all for target in selection.values())


def test_weighted_uses_the_weighted_factors():
    model = models.build("llama")
    factors = curvedit.fit(
        model, models.ragged_batches("llama"), targets="*.0.mlp.up_proj", progress=False
    )
    name = "model.layers.0.mlp.up_proj"
    selection = curvedit.rank(factors, keep_mass=0.5, criterion="weighted")
    out, inputs = selection.bases(name, torch.empty(0))
    assert torch.equal(out.values, decompose("G_w", factors[name].G_w).values)
    assert torch.equal(inputs.values, decompose("A_w", factors[name].A_w).values)


def test_random_keeps_a_share_of_components():
    factors = Factors.from_moments(moments([(7, 11), (16, 5)]))
    one, two, other = (
        curvedit.rank(factors, keep_mass=0.5, criterion="random", seed=seed) for seed in (0, 0, 1)
    )
    for name, target in one.items():
        assert (
            target.kept
            == int(np.ceil(0.5 * np.prod(target.shape)))
            == int(target.dense_mask().sum())
        )
        assert torch.equal(target.mask, two[name].mask)
        assert not torch.equal(target.mask, other[name].mask)


def test_svd_keeps_leading_singular_directions():
    model = models.build("llama")
    name = "model.layers.0.mlp.up_proj"
    factors = curvedit.fit(model, models.ragged_batches("llama"), targets=name, progress=False)
    selection = curvedit.rank(factors, keep_mass=0.8, criterion="svd", model=model)
    weight = weight_of(model.get_submodule(name)).double()
    u, s, v = torch.linalg.svd(weight, full_matrices=False)
    number = int((s.square().cumsum(0) < 0.8 * s.square().sum()).sum()) + 1
    out, inputs = selection.bases(name, weight)
    c = out.vectors.double().T @ weight @ inputs.vectors.double() * selection[name].dense_mask()
    got = out.vectors.double() @ c @ inputs.vectors.double().T
    torch.testing.assert_close(got, (u[:, :number] * s[:number]) @ v[:number], atol=1e-5, rtol=0)


def test_targets_choose_among_the_fitted():
    factors = Factors.from_moments(moments([(7, 11), (16, 5), (3, 3)]))
    assert list(curvedit.rank(factors, keep_mass=0.5, targets="t{0,2}")) == ["t0", "t2"]


@pytest.mark.parametrize("bad", [0, -0.1, 1.5, float("nan"), float("inf")])
def test_refuses_a_share_outside_its_range(bad):
    with pytest.raises(ValueError, match=r"keep_mass: expected a number in \(0, 1\]"):
        curvedit.rank(Factors.from_moments(moments([(3, 3)])), keep_mass=bad)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"criterion": "curved"}, "criterion: expected one of"),
        ({"scope": "layer"}, "scope: expected one of"),
        ({"scope": "model", "criterion": "random"}, "scope: expected 'target'"),
        ({"criterion": "svd"}, "expected the model the factors were fitted on"),
        ({"targets": "nothing"}, "matches no linear map"),
    ],
)
def test_refuses_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        curvedit.rank(Factors.from_moments(moments([(3, 3)])), keep_mass=0.5, **options)


def test_refuses_a_target_without_curvature():
    factors = Factors.from_moments({"dead": (torch.eye(3), torch.zeros(2, 2), 10)})
    with pytest.raises(ValueError, match="'dead' has no curvature"):
        curvedit.rank(factors, keep_mass=0.5)


def idle(*names, others=("live",)):
    """Factors of targets that the loss does not depend on, beside others."""
    nothing = (torch.eye(3), torch.zeros(2, 2), 10)
    some = (torch.eye(3), torch.eye(2), 10)
    return Factors.from_moments(dict.fromkeys(names, nothing) | dict.fromkeys(others, some))


@pytest.mark.parametrize("scope", ["target", "model"])
def test_every_target_without_curvature_is_named(scope):
    factors = idle("h.0.dead", "h.1.dead", "h.2.dead", "h.3.dead", "h.4.dead")
    with pytest.raises(ValueError, match="have no curvature") as refused:
        curvedit.rank(factors, keep_mass=0.5, scope=scope)
    assert all(f"'h.{number}.dead'" in str(refused.value) for number in range(5))
    assert "--skip 'h.0.dead' 'h.1.dead'" in str(refused.value)
    assert "'live'" not in str(refused.value)


@pytest.mark.parametrize("criterion", ["curvature", "random"])
def test_skip_leaves_targets_out(criterion):
    factors = idle("h.0.dead", "h.1.dead", others=("h.0.live", "h.1.live"))
    options = {"keep_mass": 0.5, "criterion": criterion}
    for skip in ("*.dead", ["h.{0..1}.dead"], ["h.0.dead", "h.1.dead"]):
        assert list(curvedit.rank(factors, skip=skip, **options)) == ["h.0.live", "h.1.live"]
    chosen = curvedit.rank(factors, targets="h.0.*", skip="*.dead", **options)
    assert list(chosen) == ["h.0.live"]
    with pytest.raises(ValueError, match=r"skip: '\*\.idle' matches no linear map"):
        curvedit.rank(factors, skip="*.idle", **options)
    with pytest.raises(ValueError, match="skip: expected to leave at least one target"):
        curvedit.rank(factors, targets="h.0.*", skip="h.0.*", **options)


def test_svd_of_a_zero_weight_is_refused():
    model = torch.nn.Sequential(torch.nn.Linear(3, 2))
    model[0].weight.data.zero_()
    factors = Factors.from_moments({"0": (torch.eye(3), torch.eye(2), 10)}, model=model)
    with pytest.raises(ValueError, match=r"the weight of '0' is zero.*--skip '0'"):
        curvedit.rank(factors, keep_mass=0.5, criterion="svd", model=model)


def test_keeping_very_little_warns():
    spectrum = torch.diag(torch.tensor([100.0, 1, 1, 1, 1, 1]))
    flat = torch.eye(6)
    factors = Factors.from_moments(
        {"sharp": (spectrum, spectrum, 9), "duller": (spectrum, flat, 9), "flat": (flat, flat, 9)}
    )
    with pytest.warns(UserWarning, match="keep_mass: 0.2 keeps less than 10%") as found:
        curvedit.rank(factors, keep_mass=0.2)
    (warning,) = found
    assert "of 2 of 3 targets, only 2.78% of 'sharp'" in str(warning.message)
    assert warning.filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        curvedit.rank(factors, keep_mass=0.2, targets="flat")
        curvedit.rank(factors, keep_mass=1)
        curvedit.rank(factors, keep_mass=0.95)


def test_a_selection_is_a_value(tmp_path):
    model = models.build("llama")
    factors = curvedit.fit(model, models.ragged_batches("llama"), targets="*.mlp.*", progress=False)
    selection = curvedit.rank(factors, keep_mass=0.6, progress=False)
    with pytest.raises(ValueError, match="factors: expected saved factors"):
        selection.save(tmp_path / "selection")
    factors.save(tmp_path / "factors")
    selection.save(tmp_path / "selection")  # gate and up share the spectrum of their input
    loaded = curvedit.Selection.load(tmp_path / "selection")
    pickled = pickle.loads(pickle.dumps(loaded))
    assert selection == loaded == pickled
    assert hash(selection["model.layers.0.mlp.up_proj"]) == hash(
        loaded["model.layers.0.mlp.up_proj"]
    )
    assert selection != curvedit.rank(factors, keep_mass=0.7, progress=False)
    edited = []
    for each in (selection, loaded, pickled):
        with curvedit.project(model, each) as edit:
            edited.append({name: target.sha256_after for name, target in edit.targets.items()})
    assert edited[0] == edited[1] == edited[2]
