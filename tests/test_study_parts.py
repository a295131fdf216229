"""The parts of a study: noise, rounding, relearning, units, the map, and goals."""

import json
import math

import numpy as np
import pytest
import reciter
import torch
from reciter import same, weights
from scipy.stats import spearmanr

import curvedit
from curvedit.models import weight_of
from curvedit.report import Metric, Units
from curvedit.study.arms import Arm, add_noise, change_of
from curvedit.study.goals import goals_of
from curvedit.study.measuring import Yardstick, of_units, with_units
from curvedit.study.price_map import PriceMap, cells_of, measure_map


@pytest.fixture(scope="module")
def model():
    return reciter.trained()


@pytest.fixture(scope="module")
def material():
    return reciter.material()


def test_noise_has_its_norm_and_is_undone(model, material):
    names = ["model.layers.1.mlp.up_proj", "model.layers.2.mlp.down_proj"]
    factors = curvedit.fit(model, material.fitted_on[600], targets=names, progress=False)
    before = weights(model)
    edit = add_noise(model, factors, names, 0.25, seed=3)
    for name in names:
        change = weights(model)[f"{name}.weight"] - before[f"{name}.weight"]
        assert float(change.norm() / before[f"{name}.weight"].norm()) == pytest.approx(0.25)
    assert change_of(edit, model) == pytest.approx(0.25, rel=0.05)
    edit.undo()
    assert same(before, weights(model))


def test_units_survive_their_document():
    metric = Metric(2.0, 1.0, 3.0, Units(np.array([1.0, 2.0]), np.array([1.0, 1.0]), True))
    found = of_units(json.loads(json.dumps(with_units({"kl": metric}))))["kl"]
    assert found == metric
    assert found.units.exponential
    assert found.units.numerator.tolist() == [1.0, 2.0]


def test_the_ratio_of_costs_is_exact(material):
    yardstick = Yardstick(material.passages, material.text, shows_progress=False)
    tokens = np.full(6, 10.0)
    before = np.array([10.0, 12, 9, 14, 8, 11])

    def scores(rise):
        return {"perplexity": Metric(1, 1, 1, Units(before + rise, tokens, True))}

    one, other = scores(0.1 * np.arange(6)), scores(0.3 * np.arange(6))
    found = yardstick.cost_ratio(scores(0.0), one, other)
    assert found.value == pytest.approx(math.expm1(0.025) / math.expm1(0.075))
    assert found.low < found.value < found.high
    assert yardstick.cost_ratio(scores(0.0), one, scores(0.0)) is None


def test_the_map_undoes_every_cell(model, material):
    factors = curvedit.fit(
        model, material.fitted_on[600], targets="model.layers.*.mlp.*", progress=False
    )
    before = weights(model)
    tune = material.passages.of_split("tune")
    found = measure_map(model, factors, tune, material.text["odd"], every=2, progress=False)
    assert same(before, weights(model))
    assert sorted({block for block, _ in found.cells}) == [0, 2]
    table = found.to_json()
    assert table["layers"] == [0, 2]
    assert table["kinds"] == ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    for mode in ("label_free", "targeted"):
        assert np.array(table[mode]["kl"]).shape == (2, 3)
        assert (np.array(table[mode]["kl"]) > 0).all()
    assert (np.array(table["targeted"]["forgotten"]) > 0).all()  # each step forgets
    assert len(table["proposed"]) == 1


def test_rank_correlation_agrees_with_scipy():
    generator = np.random.default_rng(0)
    cells = {(number, "w"): f"b.{number}" for number in range(12)}
    names = list(cells.values())
    worth = dict(zip(names, generator.integers(0, 5, 12).astype(float), strict=True))
    values = dict(zip(names, generator.random(12), strict=True))
    table = PriceMap(cells, {"m": worth}, {"m": dict.fromkeys(names, 1.0)})
    expected = spearmanr([values[n] for n in names], [worth[n] for n in names])[0]
    assert table.correlation(values, "m") == pytest.approx(float(expected))
    assert table.correlation(dict.fromkeys(names, 1.0), "m") is None


def test_cells_are_blocks_and_kinds(model):
    names = ["model.layers.3.mlp.up_proj", "lm_head"]
    assert cells_of(model, names) == {(3, "mlp.up_proj"): "model.layers.3.mlp.up_proj"}


def test_goals_tell_what_was_met():
    def metrics(right, near, perplexity, kl):
        values = {
            "right: tune": right, "near: tune": near, "perplexity": perplexity, "kl": kl,
            "right: related": 0.5,
        }  # fmt: skip
        return {key: {"value": value} for key, value in values.items()}

    arm = {"name": "targeted, wide", "criterion": "targeted", "place": "wide"}
    document = {
        "before": metrics(0.9, 1.0, 20.0, 0.0),
        "arms": [{**arm, "metrics": metrics(0.2, 0.0, 20.2, 0.01)}],
        "contrasts": [],
        "audit": {
            "prompts": {"targeted, wide": {"prompt_right: x": {"value": 0.4}}},
            "rounding": [{"arm": "targeted, wide", "bits": 4, "right: tune": 0.3}],
            "relearning": [],
        },
        "tasks": {"targeted, wide": {"differences": {"task: a": {"high": -0.01}}}},
    }
    met = {each["goal"].split(":")[0]: each["met"] for each in goals_of(document)}
    assert met == {
        "named passages": True,
        "perplexity": False,
        "divergence": True,
        "other passages of the same sources": False,
        "other prompts": False,
        "int4": True,
        "tasks": False,
    }
    assert Arm("svd", "wide", None).file == "svd--wide"
    assert weight_of(torch.nn.Linear(2, 2)).shape == (2, 2)
