"""The study: strengths, what is measured, what is restored, and how it goes on."""

import dataclasses
import json
import math
import types

import numpy as np
import pytest
import reciter
import torch
from reciter import PLACES, SETTINGS, same, weights

from curvedit import Passages
from curvedit.cli import main
from curvedit.study import Inputs, Material, Settings, study
from curvedit.study.arms import Editor, arms_of
from curvedit.study.matching import match
from curvedit.study.material import recited


@pytest.fixture(scope="module")
def model():
    return reciter.trained()


@pytest.fixture(scope="module")
def material():
    return reciter.material()


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
    for each in found["audit"]["relearning"]:
        last = 50 if each["on"] == "unrelated text" else 25
        assert (each["steps"][-1], len(each["right"])) == (last, len(each["steps"]))
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


def test_a_preset_names_its_page(files, tmp_path, monkeypatch, capsys):
    inputs = Inputs(
        files / "model", files / "passages.jsonl", (files / "data.jsonl",),
        {"odd": files / "odd.jsonl"},
    )  # fmt: skip
    monkeypatch.setattr("curvedit.cli.study.prepare", lambda *_, **__: inputs)
    out = tmp_path / "out"
    more = ["--places", "one=model.layers.1.mlp.*", "--kinds", "noise", "--window", "24"]
    more += ["--without", "tasks", "map", "audit", "--fit-tokens", "600", "--no-progress"]
    assert main(["study", "--preset", "real", "--out", str(out), *more]) == 0
    assert "<h1>Gemma 3 270M: what forgetting costs</h1>" in (out / "study.html").read_text()
    assert capsys.readouterr().out.startswith("Gemma 3 270M: what forgetting costs\n")


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
