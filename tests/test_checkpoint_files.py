"""``project`` on disk: which files are the model, which travel, shared tensors, symlinks."""

import json
import os
import shutil

import models
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import curvedit
from curvedit.editing.checkpoint_files import read_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore:.*fewer positions:UserWarning")
SHARDED = {"max_shard_size": "40KB"}


def selected(model, targets="*.mlp.*", keep_mass=0.6):
    batches = models.ragged_batches("llama")
    factors = curvedit.fit(model, batches, targets=targets, labels="data", progress=False)
    return curvedit.rank(factors, keep_mass=keep_mass, progress=False)


@pytest.fixture(scope="module")
def llama():
    model = models.build("llama")
    return model, selected(model)


@pytest.fixture(params=["one file", "shards"])
def saved(request, llama, tmp_path):
    """A checkpoint that a test may change, the model and a selection."""
    model, selection = llama
    model.save_pretrained(tmp_path / "model", **(SHARDED if request.param == "shards" else {}))
    return tmp_path / "model", model, selection


def other_weights(directory, name):
    """A file with the same keys and other values."""
    path = next(iter(sorted(directory.glob("*.safetensors"))))
    save_file({key: value + 1 for key, value in load_file(path).items()}, directory / name)


def assert_edited(model, selection, place):
    """What transformers loads from the place is the edit in memory."""
    loaded = type(model).from_pretrained(place)
    with curvedit.project(model, selection):
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, loaded.get_parameter(name)), name


STRANGERS = (
    *("zz.safetensors", "a.safetensors", "pytorch_model.safetensors", "model-old.safetensors"),
    *("consolidated.safetensors", "model.fp16.safetensors", "adapter_model.safetensors"),
)


def test_other_weights_are_neither_edited_nor_copied(saved, tmp_path):
    directory, model, selection = saved
    for name in STRANGERS:
        other_weights(directory, name)
    (directory / "pytorch_model.bin").write_bytes(b"unedited")
    (directory / "pytorch_model.bin.index.json").write_text("{}")
    (directory / "original").mkdir()
    other_weights(directory, "original/model.safetensors")
    (directory / "notes").mkdir()
    (directory / "notes/read.me").write_text("travels")
    curvedit.project(directory, selection, out=tmp_path / "edited")
    assert_edited(model, selection, tmp_path / "edited")
    unedited = {*STRANGERS, "pytorch_model.bin", "pytorch_model.bin.index.json"}
    record = json.loads((tmp_path / "edited/curvedit.json").read_text())
    assert set(record["left_out"]) == {*unedited, "original/model.safetensors"}
    assert not unedited & {path.name for path in (tmp_path / "edited").iterdir()}
    assert (tmp_path / "edited/notes/read.me").read_text() == "travels"
    assert not (tmp_path / "edited/original").exists()


def test_a_single_file_beside_an_index_is_the_model_as_for_transformers(llama, tmp_path):
    model, selection = llama
    other = models.build("llama")
    other.model.layers[0].mlp.up_proj.weight.data += 1
    other.save_pretrained(tmp_path / "model", **SHARDED)
    model.save_pretrained(tmp_path / "one")
    shutil.copy(tmp_path / "one/model.safetensors", tmp_path / "model")
    curvedit.project(tmp_path / "model", selection, out=tmp_path / "edited")
    assert_edited(model, selection, tmp_path / "edited")
    assert [path.name for path in (tmp_path / "edited").glob("*.safetensors*")] == [
        "model.safetensors"
    ]


def test_weights_named_in_the_config_are_the_model(llama, tmp_path):
    model, selection = llama
    model.save_pretrained(tmp_path / "model")
    other_weights(tmp_path / "model", "other.safetensors")
    (tmp_path / "model/model.safetensors").rename(tmp_path / "model/mine.safetensors")
    (tmp_path / "model/other.safetensors").rename(tmp_path / "model/model.safetensors")
    path = tmp_path / "model/config.json"
    config = {**json.loads(path.read_text()), "transformers_weights": "mine.safetensors"}
    path.write_text(json.dumps(config))
    curvedit.project(tmp_path / "model", selection, out=tmp_path / "edited")
    assert (tmp_path / "edited/mine.safetensors").is_file()
    assert not (tmp_path / "edited/model.safetensors").exists()
    path.write_text(json.dumps({**config, "transformers_weights": "../mine.safetensors"}))
    with pytest.raises(ValueError, match=r"expected the name of a \.safetensors"):
        curvedit.project(tmp_path / "model", selection, out=tmp_path / "again")


def change_index(change):
    def changed(directory):
        path = directory / "model.safetensors.index.json"
        index = json.loads(path.read_text())
        change(index["weight_map"], sorted(index["weight_map"]))
        path.write_text(json.dumps(index))

    return changed


def twice(directory):
    first, second, *_ = sorted(directory.glob("model-*.safetensors"))
    save_file({**load_file(first), **load_file(second)}, second)


BROKEN = {
    "a key in two shards": (twice, "expected each tensor in one file"),
    "an entry that the shard lacks": (
        change_index(lambda entries, keys: entries.update(more=entries[keys[0]])),
        "places 'more' in",
    ),
    "an entry for another shard": (
        change_index(lambda entries, keys: entries.update({keys[0]: entries[keys[-1]]})),
        "which does not hold it",
    ),
    "a tensor that no entry names": (
        change_index(lambda entries, keys: entries.pop(keys[5])),
        "does not name; download both again",
    ),
    "a path upwards": (
        change_index(lambda entries, keys: entries.update({keys[0]: "../x.safetensors"})),
        r"got '\.\./x\.safetensors'",
    ),
    "an absolute path": (
        change_index(lambda entries, keys: entries.update({keys[0]: "/etc/x.safetensors"})),
        "got '/etc/x.safetensors'",
    ),
    "a number for a file": (
        change_index(lambda entries, keys: entries.update({keys[0]: 5})),
        "expected a weight_map",
    ),
    "no entries": (change_index(lambda entries, keys: entries.clear()), "expected a weight_map"),
    "a missing shard": (
        lambda directory: sorted(directory.glob("model-*"))[0].unlink(),
        "is missing; download it again",
    ),
    "an index that is a list": (
        lambda directory: (directory / "model.safetensors.index.json").write_text("[]"),
        "expected a JSON object",
    ),
    "an index in another encoding": (
        lambda directory: (directory / "model.safetensors.index.json").write_bytes(b"\xff\xfe"),
        "is not JSON",
    ),
    "an adapter": (
        lambda directory: (directory / "adapter_config.json").write_text("{}"),
        r"merge it into its base model first",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_refuses_shards_and_index_that_disagree(llama, tmp_path, case):
    model, selection = llama
    model.save_pretrained(tmp_path / "model", **SHARDED)
    damage, message = BROKEN[case]
    damage(tmp_path / "model")
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        curvedit.project(tmp_path / "model", selection, out=tmp_path / "edited")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("where", ["in memory", "on disk"])
def test_refuses_an_edited_weight_that_is_not_finite(tmp_path, where):
    model = models.build("llama").half()
    selection = selected(model.float(), keep_mass=0.3)
    model.half()
    model.save_pretrained(tmp_path / "model")
    source = model if where == "in memory" else tmp_path / "model"
    out = {} if where == "in memory" else {"out": tmp_path / "edited"}
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"the edited weight of 'model.layers.\d.mlp.*finite"):
        curvedit.project(source, selection, removed_scale=1e30, **out)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_snapshot_of_the_hub_cache_is_a_checkpoint(llama, tmp_path):
    model, selection = llama
    root = tmp_path / "models--someone--llama"
    place = root / "snapshots/0123abcd"
    (root / "blobs").mkdir(parents=True)
    place.mkdir(parents=True)
    model.save_pretrained(tmp_path / "saved")
    for number, path in enumerate(sorted((tmp_path / "saved").iterdir())):
        path.rename(root / f"blobs/{number}")
        (place / path.name).symlink_to(f"../../blobs/{number}")
    blobs = {path.name: path.read_bytes() for path in (root / "blobs").iterdir()}
    curvedit.project(place, selection, out=tmp_path / "edited")
    assert_edited(model, selection, tmp_path / "edited")
    assert not any(path.is_symlink() for path in (tmp_path / "edited").iterdir())
    assert {path.name: path.read_bytes() for path in (root / "blobs").iterdir()} == blobs
    (tmp_path / "secret").write_text("a file of the user's")
    (place / "notes.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(ValueError, match=r"notes\.txt is a symlink out of the checkpoint"):
        curvedit.project(place, selection, out=tmp_path / "again")


def to_a_file_elsewhere(directory):
    (directory.parent / "secret").write_text("a file of the user's")
    (directory / "notes.txt").symlink_to(directory.parent / "secret")


def weights_elsewhere(directory):
    (directory / "model.safetensors").rename(directory.parent / "weights")
    (directory / "model.safetensors").symlink_to("../weights")


def to_nothing(directory):
    (directory / "notes.txt").symlink_to("nowhere")


@pytest.mark.parametrize(
    ("link", "message"),
    [
        (to_a_file_elsewhere, "notes.txt is a symlink out of the checkpoint"),
        (weights_elsewhere, "model.safetensors is a symlink out of the checkpoint"),
        (to_nothing, "notes.txt is a symlink to nothing"),
    ],
)
def test_refuses_symlinks_out_of_the_checkpoint(llama, tmp_path, link, message):
    model, selection = llama
    model.save_pretrained(tmp_path / "model")
    link(tmp_path / "model")
    with pytest.raises(ValueError, match=message):
        curvedit.project(tmp_path / "model", selection, out=tmp_path / "edited")
    assert not list(tmp_path.glob("*edited*"))


def test_what_is_no_file_is_left_out(llama, tmp_path):
    model, selection = llama
    directory = tmp_path / "model"
    model.save_pretrained(directory)
    os.mkfifo(directory / "pipe")
    (directory / "elsewhere").symlink_to(tmp_path, target_is_directory=True)
    (directory / ".git").mkdir()
    (directory / "same.json").symlink_to("config.json")
    curvedit.project(directory, selection, out=tmp_path / "edited")
    record = json.loads((tmp_path / "edited/curvedit.json").read_text())
    assert record["left_out"] == [".git/", "elsewhere/", "pipe"]
    assert (tmp_path / "edited/same.json").read_text() == (directory / "config.json").read_text()
    assert_edited(model, selection, tmp_path / "edited")


def test_refuses_an_output_that_overlaps_the_model_at_once(llama, tmp_path, monkeypatch):
    model, selection = llama
    model.save_pretrained(tmp_path / "outer/model")
    (tmp_path / "link").symlink_to(tmp_path / "outer/model")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    monkeypatch.setattr(
        "curvedit.editing.checkpoint_directory.read_checkpoint",
        lambda source: pytest.fail("the model was read first"),
    )
    for out, error in (
        (tmp_path / "outer/model/edited", ValueError),
        (tmp_path / "link/edited", ValueError),
        (tmp_path / "link", FileExistsError),
        (tmp_path / "outer", FileExistsError),
        (tmp_path / "gone", FileExistsError),
    ):
        with pytest.raises(error, match="out: expected a"):
            curvedit.project(tmp_path / "outer/model", selection, out=out)
    assert {path.name for path in tmp_path.iterdir()} == {"outer", "link", "gone"}


def test_the_record_is_short(tmp_path):
    model = torch.nn.ModuleDict(
        {
            f"model.layers.{i}.mlp.gate_proj".replace(".", "_"): torch.nn.Linear(64, 96, bias=False)
            for i in range(4)
        }
    )
    (tmp_path / "model").mkdir()
    save_file(model.state_dict(), tmp_path / "model/model.safetensors")
    curvedit.project(
        tmp_path / "model", models.selection_of(model, list(model)), out=tmp_path / "edited"
    )
    text = (tmp_path / "edited/curvedit.json").read_text()
    record = json.loads(text)
    assert len(text) < 4 * 1024 + 512
    for target in record["targets"].values():
        for line in ("limits", "values_out", "values_in"):
            first, last = target[line][0][0], target[line][-1][0]
            assert (first, last) == (0, 63 if line == "values_in" else 95)


def test_numbers_of_a_stored_weight_are_those_of_safetensors(saved):
    directory, *_ = saved
    for key, tensor in read_checkpoint(directory).tensors.items():
        with safe_open(tensor.file, framework="pt") as file:
            assert torch.equal(file.get_tensor(key), tensor.read())
