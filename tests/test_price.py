"""What a share costs: the tabulated sum, the share that a budget pays for, and what is measured."""

import math

import models
import pytest
import torch

import curvedit
from curvedit.cli import main
from curvedit.ranking import price

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*fewer positions:UserWarning", "ignore:keep_mass:UserWarning"
)


@pytest.fixture(scope="module")
def fitted():
    model = models.build("llama")
    batches = models.ragged_batches("llama")
    return model, curvedit.fit(model, batches, targets="*.mlp.*", progress=False)


def removed(model, factors, selection):
    """``1/2 sum lambda mu C^2`` over the removed components of all targets."""
    modules, total = dict(model.named_modules()), 0.0
    for name, chosen in selection.items():
        out, inputs = factors.basis("G", name), factors.basis("A", name)
        weight = modules[name].weight.detach().double()
        components = out.vectors.double().T @ weight @ inputs.vectors.double()
        cost = torch.outer(out.values, inputs.values) * components.square() / 2
        total += float(cost[~chosen.dense_mask()].sum())
    return total


@pytest.mark.parametrize("scope", ["target", "model"])
@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_the_share_of_a_price_is_found_again(fitted, scope, share):
    model, factors = fitted
    chosen = curvedit.rank(factors, keep_mass=share, scope=scope, progress=False)
    budget = price.RATIO * removed(model, factors, chosen)
    found = curvedit.rank(factors, keep_kl=budget, model=model, scope=scope, progress=False)
    assert found.recipe["keep_mass"] == pytest.approx(share, abs=0.02)
    assert found.recipe["expected_kl"] <= budget * (1 + 1e-9)
    spent = price.RATIO * removed(model, factors, found)
    assert spent == pytest.approx(budget, rel=0.2)
    assert found.recipe["keep_kl"] == budget


def test_more_is_kept_for_less(fitted):
    model, factors = fitted
    shares = [
        curvedit.rank(factors, keep_kl=kl, model=model, progress=False).recipe["keep_mass"]
        for kl in (1e-6, 1e-4, 1e-2, 1e6)
    ]
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] < 1e-6


def test_without_loss_everything_flat_goes():
    mass, cost = torch.tensor([1.0, 2.0, 5.0]).double(), torch.tensor([0.0, 0.0, 1.0]).double()
    flat = price.Price(mass.numpy(), cost.numpy())
    assert flat.of(1.0) == 0.0
    assert flat.of(5 / 8) == 0.0
    assert flat.of(0.0) == 1.0
    assert flat.of(0.3125) == pytest.approx(0.5)
    share, expected = price.share_within([flat], 0.0)
    assert share == pytest.approx(5 / 8)
    assert expected == 0.0
    assert (flat + flat).of(0.0) == 2.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "keep_mass: expected either it or keep_kl, got neither"),
        ({"keep_mass": 0.5, "keep_kl": 0.1}, "expected either it or keep_kl, got both"),
        ({"keep_kl": 0.0}, "keep_kl: expected a positive number of nats, got 0.0"),
        ({"keep_kl": math.nan}, "keep_kl: expected a positive number of nats, got nan"),
        ({"keep_kl": 0.1, "criterion": "random"}, "keep_kl: expected criterion 'curvature'"),
        ({"keep_kl": 0.1}, "model: expected the fitted model, whose weights keep_kl reads"),
    ],
)
def test_refuses(fitted, options, message):
    with pytest.raises(ValueError, match=message):
        curvedit.rank(fitted[1], progress=False, **options)


def test_the_verb(fitted, tmp_path, capsys):
    model, factors = fitted
    model.save_pretrained(tmp_path / "model")
    factors.save(tmp_path / "factors")
    words = f"rank --factors {tmp_path}/factors --model {tmp_path}/model --keep-kl 0.001"
    assert main([*words.split(), "--out", str(tmp_path / "selection"), "--no-progress"]) == 0
    said = capsys.readouterr().out
    assert "keep_kl: 0.001" in said
    assert "expected_kl: 0.0009" in said
    stored = curvedit.Selection.load(tmp_path / "selection").recipe
    again = curvedit.rank(factors, keep_kl=0.001, model=model, progress=False).recipe
    assert {key: stored[key] for key in again} == again
