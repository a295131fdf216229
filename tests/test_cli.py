"""The command line on saved tiny checkpoints, end to end."""

import json

import models
import pytest
import torch
import yaml
from safetensors.torch import save_file

from curvedit.cli import main

pytestmark = pytest.mark.filterwarnings("ignore:.*fewer positions:UserWarning")


@pytest.fixture(scope="module", params=["olmo2", "llama", "gpt2", "vit"])
def place(request, tmp_path_factory):
    """(kind, directory with model/ and data)."""
    kind, directory = request.param, tmp_path_factory.mktemp(request.param)
    models.build(kind).save_pretrained(directory / "model")
    if kind == "vit":
        batches = models.ragged_batches("vit", sizes=(24,))
        save_file(batches[0], directory / "images.safetensors")
    else:
        generator = torch.Generator().manual_seed(2)
        rows = [
            {"input_ids": torch.randint(3, 97, (n,), generator=generator).tolist()}
            for n in (300, 5, 220)
        ]
        (directory / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
        passages = [
            {"prefix_ids": row["input_ids"][:8], "suffix_ids": row["input_ids"][8:12]}
            for row in (rows[0], rows[2])
        ]
        (directory / "passages.jsonl").write_text("\n".join(map(json.dumps, passages)))
    return kind, directory


def words(kind, directory, verb):
    """The flags of a verb, but for its ``--out``."""
    data = directory / ("images.safetensors" if kind == "vit" else "data.jsonl")
    sizes = ["--window", 20, "--batch-size", 4]
    given = ["--model", directory / "model", "--data", data, "--targets", *models.targets(kind)]
    compared = ["--model", directory / "edited", "--baseline", directory / "model"]
    measured = ["--text", data, "--passages", directory / "passages.jsonl"]
    if kind == "vit":
        measured = ["--splits", f"val={data}"]
    return {
        "fit": [*given, *sizes, "--no-progress"],
        "rank": ["--factors", directory / "factors", "--keep-mass", 0.7],
        "project": ["--model", directory / "model", "--selection", directory / "selection"],
        "evaluate": [*compared, *measured, *sizes],
    }[verb]


def run(*arguments):
    return main([str(argument) for argument in arguments])


def fitted(kind, directory):
    """The factor directory, fitted by the first test that needs it."""
    out = directory / "factors"
    if not out.exists():
        assert run("fit", *words(kind, directory, "fit"), "--out", out) == 0
    return out


def test_all_four_verbs(place, capsys):
    kind, directory = place
    outputs = {"fit": "factors", "rank": "selection", "project": "edited", "evaluate": "report"}
    for verb, out in outputs.items():
        assert run(verb, *words(kind, directory, verb), "--out", directory / out) == 0, (
            capsys.readouterr().err
        )
        assert (directory / out / "config.yaml").is_file()
        assert not list(directory.glob("*.part"))
    report = json.loads((directory / "report/report.json").read_text())
    metrics = (
        {"accuracy"}
        if kind == "vit"
        else {"strict", "loose", "avg_levenshtein", "perplexity", "ndcg10"}
    )
    assert metrics <= set(report["before"])
    assert metrics <= set(report["after"])
    assert "<svg" in (directory / "report/report.html").read_text()
    model = type(models.build(kind)).from_pretrained(directory / "edited")
    assert all(p.isfinite().all() for p in model.parameters())
    assert run("inspect", directory / "factors") == run("inspect", directory / "selection") == 0
    assert run("inspect", directory / "report") == 0
    replayed = directory / "factors-again"
    assert run("fit", "--config", directory / "factors/config.yaml", "--out", replayed) == 0
    assert (replayed / "manifest.json").is_file()
    for path in (directory / "factors").glob("*.safetensors"):
        if "basis" not in path.name:
            assert path.read_bytes() == (replayed / path.name).read_bytes()


def test_keeping_all_returns_every_weight(place, capsys):
    kind, directory = place
    factors = fitted(kind, directory)
    every = ["--keep-mass", 1, "--out", directory / "all"]
    assert run("rank", "--factors", factors, *every) == 0
    selection = ["--selection", directory / "all", "--out", directory / "same"]
    assert run("project", "--model", directory / "model", *selection) == 0
    assert (directory / "same/model.safetensors").read_bytes() == (
        directory / "model/model.safetensors"
    ).read_bytes()


def test_a_sweep(place, tmp_path, capsys):
    kind, directory = place
    factors = fitted(kind, directory)
    swept = ["--sweep", "0.5:0.9:0.2", "--out", tmp_path / "sweep"]
    assert run("rank", "--factors", factors, *swept) == 0
    assert "operations of dense" in capsys.readouterr().out
    selection = ["--model", directory / "model", "--selection"]
    assert run("project", *selection, tmp_path / "sweep", "--out", tmp_path / "edited") == 0
    assert sorted(path.name for path in (tmp_path / "edited").iterdir()) == [
        "config.yaml",
        *(f"keep-{share}" for share in (0.5, 0.7, 0.9)),
    ]
    assert run("project", *selection, tmp_path / "sweep/keep-0.7", "--out", tmp_path / "one") == 0
    ours, theirs = (
        type(models.build(kind)).from_pretrained(tmp_path / name).state_dict()
        for name in ("edited/keep-0.7", "one")
    )
    for key, tensor in theirs.items():
        torch.testing.assert_close(ours[key], tensor, atol=2e-6, rtol=1e-4)
    record = json.loads((tmp_path / "edited/keep-0.5/curvedit.json").read_text())
    assert record["recipe"]["keep_mass"] == 0.5


def test_corrected_eigenvalues(place, tmp_path):
    kind, directory = place
    corrected = ["--corrected", "sequence", "--out", tmp_path / "factors"]
    assert run("fit", *words(kind, directory, "fit"), *corrected) == 0
    manifest = json.loads((tmp_path / "factors/manifest.json").read_text())
    assert manifest["corrected"]["per"] == "sequence"
    chosen = ["--criterion", "ekfac", "--keep-mass", 0.6, "--out", tmp_path / "selection"]
    assert run("rank", "--factors", tmp_path / "factors", *chosen) == 0
    selection = ["--selection", tmp_path / "selection", "--out", tmp_path / "edited"]
    assert run("project", "--model", directory / "model", *selection) == 0
    record = json.loads((tmp_path / "edited/curvedit.json").read_text())
    assert record["recipe"]["criterion"] == "ekfac"


def test_refuses_a_bad_sweep(tmp_path, capsys):
    for sweep, message in (
        ("0.5", "expected FROM:TO:STEP"),
        ("0.9:0.5:0.1", "expected 0 < FROM <= TO"),
    ):
        assert run("rank", "--factors", tmp_path, "--sweep", sweep, "--out", tmp_path / "s") == 1
        assert f"sweep: {message}" in capsys.readouterr().err


def test_run_from_one_file(place, tmp_path):
    kind, directory = place
    data = str(directory / ("images.safetensors" if kind == "vit" else "data.jsonl"))
    fit = {"data": [data], "targets": models.targets(kind), "window": 20, "progress": False}
    measured = {"splits": [f"val={data}"]} if kind == "vit" else {"text": data, "window": 20}
    config = {
        "model": str(directory / "model"),
        "fit": fit,
        "rank": {"keep_mass": 0.8, "criterion": "weighted", "scope": "model"},
        "project": None,
        "evaluate": measured,
    }
    out = tmp_path / "out"
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    assert run("run", tmp_path / "run.yaml", "--out", out) == 0
    assert (out / "model/curvedit.json").is_file()
    assert json.loads((out / "report/report.json").read_text())["before"]
    for name, verb in (("factors", "fit"), ("model", "project"), ("report", "evaluate")):
        assert yaml.safe_load((out / name / "config.yaml").read_text())["verb"] == verb
    again = ["--config", out / "selection/config.yaml", "--out", out / "again"]
    assert run("rank", *again) == 0
    ours, theirs = (
        json.loads((place / "selection.json").read_text())
        for place in (out / "selection", out / "again")
    )
    assert ours == theirs


def test_merge(place, tmp_path, capsys):
    kind, directory = place
    factors = fitted(kind, directory)
    assert run("merge", "--factors", factors, factors, "--out", tmp_path / "twice") == 1
    assert "about 100% of whose samples are the same" in capsys.readouterr().err
    assert not (tmp_path / "twice").exists()
    other = models.as_of_other_data(factors, tmp_path / "other")
    assert run("merge", "--factors", factors, other, "--out", tmp_path / "twice") == 0
    once, twice = (
        json.loads((p / "manifest.json").read_text())["targets"]
        for p in (factors, tmp_path / "twice")
    )
    assert all(twice[name]["tokens"] == 2 * once[name]["tokens"] for name in once)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    directory = tmp_path_factory.mktemp("bad")
    models.build("llama").save_pretrained(directory / "model")
    (directory / "data.jsonl").write_text(json.dumps({"input_ids": list(range(3, 90))}))
    (directory / "empty.jsonl").write_text("")
    (directory / "text.txt").write_text("some text")
    (directory / "full").mkdir()
    (directory / "full/mine").write_text("kept")
    return directory


BAD = {
    "unknown pattern": (["--targets", "*.mlp.gat"], "targets: '*.mlp.gat' matches no linear map"),
    "no such data": (["--data", "nowhere.jsonl"], "data: expected a file"),
    "empty data": (["--data", "empty.jsonl"], "data: expected at least two tokens, got 0"),
    "no tokenizer": (["--data", "text.txt"], "tokenizer: expected one"),
    "window of one": (["--window", "1"], "window: expected at least 2"),
    "no such model": (["--model", "./nowhere"], "model: expected a checkpoint directory"),
    "output not empty": (["--out", "full"], "out: expected a new or empty directory"),
}


@pytest.mark.parametrize("case", BAD)
def test_refuses(llama, monkeypatch, capsys, case):
    monkeypatch.chdir(llama)
    extra, message = BAD[case]
    usual = ["--model", "model", "--data", "data.jsonl", "--targets", "*.mlp.*"]
    usual += ["--out", "factors", "--window", "20"]
    assert run("fit", *usual, *extra, "--no-progress") == 1
    assert f"curvedit fit: error: {message}" in capsys.readouterr().err
    assert not (llama / "factors").exists()
    assert not list(llama.glob("*.part"))
    assert (llama / "full/mine").read_text() == "kept"


BAD_SECTIONS = {
    "unknown key": ({"evaluate": {"texts": ["data.jsonl"]}}, ("evaluate", "'texts'")),
    "wrong type": ({"rank": {"keep_mass": "most"}}, ("rank", "keep_mass", "a number", "'most'")),
    "outside the choices": (
        {"rank": {"keep_mass": 0.5, "criterion": "taste"}},
        ("rank", "criterion", "'ekfac'", "'taste'"),
    ),
    "a flag is missing": ({"rank": {"scope": "model"}}, ("rank", "keep_mass", "sweep")),
    "two that exclude each other": (
        {"rank": {"keep_mass": 0.5, "sweep": "0.5:0.9:0.1"}},
        ("rank", "keep_mass", "sweep"),
    ),
    "not a section": ({"project": ["removed_scale"]}, ("project", "list")),
}


@pytest.mark.parametrize("case", BAD_SECTIONS)
def test_run_reads_every_section_before_the_first_stage(llama, monkeypatch, capsys, tmp_path, case):
    monkeypatch.chdir(llama)
    changes, named = BAD_SECTIONS[case]
    sections = {
        "model": "model",
        "fit": {"data": "data.jsonl", "targets": "*.mlp.*", "window": 20, "progress": False},
        "rank": {"keep_mass": 0.5},
        "evaluate": {"text": "data.jsonl", "window": 20},
    }
    (tmp_path / "stages.yaml").write_text(yaml.safe_dump(sections | changes))
    with pytest.raises(SystemExit) as stopped:
        run("run", tmp_path / "stages.yaml", "--out", tmp_path / "out")
    assert stopped.value.code == 2
    assert not (tmp_path / "out").exists()
    message = capsys.readouterr().err
    for part in (str(tmp_path / "stages.yaml"), *named):
        assert part in message


def test_refuses_a_share_out_of_range(place, capsys, tmp_path):
    kind, directory = place
    factors = fitted(kind, directory)
    capsys.readouterr()
    for share in ("0", "1.01", "nan"):
        asked = ["--keep-mass", share, "--out", tmp_path / "s"]
        assert run("rank", "--factors", factors, *asked) == 1
        assert "keep_mass: expected a number in (0, 1]" in capsys.readouterr().err
        assert not (tmp_path / "s").exists()


def test_wrong_usage_exits_with_two(capsys):
    for arguments in ([], ["fit"], ["rank", "--config", "nowhere.yaml"]):
        with pytest.raises(SystemExit) as stopped:
            run(*arguments)
        assert stopped.value.code == 2
    assert "nowhere.yaml" in capsys.readouterr().err
