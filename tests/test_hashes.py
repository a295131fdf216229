"""Bases, selections and manifests are what was written, or refused by name with a remedy."""

import json
import shutil

import models
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import curvedit
from curvedit import Factors, load_selection

NAMES = ["one", "two"]


@pytest.fixture
def place(tmp_path):
    """A factor directory with bases, a selection, and the model in memory."""
    model = torch.nn.ModuleDict({name: torch.nn.Linear(8, 6) for name in NAMES})
    selection = models.selection_of(model, NAMES)
    selection.factors.save(tmp_path / "factors")
    selection.save(tmp_path / "selection")
    return tmp_path, model


def rewritten(path, change):
    """Change the tensors of a safetensors file; its metadata stay."""
    with safe_open(path, framework="pt") as stored:
        facts = stored.metadata()
    tensors = {key: value.clone() for key, value in load_file(path).items()}
    change(tensors)
    save_file(tensors, path, facts)


def flip(path, place=-3):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def nan_column(path):
    rewritten(path, lambda tensors: tensors["vectors"][:, 2].fill_(torch.nan))


def swapped_columns(path):
    rewritten(path, lambda tensors: tensors.update(vectors=tensors["vectors"].flip(1).contiguous()))


def other_values(path):
    rewritten(path, lambda tensors: tensors["values"].mul_(2))


def of_another_factor(path):
    shutil.copy(path.with_name("G.two.basis.safetensors"), path)


def without_hashes(path):
    tensors, facts = load_file(path), {"certificate": json.dumps({"rank": 3})}
    save_file(tensors, path, facts)


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (flip, "is damaged"),
        (nan_column, "its vectors differ from their SHA-256"),
        (swapped_columns, "its vectors differ from their SHA-256"),
        (other_values, "its spectrum differs from its SHA-256"),
        (of_another_factor, "the basis of another factor"),
        (without_hashes, "is damaged"),
    ],
)
def test_a_cached_basis_is_verified_when_it_is_used(place, damage, what):
    directory, model = place
    path = directory / "factors/G.one.basis.safetensors"
    damage(path)
    before = model["one"].weight.clone()
    with pytest.raises(ValueError, match=f"G.one.basis.safetensors is .*{what[3:]}.*; delete it"):
        curvedit.project(model, load_selection(directory / "selection"))
    assert torch.equal(model["one"].weight, before)
    path.unlink()
    assert curvedit.project(model, load_selection(directory / "selection")).targets["one"].change


def test_the_basis_of_a_refitted_factor_is_refused(place):
    directory, _ = place
    factors = Factors.load(directory / "factors")
    Factors.merge([factors, factors]).save(directory / "twice")
    shutil.copy(directory / "factors/A.one.basis.safetensors", directory / "twice")
    for use in (Factors.spectrum, Factors.certificate, Factors.basis):
        with pytest.raises(ValueError, match=r"A.one.basis.* is the basis of another"):
            use(Factors.load(directory / "twice"), "A", "one")


def edited(change):
    def damage(directory):
        path = directory / "selection.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content, indent=2))

    return damage


def in_tensors(change):
    return lambda directory: rewritten(directory / "selection.safetensors", change)


DAMAGE = {
    "kept": edited(lambda content: content["targets"]["one"].update(kept=48)),
    "threshold": edited(lambda content: content["targets"]["one"].update(threshold=0.0)),
    "hash of the weight": edited(
        lambda content: content["targets"]["one"].update(weight_sha256="")
    ),
    "keep_mass": edited(lambda content: content["recipe"].update(keep_mass=0.9)),
    "a target gone": edited(lambda content: content["targets"].pop("two")),
    "limits": in_tensors(lambda tensors: tensors["limits/one"].fill_(8)),
    "spectrum": in_tensors(lambda tensors: tensors["values_in/one"].mul_(2)),
    "limits gone": in_tensors(lambda tensors: tensors.pop("limits/one")),
    "no hash": lambda directory: save_file(
        load_file(directory / "selection.safetensors"), directory / "selection.safetensors"
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_changed_selection_is_refused(place, case):
    directory, _ = place
    DAMAGE[case](directory / "selection")
    with pytest.raises(ValueError, match=r"selection: the content of .*selection .*run rank again"):
        load_selection(directory / "selection")


def test_another_layout_of_the_same_content_is_read(place):
    directory, _ = place
    right = load_selection(directory / "selection")
    edited(lambda content: content.update(targets=dict(reversed(content["targets"].items()))))(
        directory / "selection"
    )
    assert load_selection(directory / "selection").targets == right.targets


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"limits": torch.tensor([8, 8, 0, 3, 0, 0])}, "expected limits from 8 down to 0"),
        ({"limits": torch.tensor([9, 8, 2, 0, 0, 0])}, "expected limits from 8 down to 0"),
        ({"limits": torch.tensor([8, 0])}, "the limits do not fit the shape"),
        ({"limits": torch.tensor([8, 8, 2, 0, 0, 0])}, "the limits keep 18 components, not 19"),
        ({"mass": float("nan")}, "expected a threshold and a mass in"),
        ({"mass": "0.5"}, "expected a threshold and a mass"),
        ({"kept": True}, "expected a shape and a count"),
        ({"values_in": torch.full((8,), torch.nan).double()}, "expected 8 eigenvalues, finite"),
        ({"values_out": torch.ones(8).double()}, "expected 6 eigenvalues"),
        ({"mask": torch.zeros(6, 1, dtype=torch.uint8)}, "expected either limits or a mask"),
        (
            {"limits": None, "mask": torch.full((6, 2), 1, dtype=torch.uint8)},
            "the mask does not fit the shape",
        ),
        (
            {"limits": None, "mask": torch.full((6, 1), 3, dtype=torch.uint8)},
            "the mask keeps 12 components, not 19",
        ),
    ],
)
def test_a_selection_that_contradicts_itself_is_refused(change, wrong):
    tensors = {
        "limits": torch.tensor([8, 8, 3, 0, 0, 0]),
        "values_out": torch.ones(6).double(),
        "values_in": torch.ones(8).double(),
    }
    entry = {"shape": [6, 8], "kept": 19, "mass": 0.5, "threshold": 1.0}
    entry |= {"weight_sha256": "", "weight_dtype": ""}
    for key, value in change.items():
        (entry if key in entry else tensors)[key] = value
    tensors = {
        key: value.int() if key == "limits" else value
        for key, value in tensors.items()
        if value is not None
    }
    with pytest.raises(ValueError, match=f"selection: 'one': {wrong}"):
        curvedit.selection.TargetSelection.from_json("one", entry, tensors)


def changed_manifest(directory, change):
    path = directory / "manifest.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        (lambda content: content["targets"]["one"].update(tokens=90), "differs from its SHA-256"),
        (lambda content: content.update(labels="data"), "differs from its SHA-256"),
        (lambda content: content.pop("sha256"), "has no SHA-256 of its own"),
    ],
)
def test_a_changed_manifest_is_refused(place, change, wrong):
    directory, _ = place
    changed_manifest(directory / "factors", change)
    with pytest.raises(ValueError, match=f"factors: .*manifest.json .*{wrong}.*; fit again"):
        Factors.load(directory / "factors")


def test_a_changed_report_and_a_changed_record_are_refused(place):
    directory, model = place
    (directory / "model").mkdir()
    save_file(model.state_dict(), directory / "model/model.safetensors")
    selection = load_selection(directory / "selection")
    curvedit.project(directory / "model", selection, out=directory / "edited")
    metric = curvedit.report.Metric(0.5, 0.25, 0.75)
    curvedit.Report(curvedit.report.Metrics(strict=metric)).save(directory / "report")
    path = directory / "report/report.json"
    assert curvedit.Report.load(path).before.strict == metric
    path.write_text(path.read_text().replace("0.75", "0.55"))
    with pytest.raises(ValueError, match=r"report.json is damaged or was changed"):
        curvedit.Report.load(path)
    path = directory / "edited/curvedit.json"
    assert set(curvedit.report.read_record(path)["targets"]) == set(NAMES)
    path.write_text(path.read_text().replace('"kept": 0', '"kept": 1'))
    with pytest.raises(ValueError, match=r"curvedit.json is damaged or was changed"):
        curvedit.report.read_record(path)
