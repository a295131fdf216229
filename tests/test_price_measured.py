"""The share that held-out text pays for: measured within the budget, and the model as it was."""

import copy
import math

import models
import pytest
import reciter
import torch

import curvedit
from curvedit.ranking import price, search

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*fewer positions:UserWarning", "ignore:keep_mass:UserWarning"
)

LAYERS = {"the last two": "*.{2..3}.mlp.*", "all": "model.layers.*"}
HOLDOUT, OTHER = reciter.text(60, seed=3), reciter.text(200, seed=4)


@pytest.fixture(scope="module")
def model():
    return reciter.trained()


@pytest.fixture(scope="module")
def fitted(model):
    """Factors of little data, which take for flat what they have not seen, by set of layers."""
    rows = list(torch.tensor(reciter.text(16, seed=2)).split(8))
    return {
        layers: curvedit.fit(model, rows, targets=targets, progress=False)
        for layers, targets in LAYERS.items()
    }


def log_probabilities(model, rows):
    with torch.no_grad():
        return model(input_ids=torch.tensor(rows)).logits[:, :-1].double().log_softmax(-1)


def divergence(model, selection, rows):
    before = log_probabilities(model, rows)
    with curvedit.project(model, selection):
        after = log_probabilities(model, rows)
    return float((before.exp() * (before - after)).sum(-1).mean())


def rank(model, factors, /, **options):
    options = {"keep_kl": 0.02, "model": model, "holdout": HOLDOUT, "progress": False, **options}
    return curvedit.rank(factors, **options)


def state(model):
    return copy.deepcopy(model.state_dict())


def unchanged(model, before):
    now = model.state_dict()
    return all(torch.equal(before[name], now[name]) for name in before)


BUDGETS = (0.005, 0.02, 0.08)
CELLS = [(layers, scope) for layers in LAYERS for scope in ("target", "model")]


@pytest.mark.parametrize(("layers", "scope"), CELLS)
def test_other_text_costs_what_was_asked_for_within_a_factor_of_two(model, fitted, layers, scope):
    before = state(model)
    for budget in BUDGETS:
        chosen = rank(model, fitted[layers], keep_kl=budget, scope=scope)
        measured = chosen.recipe["measured_kl"]
        assert 0.85 * budget <= measured <= budget
        assert divergence(model, chosen, HOLDOUT) == pytest.approx(measured, rel=1e-3)
        assert budget / 2 <= divergence(model, chosen, OTHER) <= 2 * budget
        assert unchanged(model, before)


def test_without_held_out_text_it_does_not(model, fitted):
    for budget in BUDGETS:
        chosen = rank(model, fitted["the last two"], keep_kl=budget, holdout=None)
        assert divergence(model, chosen, OTHER) > 2 * budget
        assert "measured_kl" not in chosen.recipe


def test_what_the_recipe_says(model, fitted):
    factors = fitted["all"]
    chosen = rank(model, factors)
    recipe = dict(chosen.recipe)
    share = recipe["keep_mass"]
    assert recipe["keep_kl"] == 0.02
    assert recipe["measured_positions"] == 60 * 23
    assert recipe["expected_kl"] < recipe["measured_kl"]
    again = curvedit.rank(factors, keep_mass=share, progress=False)
    assert again.targets == chosen.targets
    budget = recipe["expected_kl"]
    expected = curvedit.rank(factors, keep_kl=budget, model=model, progress=False)
    assert expected.recipe["keep_mass"] == pytest.approx(share, abs=1e-9)


@pytest.mark.parametrize(
    "form", ["windows", "a tensor", "batches", "token batches", "windows of many lengths"]
)
def test_held_out_text_is_taken_as_forget_takes_it(model, fitted, form):
    ids = torch.tensor(HOLDOUT)
    given = {
        "windows": HOLDOUT,
        "a tensor": ids,
        "batches": [{"input_ids": part} for part in ids.split(7)],
        "token batches": curvedit.token_batches(HOLDOUT, window=24, batch_size=5),
        "windows of many lengths": [row[: 24 - number % 5] for number, row in enumerate(HOLDOUT)],
    }[form]
    chosen = rank(model, fitted["the last two"], holdout=given)
    assert 0.017 <= chosen.recipe["measured_kl"] <= 0.02
    if form != "windows of many lengths":
        whole = rank(model, fitted["the last two"])
        assert chosen.recipe["measured_positions"] == whole.recipe["measured_positions"]
        assert chosen.recipe["keep_mass"] == pytest.approx(whole.recipe["keep_mass"], rel=1e-5)


def test_targets_outside_the_blocks_are_measured_too(model):
    rows = list(torch.tensor(reciter.text(16, seed=2)).split(8))
    targets = ["*.3.mlp.down_proj", "lm_head"]
    factors = curvedit.fit(model, rows, targets=targets, progress=False)
    before = state(model)
    chosen = rank(model, factors)
    assert chosen.recipe["measured_kl"] <= 0.02
    if chosen.recipe["measured_kl"] < 0.017:  # where the cost jumps, the next share is too dear
        share = chosen.recipe["keep_mass"] - 1e-4
        dearer = curvedit.rank(factors, keep_mass=share, progress=False)
        assert divergence(model, dearer, HOLDOUT) > 0.02
    assert divergence(model, chosen, HOLDOUT) == pytest.approx(chosen.recipe["measured_kl"], 1e-3)
    assert unchanged(model, before)


@pytest.mark.parametrize("kind", ["gpt2", "vit"])
def test_other_families(kind):
    model = models.build(kind)
    batches = models.ragged_batches(kind)
    factors = curvedit.fit(model, batches, targets=models.targets(kind), progress=False)
    before = state(model)
    recipe = rank(model, factors, keep_kl=0.2, holdout=batches).recipe
    assert 0 < recipe["measured_kl"] <= 0.2
    assert unchanged(model, before)


def test_a_model_in_training_comes_back_as_it_was(model, fitted):
    before, trained = state(model), model.train()
    rank(trained, fitted["the last two"])
    assert trained.training
    assert unchanged(model.eval(), before)


@pytest.mark.parametrize("stops", [ValueError("the second part"), KeyboardInterrupt()])
def test_the_model_is_as_it_was_when_measuring_stops(model, fitted, monkeypatch, stops):
    before, seen = state(model), []

    def stopping(*_):
        seen.append(not unchanged(model, before))
        if len(seen) == 2:
            raise stops
        return 1.0, 1.0, 1.0, 1.0

    def compared(*arguments):
        yield tuple(torch.tensor([value]).double() for value in stopping(*arguments))

    monkeypatch.setattr("curvedit.editing.damage._compare", compared)
    with pytest.raises(type(stops)):
        rank(model, fitted["the last two"])
    assert seen == [True, True]  # stopped while the weights were edited
    assert unchanged(model, before)


def test_every_try_is_shown(model, fitted, capsys, monkeypatch):
    monkeypatch.setattr("curvedit.meter._EVERY", 0.0)
    rank(model, fitted["the last two"], progress=True)
    said = capsys.readouterr().err
    assert "try 1 of at most 8: 1,380 of 1,380 tok (100%)" in said
    assert "try 2 of at most 8: 1,380" in said
    assert "of 0.02 nats" in said


@pytest.mark.parametrize(
    ("error", "options", "message"),
    [
        (ValueError, {"keep_kl": None, "keep_mass": 0.5}, "holdout: expected keep_kl with it, "),
        (ValueError, {"model": None}, "model: expected the fitted model, whose weights keep_kl"),
        (ValueError, {"holdout": []}, "holdout: expected at least one batch, got none"),
        (ValueError, {"holdout": [[]]}, "holdout: "),
        (ValueError, {"holdout": [[7]]}, "holdout: "),
        (TypeError, {"holdout": iter(HOLDOUT)}, "holdout: expected a re-iterable"),
        (TypeError, {"holdout": 3}, "holdout: expected windows or batches to iterate over"),
        (ValueError, {"holdout": [[3, 64, 5]]}, "holdout: expected token ids below 64"),
        (ValueError, {"holdout": [[3] * 65]}, "holdout: expected at most 64 tokens"),
    ],
)
def test_refuses_before_work_starts(model, fitted, monkeypatch, error, options, message):
    before = state(model)
    monkeypatch.setattr(
        curvedit.Factors, "decompose", lambda *_, **__: pytest.fail("work has started")
    )
    with pytest.raises(error, match=message):
        rank(model, fitted["the last two"], **options)
    assert unchanged(model, before)


def test_a_budget_below_the_lightest_edit_is_refused(model, fitted):
    before, factors = state(model), fitted["the last two"]
    with pytest.raises(ValueError, match="keep_kl: expected at least ") as raised:
        rank(model, factors, keep_kl=1e-12)
    assert "got 1e-12" in str(raised.value)
    least = float(str(raised.value).split()[4])
    lightest = min((spectrum(factors, name) for name in factors), key=lambda each: each[0])
    one = curvedit.rank(factors, keep_mass=lightest[1], progress=False)
    sizes = sum(math.prod(target.shape) for target in one.values())
    assert sizes - sum(target.kept for target in one.values()) == 1
    assert divergence(model, one, HOLDOUT) == pytest.approx(least, rel=0.05)
    assert unchanged(model, before)


def spectrum(factors, name):
    """The share of the flattest component of a target, and the one that leaves it out."""
    lam, mu = (factors.basis(kind, name).values for kind in ("G", "A"))
    flattest = float(lam[-1] * mu[-1] / (lam.sum() * mu.sum()))
    return flattest, 1 - flattest * (1 + 1e-6)


def test_a_budget_that_allows_everything_removes_almost_everything(model, fitted):
    recipe = rank(model, fitted["the last two"], keep_kl=1e3).recipe
    assert recipe["keep_mass"] < 1e-6
    assert 0 < recipe["measured_kl"] < 1e3


# The search, on curves of measured against expected divergence.
CURVES = {
    "as expected": lambda expected: expected,
    "a hundred times": lambda expected: 100 * expected,
    "a hundredth": lambda expected: expected / 100,
    "flat": lambda expected: 0.5 * expected**0.25,
    "steep": lambda expected: 400 * expected**2.5,
    "bent": lambda expected: 3 * expected + 40 * expected**2,
    "nothing at first": lambda expected: max(0.0, 20 * (expected - 2e-3)),
    "a step": lambda expected: 0.9 * BUDGET if expected > 1e-3 else 0.01 * BUDGET,
}
BUDGET = 0.02


def searched(curve, budget=BUDGET):
    """The result of a search where removing a share costs as much, and all shares tried."""
    mass = torch.logspace(-12, 0, 400, dtype=torch.float64).numpy()
    prices, tried = [price.Price(mass, mass / price.RATIO)], []

    def measure(share, number):
        tried.append(share)
        assert number == len(tried)
        return curve(price.expected_kl(prices, share))

    return search.share_by_measuring(prices, budget, 1 - 1e-13, measure), tried


@pytest.mark.parametrize("name", CURVES)
def test_the_search_finds_what_the_budget_pays_for(name):
    found, tried = searched(CURVES[name])
    assert 0.85 * BUDGET <= found.measured <= BUDGET
    assert len(tried) <= 8
    assert found.share in tried


def test_the_nearest_below_is_taken_where_none_is_near():
    found, tried = searched(lambda expected: 3.0 if expected > 2e-3 else 0.3 * BUDGET)
    assert len(tried) == 8
    assert found.measured == pytest.approx(0.3 * BUDGET)
    assert 1e-3 < found.expected <= 2e-3  # the heaviest of those that cost as little


def test_the_least_divergence_seen_is_named():
    with pytest.raises(ValueError, match=r"expected at least 0.5 nats, .* got 0.02; allow more"):
        searched(lambda expected: 0.5 + expected)


def test_the_lightest_share_leaves_out_one_component():
    spectra = [(torch.tensor([3.0, 1.0]), torch.tensor([2.0, 0.5])), (torch.ones(2), torch.ones(2))]
    spectra = [(lam.double(), mu.double()) for lam, mu in spectra]
    assert price.lightest_share(spectra, together=False) == pytest.approx(1 - 0.5 / 10)
    assert price.lightest_share(spectra, together=True) == pytest.approx(1 - 0.5 / 14)
    assert price.lightest_share([(torch.tensor([1.0, 0.0]), torch.ones(1))], together=False) < 1
