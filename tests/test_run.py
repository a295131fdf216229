"""``curvedit run``: checked as a whole before it starts, and goes on where it was stopped."""

import json
import os
import shutil
import signal

import models
import pytest
import torch
import transformers
import yaml

from curvedit import evaluation, fitting, meter, projection
from curvedit.cli import main

pytestmark = pytest.mark.filterwarnings("ignore:.*fewer positions:UserWarning")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    directory = tmp_path_factory.mktemp("run")
    models.build("llama").save_pretrained(directory / "model")
    ids = models.draw(60)
    (directory / "data.jsonl").write_text(json.dumps({"input_ids": ids}))
    passage = {"prefix_ids": ids[:8], "suffix_ids": ids[8:10]}
    (directory / "passages.jsonl").write_text(json.dumps(passage))
    (directory / "long.jsonl").write_text(json.dumps(passage | {"prefix_ids": ids + ids}))
    (directory / "outside.jsonl").write_text(json.dumps(passage | {"prefix_ids": [3, 97]}))
    (directory / "broken.jsonl").write_text("{")
    return directory


@pytest.fixture
def here(place, monkeypatch):
    monkeypatch.chdir(place)
    yield place
    for name in ("out", "again"):
        shutil.rmtree(place / name, ignore_errors=True)


def sections(**changes):
    """A configuration, with changes such as ``rank={"seed": 3}``; None leaves a section out."""
    found = {
        "model": "model",
        "fit": {"data": "data.jsonl", "targets": "*.0.mlp.*", "window": 20, "progress": False},
        "rank": {"keep_mass": 0.9, "progress": False},
        "project": {"removed_scale": 0.1},
        "evaluate": {"text": "data.jsonl", "passages": "passages.jsonl", "window": 20},
    }
    for name, change in changes.items():
        if isinstance(change, dict):
            found[name] = {k: v for k, v in {**found[name], **change}.items() if v is not None}
        else:
            found[name] = change
    return {name: section for name, section in found.items() if section is not None}


def run(out="out", **changes):
    with open("run.yaml", "w") as stream:  # noqa: PTH123 - the working directory's
        yaml.safe_dump(sections(**changes), stream)
    return main(["run", "run.yaml", "--out", str(out)])


NOTHING = {"text": None, "passages": None}
# Changes, the exit status, and what the one line must hold.
REFUSED = {
    "sixty": ({"rank": {"keep_mass": 60}}, 1, "keep_mass: expected a number in (0, 1], got 60"),
    "NaN": ({"rank": {"keep_mass": ".nan"}}, 2, "keep_mass: expected a number, got '.nan'"),
    "a sweep": ({"rank": {"keep_mass": None, "sweep": "0.9:0.5:0.1"}}, 1, "sweep: expected 0 <"),
    "a scope": ({"rank": {"criterion": "random", "scope": "model"}}, 1, "scope: expected 'target'"),
    "a scale": ({"project": {"removed_scale": "inf"}}, 1, "removed_scale: expected a finite"),
    "no batch": ({"fit": {"batch_size": 0}}, 1, "batch_size: expected at least 1, got 0"),
    "a window": ({"evaluate": {"window": 1}}, 1, "window: expected at least 2, got 1"),
    "long windows": ({"evaluate": {"window": 65}}, 0, ""),  # the text has only 60 tokens
    "nothing to do": ({"evaluate": NOTHING}, 1, "expected --passages, --text or --splits, got"),
    "no passages": ({"evaluate": {"passages": "none"}}, 1, "passages: expected a .jsonl"),
    "bad passages": ({"evaluate": {"passages": "broken.jsonl"}}, 1, "broken.jsonl:1 is not JSON"),
    "long passages": ({"evaluate": {"passages": "long.jsonl"}}, 1, "passages: expected at most 64"),
    "other ids": ({"evaluate": {"passages": "outside.jsonl"}}, 1, "passages: expected token ids"),
    "no text": ({"evaluate": {"text": "none.txt"}}, 1, "text: expected a file"),
    "no data": ({"fit": {"data": "none.txt"}}, 1, "data: expected a file"),
    "no target": ({"fit": {"targets": "*.gat"}}, 1, "targets: '*.gat' matches no linear map"),
    "targets not fitted": ({"rank": {"targets": "*.1.*"}}, 1, "targets: '*.1.*' matches no"),
    "nothing to skip": ({"rank": {"skip": "*.1.*"}}, 1, "skip: '*.1.*' matches no"),
    "no corrections": ({"rank": {"criterion": "ekfac"}}, 1, "'corrected: sequence' in fit"),
    "no weights": (
        {"rank": {"criterion": "weighted"}, "fit": {"weighted": False}},
        *(1, "'weighted: true' in fit"),
    ),
    "no device": ({"evaluate": {"device": "cuda:9"}}, 1, "device: expected one of ['cpu'"),
    "no model": ({"model": "none"}, 1, "model: expected a checkpoint directory"),
    "no text for a model": ({"model": ["m"]}, 2, "model: expected text, got ['m']"),
    "no section": ({"fit": None}, 2, "expected the keys model, fit and rank"),
    "an own out": ({"fit": {"out": "elsewhere"}}, 2, "fit: expected no out, which the run gives"),
    "an own model": ({"evaluate": {"model": "m"}}, 2, "evaluate: expected no model, which"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_everything_is_checked_before_the_first_stage(here, capsys, monkeypatch, case):
    changes, status, message = REFUSED[case]
    started = []
    monkeypatch.setattr(fitting, "fit", lambda *_, **__: started.append("fit") or exit_early())
    if status == 2:
        with pytest.raises(SystemExit) as stopped:
            run(**changes)
        assert stopped.value.code == 2
    else:
        assert run(**changes) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith(f"curvedit run: error: {'run.yaml: ' if status == 2 else ''}")
    if status:
        assert started == []
        assert not (here / "out").exists()
        assert message in error
    else:
        assert started == ["fit"]


def exit_early():
    raise RuntimeError("far enough")


@pytest.mark.parametrize("out", ["model/out", "model", "data.jsonl", "data.jsonl/out", " "])
def test_the_place_is_checked_before_the_first_stage(here, capsys, out):
    before = {path: path.is_file() and path.read_bytes() for path in here.rglob("*")}
    assert run(out) == 1
    assert "curvedit run: error: out: expected " in capsys.readouterr().err
    before[here / "run.yaml"] = (here / "run.yaml").read_bytes()
    assert {path: path.is_file() and path.read_bytes() for path in here.rglob("*")} == before


def test_room_for_every_copy_is_checked_before_the_first_stage(here, capsys, monkeypatch):
    size = sum(path.stat().st_size for path in (here / "model").rglob("*") if path.is_file())
    free = type("Usage", (), {"free": 4 * size})()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    assert run(rank={"keep_mass": None, "sweep": "0.1:0.9:0.2"}) == 1
    error = capsys.readouterr().err
    assert f"out: expected {5 * size:,} bytes free" in error
    assert f"got {4 * size:,}" in error
    assert not (here / "out").exists()


def contents(directory):
    return {
        path.relative_to(directory): (path.stat().st_ino, path.read_bytes())
        for path in directory.rglob("*")
        if path.is_file()
    }


FOLDERS = ["factors", "selection", "model", "report"]
STOPS = {
    "factors": (fitting, "fit"),
    "model": (projection, "project"),
    "report": (evaluation, "evaluate"),
}


@pytest.mark.parametrize("stage", STOPS)
def test_a_stopped_run_goes_on(here, capsys, monkeypatch, stage):
    room, verb = STOPS[stage]
    with monkeypatch.context() as patched:
        patched.setattr(room, verb, lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
        assert run() == 143
    made = [name for name in FOLDERS if (here / "out" / name).exists()]
    assert made == FOLDERS[: FOLDERS.index(stage)]
    kept = {name: contents(here / "out" / name) for name in made}
    capsys.readouterr()
    assert run() == 0
    out = capsys.readouterr().out
    for name in made:
        assert contents(here / "out" / name) == kept[name]
    assert out.count("is done, kept") == len(made)
    assert (here / "out/report/report.json").is_file()
    assert run() == 0  # all is done
    assert capsys.readouterr().out.count("is done, kept") == 4


def test_a_changed_option_of_a_finished_stage_is_refused(here, capsys):
    assert run(evaluate=None) == 0
    before = contents(here / "out")
    for changes, message in (
        ({"fit": {"seed": 1}}, "fit: seed: expected 0, by which out/factors was made, got 1"),
        ({"rank": {"keep_mass": 0.8}}, "rank: keep_mass: expected 0.9, by which out/selection"),
        ({"project": {"removed_scale": 0}}, "project: removed_scale: expected 0.1, by which"),
        ({"model": "./model"}, "fit: model: expected 'model', by which out/factors was made"),
    ):
        assert run(**{"evaluate": None, **changes}) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert message in error
        assert "remove out/" in error
    assert contents(here / "out") == before
    assert run(fit={"progress": True}) == 0  # says nothing of the result; and a stage is added
    assert (here / "out/report/report.json").is_file()


def test_what_follows_from_a_removed_stage_is_refused(here, capsys):
    assert run(evaluate=None) == 0
    shutil.rmtree(here / "out/factors")
    capsys.readouterr()
    assert run(evaluate=None) == 1
    assert "expected out/selection to follow from the stages before" in capsys.readouterr().err
    shutil.rmtree(here / "out/selection")
    shutil.rmtree(here / "out/model")
    assert run(rank={"keep_mass": 0.8}, evaluate=None) == 0


def test_a_stage_stopped_before_its_record_gets_one(here):
    assert run(evaluate=None) == 0
    written = (here / "out/factors/config.yaml").read_text()
    (here / "out/factors/config.yaml").unlink()
    assert run(evaluate=None) == 0
    assert (here / "out/factors/config.yaml").read_text() == written


def test_the_record_of_a_run_replays_it(here):
    assert run() == 0
    assert main(["run", "out/config.yaml", "--out", "again"]) == 0
    ours, theirs = (here / name / "model/model.safetensors" for name in ("out", "again"))
    assert ours.read_bytes() == theirs.read_bytes()
    assert main(["run", "out/config.yaml", "--out", "out"]) == 0


def test_another_directory_with_content_is_refused(here, capsys):
    assert run(evaluate=None) == 0
    for other in ("out/factors", "model"):
        assert run(other) == 1
        assert "out: expected a " in capsys.readouterr().err


def test_a_hub_name_is_refused_before_the_fit(here, capsys):
    """project copies a directory, so the model must be one."""
    assert run(model="someone/something") == 1
    assert "model: expected a checkpoint directory" in capsys.readouterr().err
    assert not (here / "out").exists()


def test_a_tied_target_is_refused_before_the_fit(here, capsys):
    config = transformers.LlamaConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=97,
        tie_word_embeddings=True,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(here / "tied")
    assert run(model="tied", fit={"targets": ["lm_head", "*.mlp.*"]}) == 1
    error = capsys.readouterr().err
    assert "targets: 'lm_head' is tied, model.embed_tokens.weight and lm_head.weight are" in error
    assert not (here / "out").exists()


def test_svd_reads_the_model_of_the_run(here):
    assert run(rank={"criterion": "svd"}, evaluate=None) == 0
    recipe = json.loads((here / "out/model/curvedit.json").read_text())["recipe"]
    assert recipe["criterion"] == "svd"
    assert torch.isfinite(torch.tensor(recipe["keep_mass"]))


def test_stages_are_heard_unless_they_are_to_be_quiet(here, monkeypatch, capsys):
    monkeypatch.setattr(meter, "_EVERY", 0.0)
    assert run(project={"progress": True}, evaluate={"progress": False}) == 0
    lines = capsys.readouterr().err.splitlines()
    assert {line.split(":")[0] for line in lines if "warning" not in line} == {"project"}
    for word, found in (("--no-progress", False), ("--json", True)):
        capsys.readouterr()
        words = ["--model", "model", "--selection", "out/selection", "--out", f"again/{found}"]
        assert main(["project", *words, word]) == 0
        assert ("project: 0 s" in capsys.readouterr().err) is found
