"""10,000 damaged files of every kind that is read: refused in one line, or read as they were."""

import argparse
import json
import random
import zlib

import models
import mutations
import pytest
import torch
import yaml
from safetensors.torch import save_file

import curvedit
from curvedit import Factors, Passages, Report, image_batches, load_selection, token_batches
from curvedit.cli.config import ConfigError, options_from
from curvedit.cli.fit import FIT
from curvedit.cli.yaml_files import read_yaml
from curvedit.editing import places
from curvedit.editing.checkpoint_files import read_checkpoint
from curvedit.models import weight_hash
from curvedit.report import read_record

ALLOWED = (ValueError, TypeError, KeyError, RuntimeError, OSError, ImportError, ConfigError)
NAMES = ["encoder", "head"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """One of everything that is read, small."""
    place = tmp_path_factory.mktemp("made")
    model = torch.nn.ModuleDict({"encoder": torch.nn.Linear(5, 6), "head": torch.nn.Linear(6, 4)})
    selection = models.selection_of(model, NAMES)
    factors = selection.factors
    factors.save(place / "factors")
    selection.save(place / "selection")
    (place / "model").mkdir()
    save_file(model.state_dict(), place / "model/model.safetensors")
    (place / "shards").mkdir()
    save_file(model.state_dict(), place / "shards/model-1.safetensors")
    weight_map = dict.fromkeys(model.state_dict(), "model-1.safetensors")
    (place / "shards/model.safetensors.index.json").write_text(
        json.dumps({"weight_map": weight_map})
    )
    edit = curvedit.project(place / "model", selection, out=place / "edited")
    metric = curvedit.report.Metric(0.5, 0.25, 0.75)
    reference = curvedit.report.Reference(torch.arange(30).int().reshape(3, 10).numpy(), "0" * 64)
    metrics = curvedit.report.Metrics(strict=metric, accuracy={"val": metric})
    report = Report(metrics, metrics, title="a title", reference=reference)
    report = report.with_edit(selection, edit.targets).with_stage("fit", seconds=1.5)
    report.save(place / "report")
    rows = [{"prefix_ids": [1, 2, 3], "suffix_ids": [4]}, {"input_ids": [1, 2, 3, 4, 5]}]
    lines = "\n".join(json.dumps(row) for row in rows)
    (place / "passages.jsonl").write_text(lines)
    (place / "data.jsonl").write_text("\n".join(json.dumps(rows[1]) for _ in range(3)))
    images = {"pixel_values": torch.rand(3, 1, 2, 2), "labels": torch.arange(3)}
    save_file(images, place / "images.safetensors")
    settings = {"model": "m", "data": ["a", "b"], "targets": ["*"], "out": "o", "window": 20}
    (place / "config.yaml").write_text(yaml.safe_dump({**settings, "progress": False, "seed": 3}))
    return place


def plain(document):
    return json.dumps(document, sort_keys=True)


def read_factors(place):
    factors = Factors.load(place / "factors")
    sums = {key: weight_hash(factors.sum(key)) for key in factors.keys_of_sums()}
    return plain({**factors.provenance, "sums": sums}), factors.targets


def read_bases(place):
    factors = Factors.load(place / "factors")
    found = []
    for kind in ("A", "G"):
        for name in NAMES:
            basis = factors.basis(kind, name)
            assert torch.equal(factors.spectrum(kind, name), basis.values)
            assert factors.certificate(kind, name) == basis.certificate
            found += [weight_hash(basis.vectors), weight_hash(basis.values)]
            found.append(plain(basis.certificate))
    return found


def read_selection(place):
    selection = load_selection(place / "selection")
    tensors = [
        (part, weight_hash(value))
        for target in selection.values()
        for part, value in target.tensors().items()
    ]
    return plain(selection.recipe), selection.targets, tensors


def read_report(place):
    report = Report.load(place / "report")
    assert report.html()
    assert report.table()
    return plain(report.to_json())


def read_reference(place):
    reference = Report.load(place / "report").reference
    return reference.top.tobytes(), reference.top.shape, reference.data_sha256


def read_edit(place):
    report = Report.load(place / "report").with_record(read_record(place / "edited/curvedit.json"))
    return plain(report.to_json())


def read_model(folder):
    def read(place):
        checkpoint = read_checkpoint(place / folder)
        selection = load_selection(place / "selection")
        found = places.find_places(place / folder, selection.targets, checkpoint.tensors)
        return [(name, each.transposed) for name, each in found.items()]  # verified by content

    return read


def read_settings(place):
    path = place / "config.yaml"
    parser = FIT.fill(argparse.ArgumentParser(prog="curvedit fit", exit_on_error=False))
    options_from(parser, "fit", {str(path): read_yaml(path, str(path))})


JSON, TENSORS = mutations.of_json, mutations.of_safetensors
# File to: how it is damaged, how it is read, and whether what is read must stay the same.
READERS = {
    "factors/manifest.json": (JSON, read_factors, True),
    "factors/A.encoder.safetensors": (TENSORS, read_factors, True),
    "factors/G.head.basis.safetensors": (TENSORS, read_bases, True),
    "selection/selection.json": (JSON, read_selection, True),
    "selection/selection.safetensors": (TENSORS, read_selection, True),
    "report/report.json": (JSON, read_report, True),
    "report/ndcg10_reference.safetensors": (TENSORS, read_reference, True),
    "edited/curvedit.json": (JSON, read_edit, True),
    "model/model.safetensors": (TENSORS, read_model("model"), True),
    "shards/model-1.safetensors": (TENSORS, read_model("shards"), True),
    "shards/model.safetensors.index.json": (JSON, read_model("shards"), True),
    "config.yaml": (mutations.of_bytes, read_settings, False),
    "data.jsonl": (
        mutations.of_lines,
        lambda p: list(token_batches(p / "data.jsonl")) and None,
        False,
    ),
    "passages.jsonl": (
        mutations.of_lines,
        lambda p: Passages.read(p / "passages.jsonl", prefix=3, suffix=2) and None,
        False,
    ),
    "images.safetensors": (
        TENSORS,
        lambda p: image_batches(p / "images.safetensors") and None,
        False,
    ),
}
EACH = -(-10_000 // len(READERS))


def refusal(error, file):
    """What is wrong with an error; empty for one that a user can read."""
    message = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    if not isinstance(error, ALLOWED) or isinstance(error, RecursionError):
        return "not of a kind that is reported in one line"
    if "\n" in message.strip() and not isinstance(error, ConfigError):
        return "of several lines"
    place, _, name = file.partition("/")
    if name and not (message.startswith("model: ") or place in message):
        return "without the name of the file"
    if " " not in message:
        return "no sentence"
    return ""


@pytest.mark.parametrize("file", READERS)
def test_damage_is_refused_or_without_consequence(made, file, monkeypatch):
    names = {f"{name}.{part}": frozenset() for name in NAMES for part in ("weight", "bias")}
    monkeypatch.setattr(places, "parameter_names", lambda directory: names)
    damage, read, must_stay = READERS[file]
    path = made / file
    content = path.read_bytes()
    right = read(made)
    draw = random.Random(zlib.crc32(file.encode()))
    refused = 0
    faults = []
    try:
        for number in range(EACH):
            path.write_bytes(damage(content, draw))
            try:
                found = read(made)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is judged
                refused += 1
                wrong = refusal(error, file)
                if wrong:
                    faults.append(f"{number}: {type(error).__name__} {error} is {wrong}")
            else:
                if must_stay and found != right:
                    faults.append(f"{number}: accepted with other content")
    finally:
        path.write_bytes(content)
    assert not faults, f"{len(faults)} faults, such as {faults[:5]}"
    assert refused > EACH // 10
    assert read(made) == right or not must_stay
