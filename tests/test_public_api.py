"""What users and their files rely on: public names, file formats and report keys stay."""

import inspect
import json

import models
import pytest
import torch
from safetensors import safe_open

import curvedit
from curvedit import Passages, Suite

pytestmark = pytest.mark.filterwarnings("ignore:.*fewer positions:UserWarning")

# Public names and their parameters. More parameters with a default may follow; none may go.
NAMES = {
    "Edit.undo": "",
    "Factors.basis": "kind, name",
    "Factors.certificate": "kind, name",
    "Factors.corrections": "name",
    "Factors.decompose": "kinds, *, progress=True",
    "Factors.from_moments": "moments, *, model=None",
    "Factors.identity": "property",
    "Factors.keys_of_sums": "",
    "Factors.load": "directory",
    "Factors.mean": "kind, name",
    "Factors.merge": "parts",
    "Factors.require_model": "model",
    "Factors.save": "directory",
    "Factors.sum": "key",
    "Passages": "prefixes, suffixes",
    "Passages.cut": "windows, *, prefix, suffix",
    "Passages.of_split": "split",
    "Passages.read": "path, *, encode=None, prefix=64, suffix=48, text_field='text', split=None",
    "Passages.rows": "",
    "Passages.sha256": "",
    "Passages.take": "numbers",
    "Passages.write": "path, *, tokenizer=None",
    "Report": (
        "before, after=None, controls=(), title='', model=…, recipe=…, hashes=…, data=…, "
        "tool=…, stages=…, targets=(), warnings=(), reference=None"
    ),
    "Report.from_json": "document",
    "Report.html": "",
    "Report.load": "path",
    "Report.save": "directory",
    "Report.table": "",
    "Report.to_json": "",
    "Report.with_control": "name, report",
    "Report.with_edit": "selection, edited=None, fitted=None",
    "Report.with_recipe": "recipe",
    "Report.with_record": "record",
    "Report.with_stage": "name, *, seconds, peak_memory_bytes=None, backend=None",
    "Report.with_title": "title",
    "Report.with_warnings": "*warnings",
    "Selection": "targets, recipe",
    "Suite": (
        "*, passages=None, text=None, ndcg_text=None, splits=…, batch_size=16, "
        "pad_token_id=None, resamples=1000, seed=0, decode=None"
    ),
    "Suite.pad": "property",
    "evaluate": "model, suite, *, baseline=None",
    "fit": (
        "model, batches, *, targets, labels='sampled', seed=0, weighted=True, "
        "corrected=None, task=None, loss=None, positions='all', inputs_on=None, "
        "logits_bytes=None, progress=True"
    ),
    "forget": (
        "model, factors, passages, *, holdout, targets=None, retain=None, budget=0.02, "
        "damping=0.1, steps=4, out=None, batch_size=16, pad_token_id=0, progress=True"
    ),
    "image_batches": "path, *, batch_size=32",
    "load_selection": "directory",
    "mine": (
        "model, corpus, *, out=None, tokenizer=None, prefix=32, suffix=24, stride=None, "
        "near=0.75, batch_size=16, bos='auto', text_field='text', split='train', seed=0, "
        "progress=True"
    ),
    "project": "model, selection, *, out=None, removed_scale=0.0, backend=None",
    "project_each": "model, selections, *, out=None, removed_scale=0.0, backend=None",
    "rank": (
        "factors, *, keep_mass=None, criterion='curvature', scope='target', targets=None, "
        "model=None, seed=0, progress=True"
    ),
    "save_selection": "selection, directory, factors",
    "token_batches": (
        "source, *, tokenizer=None, window=512, batch_size=8, max_tokens=None, "
        "text_field='text', split='train', cache=None"
    ),
}
MANIFEST = {
    *("format", "status", "tool", "made_by", "model", "task", "labels", "seed", "data"),
    *(
        "samples",
        "positions",
        "loss_terms",
        "rows",
        "coverage",
        "self_check",
        "backward",
        "backend",
        "seconds",
    ),
    *("peak_memory_bytes", "warnings", "targets", "files", "sha256"),
}
TARGET = {"shape", "inputs", "tokens", "weight_sha256", "weight_dtype"}
SELECTION = {"format", "recipe", "factors", "targets"}
SELECTED = {
    *("shape", "threshold", "kept", "mass", "weight_sha256", "weight_dtype", "certificates"),
}
CERTIFICATE = {
    *("residual", "orthogonality", "rank", "smallest", "condition", "precision", "retried"),
}
RECIPE = {"criterion", "keep_mass", "scope", "seed", "factors"}
EDITED = {
    *("name", "shape", "kept", "mass", "threshold", "limits", "values_out", "values_in"),
    *("weight_sha256", "change", "backend", "sha256_before", "sha256_after", "key", "file"),
}
REPORT = {
    *("format", "version", "title", "before", "after", "controls", "model", "recipe", "hashes"),
    *("data", "tool", "stages", "targets", "warnings", "sha256"),
    *("differences", "details"),
}
METRICS = {"strict", "loose", "avg_levenshtein", "perplexity", "ndcg10"}


def spelled(thing):
    """Parameters as text: names and defaults, "…" for those without a short spelling."""
    if isinstance(thing, property):
        return "property"
    words, starred = [], False
    for parameter in inspect.signature(getattr(thing, "__func__", thing)).parameters.values():
        if parameter.name in ("self", "cls"):
            continue
        word = parameter.name
        if parameter.kind is parameter.VAR_POSITIONAL:
            word = "*" + word
        if parameter.kind is parameter.KEYWORD_ONLY and not starred:
            words.append("*")
            starred = True
        if parameter.default is not parameter.empty:
            plain = not str(parameter.default).startswith("<")
            word += f"={parameter.default!r}" if plain else "=…"
        words.append(word)
    return ", ".join(words)


def found(name):
    owner, _, member = name.partition(".")
    thing = getattr(curvedit, owner)
    return vars(thing)[member] if member else thing


def test_names_are_exported():
    assert set(curvedit.__all__) >= {name for name in NAMES if "." not in name}
    assert curvedit.__version__


@pytest.mark.parametrize("name", NAMES)
def test_parameters_stay(name):
    ours = spelled(found(name)).split(", ")
    place = 0
    for word in filter(None, NAMES[name].split(", ")):
        if name == "Suite" and word == "splits=…":
            word = "splits=None"
        assert word in ours[place:], f"{name}: {word!r} is gone or out of its place in {ours}"
        place = ours.index(word, place) + 1
    added = [word for word in ours if word not in NAMES[name].split(", ")]
    assert all("=" in word or word == "*" for word in added), f"{name}: {added} have no default"


def test_a_suite_still_says_what_it_was_given():
    text = torch.zeros(2, 5, dtype=torch.int64)
    suite = Suite(text=text, batch_size=3)
    assert suite.text is text
    assert (suite.passages, suite.ndcg_text, dict(suite.splits)) == (None, None, {})
    assert (suite.batch_size, suite.pad, suite.resamples, suite.seed) == (3, 0, 1000, 0)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A directory with everything that is written."""
    place = tmp_path_factory.mktemp("formats")
    model = models.build("llama")
    model.save_pretrained(place / "model")
    batches = models.ragged_batches("llama")
    factors = curvedit.fit(model, batches, targets="*.mlp.*", corrected="position", progress=False)
    factors.save(place / "factors")
    selection = curvedit.rank(factors, keep_mass=0.6, progress=False)
    curvedit.save_selection(selection, place / "selection", factors)
    edit = curvedit.project(place / "model", selection, out=place / "edited")
    text = torch.randint(3, 97, (4, 12), generator=torch.Generator().manual_seed(0))
    passages = Passages.cut(text.tolist(), prefix=8, suffix=4)
    suite = Suite(passages=passages, text=text, resamples=20)
    before = curvedit.evaluate(model, suite)
    with curvedit.project(model, selection):
        report = curvedit.evaluate(model, suite, baseline=before)
    report = report.with_control("random", report)
    report.with_edit(selection, edit.targets, factors.provenance).save(place / "report")
    return place


def read(path):
    return json.loads(path.read_text())


def test_the_factor_directory(made):
    manifest = read(made / "factors/manifest.json")
    assert set(manifest) == MANIFEST | {"corrected"}
    assert manifest["format"] == 1
    assert all(set(target) == TARGET for target in manifest["targets"].values())
    for key, file in manifest["files"].items():
        kind, _, name = key.partition("/")
        assert kind in ("A", "G", "A_w", "G_w", "S")
        assert file["file"] == f"{kind}.{name}.safetensors"
        assert set(file) == {"file", "bytes", "sha256"}
        with safe_open(made / "factors" / file["file"], framework="pt") as stored:
            assert list(stored.keys()) == ["sum"]
    basis = next((made / "factors").glob("G.*.basis.safetensors"))
    with safe_open(basis, framework="pt") as stored:
        assert sorted(stored.keys()) == ["values", "vectors"]
        facts = stored.metadata()
        assert set(facts) == {"certificate", "factor", "spectrum_sha256", "vectors_sha256"}
        assert set(json.loads(facts["certificate"])) == CERTIFICATE


def test_the_selection_directory(made):
    content = read(made / "selection/selection.json")
    assert set(content) == SELECTION
    assert content["format"] == 1
    assert set(content["recipe"]) == RECIPE
    assert set(content["factors"]) == {"path", "sha256"}
    for entry in content["targets"].values():
        assert set(entry) == SELECTED
        assert list(entry["certificates"]) == ["G", "A"]
        assert all(set(each) == CERTIFICATE for each in entry["certificates"].values())
    with safe_open(made / "selection/selection.safetensors", framework="pt") as stored:
        parts = {key.partition("/")[0] for key in stored.keys()}  # noqa: SIM118 - no mapping
    assert parts == {"limits", "values_out", "values_in"}


def test_the_record_of_an_edited_checkpoint(made):
    record = read(made / "edited/curvedit.json")
    assert set(record) == {"tool", "source", "recipe", "targets", "sha256"}
    assert set(record["recipe"]) == RECIPE | {"removed_scale"}
    assert all(set(target) == EDITED for target in record["targets"].values())
    assert all(0 < target["kept"] < 1 for target in record["targets"].values())


def test_the_report(made):
    report = read(made / "report/report.json")
    assert set(report) == REPORT
    assert (report["format"], report["version"]) == ("curvedit-report", 1)
    for metrics in (report["before"], report["after"], report["controls"][0]):
        assert set(metrics) - {"name"} == METRICS
        assert set(metrics["strict"]) == {"value", "low", "high"}
    assert set(report["hashes"]) == set(report["data"]) == {"passages", "text"}
    assert set(report["stages"]["fit"]) == {"seconds", "peak_memory_bytes", "backend"}
    assert set(report["targets"][0]) == EDITED - {"sha256_before", "key", "file"}
    for each in (report["differences"]["after"], report["differences"]["random"]):
        assert set(each) == METRICS
    assert set(report["details"]) == {"passages"}
    assert set(report["details"]["passages"]) == {"before", "after"}
    assert (made / "report/units.safetensors").is_file()
    assert (made / "report/report.html").is_file()
    assert (made / "report/ndcg10_reference.safetensors").is_file()
