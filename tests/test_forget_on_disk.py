"""``forget`` from a checkpoint directory to another, and its verb."""

import json

import models
import pytest
import torch
import transformers
from safetensors import safe_open
from test_forget import TARGETS, general, recited

import curvedit
from curvedit.cli import main
from curvedit.models import weight_hash

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*fewer positions:UserWarning", "ignore:.*not forgotten within:UserWarning"
)


def stored(directory):
    """The tensors of a checkpoint."""
    found = {}
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            found |= {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    return found


@pytest.fixture(params=["one file", "shards"])
def saved(request, tmp_path):
    model = models.build("llama")
    size = "1GB" if request.param == "one file" else "40KB"
    model.save_pretrained(tmp_path / "model", max_shard_size=size)
    factors = curvedit.fit(model, [general(24)], targets=TARGETS, progress=False)
    factors.save(tmp_path / "factors")
    return model, factors, tmp_path


def test_a_directory_gets_the_same_edit_as_a_module(saved):
    model, factors, place = saved
    passages = recited(model)
    options = {"holdout": general(6, seed=9), "budget": 0.3, "progress": False}
    with pytest.raises(ValueError, match="device: a module is edited where it is"):
        curvedit.forget(model, factors, passages, device="cpu", **options)
    edit = curvedit.forget(
        place / "model", factors, passages, out=place / "new", device="cpu", **options
    )
    assert edit.out == place / "new"
    with pytest.raises(RuntimeError, match="undo: nothing to restore"):
        edit.undo()
    inside = curvedit.forget(model, factors, passages, **options)
    before, after = stored(place / "model"), stored(place / "new")
    assert list(before) == list(after)
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == {f"{name}.weight" for name in factors}
    for name, each in inside.targets.items():
        assert each.sha256_after == edit.targets[name].sha256_after
        assert weight_hash(after[f"{name}.weight"]) == each.sha256_after
    loaded = transformers.AutoModelForCausalLM.from_pretrained(place / "new")
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, loaded.get_parameter(name)), name


def test_a_warning_names_the_line_of_the_call(saved):
    model, factors, _ = saved
    with pytest.warns(UserWarning, match="not forgotten within") as caught:
        curvedit.forget(
            model, factors, recited(model), holdout=general(6), budget=1e-5, progress=False
        )
    assert {each.filename for each in caught} == {__file__}


def test_the_record_says_how(saved):
    model, factors, place = saved
    edit = curvedit.forget(
        place / "model", factors, recited(model), out=place / "new", holdout=general(6), budget=0.3
    )
    record = json.loads((place / "new/curvedit.json").read_text())
    recipe = record["recipe"]
    assert recipe["criterion"] == "targeted"
    assert record["outcome"]["stopped"] == "forgotten"
    assert record["outcome"]["taken"] == edit.record["taken"]
    assert set(recipe) == {"criterion", "budget", "damping", "steps", "factors"}
    assert recipe["factors"]["sha256"] == factors.identity
    for name, entry in record["targets"].items():
        assert entry["sha256_before"] == factors.targets[name].weight_sha256
        assert entry["sha256_after"] == edit.targets[name].sha256_after
        assert entry["predicted"] == edit.targets[name].predicted


def test_an_error_leaves_nothing(saved, monkeypatch):
    model, factors, place = saved
    before = sorted(place.iterdir())

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("curvedit.editing.checkpoint_directory.shutil.copyfile", fail)
    options = {"holdout": general(6), "budget": 0.3, "progress": False}
    with pytest.raises(OSError, match="nothing was left there"):
        curvedit.forget(place / "model", factors, recited(model), out=place / "new", **options)
    assert sorted(place.iterdir()) == before
    with pytest.raises(ValueError, match="out: expected a new directory"):
        curvedit.forget(place / "model", factors, recited(model), **options)


def test_the_verb(saved, capsys):
    model, _, place = saved
    rows = [
        {"prefix_ids": list(prefix), "suffix_ids": list(suffix)}
        for prefix, suffix in recited(model).rows()
    ]
    (place / "forget.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (place / "text.jsonl").write_text(json.dumps({"input_ids": models.draw(90)}))
    words = f"""forget --model {place}/model --factors {place}/factors --window 30 --budget 0.3
        --passages {place}/forget.jsonl --holdout {place}/text.jsonl --no-progress"""
    assert main([*words.split(), "--out", f"{place}/new"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["step", "recited", "right", "damage", "predicted", "loss"]
    assert lines[1].split() == ["-", "4", "100.0%"]
    assert "new: forgotten after " in lines[-1]
    assert "of 4 recited passages 0 still are, at " in lines[-1]
    assert (place / "new/config.yaml").is_file()
    assert main([*words.split(), "--out", f"{place}/other", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["stopped"] == "forgotten"
    replay = ["forget", "--config", f"{place}/new/config.yaml", "--out", f"{place}/again"]
    assert main(replay) == 0
    for key, tensor in stored(place / "new").items():
        assert torch.equal(tensor, stored(place / "again")[key])
    assert main(["inspect", f"{place}/new"]) == 0


def test_the_report_says_that_the_edit_is_targeted(saved):
    model, factors, place = saved
    passages, text = recited(model), general(6)
    suite = curvedit.Suite(passages=passages, text=text, resamples=20)
    before = curvedit.evaluate(model, suite)
    options = {"holdout": text, "budget": 0.3, "progress": False}
    curvedit.forget(place / "model", factors, passages, out=place / "new", **options)
    edited = transformers.AutoModelForCausalLM.from_pretrained(place / "new")
    report = curvedit.evaluate(edited, suite, baseline=before)
    report = report.with_record(json.loads((place / "new/curvedit.json").read_text()))
    assert report.before["strict"].value == 1.0
    assert report.after["strict"].value == 0.0
    page = report.html()
    assert "targeted, within 0.3 nats per position" in page
    assert f"{len(factors)} weight matrices edited ·" in page
