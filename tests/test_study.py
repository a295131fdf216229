"""The study: strengths, what is measured, what is restored, and how it goes on."""

import dataclasses
import json
import math
import types

import numpy as np
import pytest
import reciter
import torch
from scipy.stats import spearmanr

import curvedit
from curvedit import Passages
from curvedit.cli import main
from curvedit.data import token_batches
from curvedit.models import weight_of
from curvedit.report import Metric, Units
from curvedit.study import Material, Settings, auditing, study
from curvedit.study.arms import Arm, Editor, add_noise, arms_of, change_of
from curvedit.study.goals import goals_of
from curvedit.study.matching import match
from curvedit.study.material import recited
from curvedit.study.measuring import Yardstick, of_units, with_units
from curvedit.study.price_map import PriceMap, cells_of, measure_map

PLACES = {"middle": ["model.layers.{1,2}.mlp.*"], "wide": ["model.layers.*.mlp.*"]}
SETTINGS = Settings(PLACES, fit_tokens=(600, 2400), checked=2, tasks=0, budget=0.2, mapped=4)


@pytest.fixture(scope="module")
def model():
    return reciter.trained()


@pytest.fixture(scope="module")
def material():
    rows = [list(row) for row in reciter.text(160, seed=7)]
    fitted_on = {
        count: token_batches(rows, window=24, batch_size=8, max_tokens=count)
        for count in SETTINGS.fit_tokens
    }
    text = {"even": reciter.text(14, seed=11), "odd": reciter.text(14, seed=12)}
    return Material(reciter.passages(), fitted_on, text)


@pytest.fixture(scope="module")
def done(model, material, tmp_path_factory):
    before = {name: each.clone() for name, each in model.state_dict().items()}
    place = tmp_path_factory.mktemp("study") / "out"
    found = study(model, material, SETTINGS, place, progress=False)
    return found, before, place


def recited_sides(model, material):
    records = types.SimpleNamespace(part=lambda name, make, stage: make(), notes=[])
    passages = recited(model, material.passages, SETTINGS, records)
    return {side: passages.of_split(side) for side in ("tune", "related", "test")}


def weights(model):
    return {name: each.clone() for name, each in model.state_dict().items()}


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("centre", [0.7, 3.0, 6.0, 9.5, 17.0])
def test_the_strength_is_found(centre):
    found = match(lambda s: 1 / (1 + math.exp(-2 * (-math.log2(s) - centre))), 0.6)
    assert abs(found.found - 0.6) <= 0.02
    assert len(found.tried) <= 9


def test_a_close_strength_takes_few_tries():
    def share(strength):
        return 1 / (1 + math.exp(-2 * (-math.log2(strength) - 8.0)))

    near = match(share, 0.6, near=2**-8.7)
    assert abs(near.found - 0.6) <= 0.02
    assert len(near.tried) <= 3 < len(match(share, 0.6).tried)


def test_what_cannot_be_reached_gives_the_nearest():
    assert match(lambda _: 0.95, 0.6).found == 0.95
    steps = match(lambda s: 0.2 if s > 2**-8 else 0.9, 0.6)
    assert steps.found in (0.2, 0.9)
    assert len(steps.tried) <= 9


def test_the_model_is_what_it_was(done, model):
    _, before, _ = done
    assert same(before, weights(model))
    assert all(each.requires_grad for each in model.parameters())


def test_before_is_the_unedited_model(done, model, material):
    """Whatever is measured first, the baseline is not measured on an edited model."""
    found, _, _ = done
    rows = [row for each in material.text.values() for row in each[SETTINGS.checked :]]
    ids = torch.tensor(rows)
    with torch.no_grad():
        loss = model(input_ids=ids, labels=ids).loss
    assert found["before"]["perplexity"]["value"] == pytest.approx(math.exp(float(loss)), rel=1e-4)
    assert found["before"]["right: tune"]["value"] > 0.95
    assert found["before"]["kl"]["value"] == 0


def test_every_arm_is_there_and_matched(done):
    found, _, _ = done
    names = [each["name"] for each in found["arms"]]
    assert names == [each.name for each in arms_of(list(PLACES), (600, 2400), SETTINGS.kinds)]
    assert len(names) == len(set(names)) == 18
    unedited = found["before"]["right: tune"]["value"]
    for each in found["arms"]:
        right = each["metrics"]["right: tune"]["value"]
        if each["criterion"] == "targeted":
            assert right < 0.5
            continue
        if each["matched"]:
            assert right == pytest.approx(2 / 3 * unedited, abs=0.06)
        assert each["metrics"]["kl"]["value"] > 0
        assert each["change"] > 0
    assert sum(not each["matched"] for each in found["arms"]) <= 1


def test_sides_and_domains_add_up(done):
    found, _, _ = done
    assert found["passages"]["tune"] == {"passages": 10, "sources": 4}
    assert found["passages"]["related"] == {"passages": 2, "sources": 2}
    for each in (found["before"], *(arm["metrics"] for arm in found["arms"])):
        loss = [math.log(each[f"perplexity: {name}"]["value"]) for name in ("even", "odd")]
        assert math.log(each["perplexity"]["value"]) == pytest.approx(np.mean(loss), rel=1e-9)


def test_related_passages_are_of_named_sources(done, model, material):
    """Set apart: not named, not tuned on, and each of a source of which others are named."""
    found, _, _ = done
    sides = recited_sides(model, material)
    named, apart = ({each["source"] for each in sides[side].facts} for side in ("tune", "related"))
    assert apart <= named
    assert not set(sides["related"].prefixes) & set(sides["tune"].prefixes)
    assert found["before"]["right: related"]["value"] > 0.9


def test_a_source_of_its_own_is_not_set_apart(model, material, tmp_path):
    given = material.passages
    facts = [{**each, "source": f"own {n}"} for n, each in enumerate(given.facts)]
    alone = Material(dataclasses.replace(given, facts=facts), material.fitted_on, material.text)
    few = Settings(
        PLACES, fit_tokens=(600,), kinds=("noise",), checked=2, mapped=0, tasks=0, audited=False
    )
    found = study(model, alone, few, tmp_path / "out", progress=False)
    assert set(found["passages"]) == {"tune", "test"}
    assert "right: related" not in found["before"]


def test_a_criterion_is_compared_with_the_best_control(done):
    found, _, _ = done
    arms = {each["name"]: each for each in found["arms"]}
    rise = {
        name: each["metrics"]["perplexity"]["value"] / found["before"]["perplexity"]["value"] - 1
        for name, each in arms.items()
    }
    assert found["contrasts"]
    for each in found["contrasts"]:
        own = rise[f"{each['arm']}, {each['place']}, {each['fit_tokens']:,} tokens"]
        controls = [
            rise[f"{name}, {each['place']}"]
            for name in ("svd", "random", "noise")
            if arms[f"{name}, {each['place']}"]["matched"]
        ]
        assert each["ratio"]["value"] == pytest.approx(own / min(controls), rel=1e-6)
        assert each["ratio"]["low"] <= each["ratio"]["value"] <= each["ratio"]["high"]


def test_the_files_hold_what_was_returned(done):
    found, _, place = done
    assert json.loads((place / "study.json").read_text()) == json.loads(json.dumps(found))
    assert (place / "study.html").stat().st_size > 1000


def test_an_interrupted_study_goes_on(done, model, material, tmp_path, monkeypatch):
    whole, before, _ = done
    calls = []
    edit = Editor.edit

    def failing(self, arm, strength):
        calls.append(arm.name)
        if len(calls) == 30:
            raise KeyboardInterrupt
        return edit(self, arm, strength)

    monkeypatch.setattr(Editor, "edit", failing)
    with pytest.raises(KeyboardInterrupt):
        study(model, material, SETTINGS, tmp_path / "out", progress=False)
    assert same(before, weights(model))
    first = set(calls[:-1]) - {calls[29]}
    calls.clear()
    calls.extend([""] * 100)
    found = study(model, material, SETTINGS, tmp_path / "out", progress=False)
    chosen = {each["arm"] for each in found["audit"]["rounding"]}
    assert not (first - chosen) & set(calls[100:])  # what was measured is not tried again
    for key in ("before", "arms", "contrasts", "goals"):
        assert found[key] == whole[key], key


def test_another_study_is_not_continued(done, model, material, tmp_path):
    _, _, place = done
    with pytest.raises(FileExistsError, match="finished study"):
        study(model, material, SETTINGS, place, progress=False)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("words")
    with pytest.raises(FileExistsError, match="thesis"):
        study(model, material, SETTINGS, tmp_path / "mine", progress=False)
    (place / "study.json").rename(tmp_path / "study.json")
    try:
        other = Settings(PLACES, fit_tokens=SETTINGS.fit_tokens, lost=0.5)
        with pytest.raises(ValueError, match="with which the study in"):
            study(model, material, other, place, progress=False)
    finally:
        (tmp_path / "study.json").rename(place / "study.json")


def test_passages_that_are_not_recited_are_said(model, material, tmp_path):
    given = material.passages
    strange = Passages(
        [*given.prefixes, *given.prefixes[:2]],
        [*given.suffixes, *given.suffixes[5:7]],
        facts=[*given.facts, *given.facts[:2]],
    )
    few = Settings(
        PLACES, fit_tokens=(600,), kinds=("noise",), checked=2, mapped=0, tasks=0, audited=False
    )
    odd = Material(strange, material.fitted_on, material.text)
    found = study(model, odd, few, tmp_path / "out", progress=False)
    assert found["warnings"] == [
        "2 of 26 passages are not recited (less than 75% of the tokens right) and were left out"
    ]
    assert found["passages"]["tune"]["passages"] == 10
    mixed = given.take(range(12))
    unknown = Passages(
        [*mixed.prefixes, (5, 6, 7)], [*mixed.suffixes, (9, 9, 9, 9)],
        facts=[*mixed.facts, {"split": "test"}],
    )  # fmt: skip
    with pytest.raises(ValueError, match="test side that the model recites"):
        study(model, Material(unknown, material.fitted_on, material.text), few, tmp_path / "new")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kinds": ("magic",)}, "kinds: expected some of"),
        ({"places": {}}, "places: expected at least one"),
        ({"fit_tokens": ()}, "fit_tokens: expected numbers of at least 2"),
        ({"lost": 1.0}, "lost: expected a share between 0 and 1"),
        ({"budget": 0.0}, "budget: expected a positive number"),
        ({"checked": 0}, "checked: expected at least 1"),
    ],
)
def test_settings_are_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        Settings(**{"places": PLACES, **changes})


def test_too_little_text_is_refused(model, material, tmp_path):
    short = Material(material.passages, material.fitted_on, {"few": material.text["odd"][:2]})
    with pytest.raises(ValueError, match="more than 2 windows of each domain, got 2 of 'few'"):
        study(model, short, SETTINGS, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


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


def test_rounding_keeps_integers_and_is_within_half_a_step():
    whole = torch.arange(-7, 8).float().repeat(4)[:48].view(2, 24)
    assert torch.equal(auditing.rounded_to(whole * 0.5, 4), whole * 0.5)
    weight = torch.randn(5, 70, generator=torch.Generator().manual_seed(0))
    found = auditing.rounded_to(weight, 4)
    for start in range(0, 70, auditing.GROUP):
        part = slice(start, start + auditing.GROUP)
        step = weight[:, part].abs().amax(1, keepdim=True) / 7
        assert ((found - weight)[:, part].abs() <= step / 2 + 1e-6).all()
    assert torch.equal(auditing.rounded_to(torch.zeros(2, 3), 8), torch.zeros(2, 3))


def test_relearning_trains_and_restores(model, material):
    before = weights(model)
    rows = [prefix + suffix for prefix, suffix in material.passages.rows()]
    seen = []

    def probe():
        seen.append(weights(model))
        return len(seen)

    assert auditing.relearn(model, rows, probe, steps=(1, 3)) == [1, 2]
    assert not same(seen[0], before)
    assert not same(seen[0], seen[1])
    assert torch.equal(seen[1]["model.embed_tokens.weight"], before["model.embed_tokens.weight"])
    assert same(before, weights(model))
    assert all(each.requires_grad and each.grad is None for each in model.parameters())


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


@pytest.fixture(scope="module")
def files(model, tmp_path_factory):
    """What the command line takes: a checkpoint, passages and text."""
    place = tmp_path_factory.mktemp("files")
    model.save_pretrained(place / "model")
    reciter.passages().write(place / "passages.jsonl")
    for name, rows in (("data", reciter.text(60, seed=7)), ("odd", reciter.text(20, seed=12))):
        lines = [json.dumps({"input_ids": list(row)}) for row in rows]
        (place / f"{name}.jsonl").write_text("\n".join(lines))
    return place


def words(place, *more):
    return [
        *("study", "--model", str(place / "model"), "--passages", str(place / "passages.jsonl")),
        *("--data", str(place / "data.jsonl"), "--held-out", f"odd={place / 'odd.jsonl'}"),
        *("--window", "24", "--no-progress", "--without", "tasks", "map", "audit", *more),
    ]


def test_the_command_line(files, tmp_path, capsys):
    out = tmp_path / "out"
    more = ["--places", "one=model.layers.1.mlp.*+model.layers.2.mlp.up_proj", "--out", str(out)]
    more += ["--kinds", "curvature", "noise", "--fit-tokens", "600"]
    assert main(words(files, *more)) == 0
    found = json.loads((out / "study.json").read_text())
    assert [each["name"] for each in found["arms"]] == ["curvature, one, 600 tokens", "noise, one"]
    assert found["settings"]["places"]["one"][1] == "model.layers.2.mlp.up_proj"
    assert "curvature" in capsys.readouterr().out
    assert main(words(files, *more)) == 1
    assert "a finished study" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--lost", "2"], "lost: expected a share between 0 and 1, got 2.0"),
        (["--held-out", "odd.jsonl"], "held_out: expected NAME=VALUE, got 'odd.jsonl'"),
        (["--places", "a=x", "a=y"], "places: expected each name once, got 'a' twice"),
        (["--data", "nowhere.jsonl"], "expected a file or directory, got nowhere.jsonl"),
        (["--places", "a=nothing.*"], "nothing.*"),
    ],
)
def test_mistakes_of_the_command_line(files, tmp_path, capsys, more, message):
    assert main(words(files, "--out", str(tmp_path / "out"), *more)) == 1
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_preset_brings_its_own_data(tmp_path, capsys):
    given = ["study", "--preset", "real", "--out", str(tmp_path / "out"), "--data", "x.jsonl"]
    assert main(given) == 1
    assert "data: not allowed with --preset, got --data" in capsys.readouterr().err
    assert main(["study", "--model", "x", "--out", str(tmp_path / "out")]) == 1
    assert "passages: expected it beside --model" in capsys.readouterr().err
