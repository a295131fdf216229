"""``project`` on disk: which bytes it changes, which it copies, and what it refuses."""

import json
import shutil

import models
import pytest
import torch

import curvedit
from curvedit.editing import checkpoint_directory as checkpoint
from curvedit.models import weight_hash, weight_of

pytestmark = pytest.mark.filterwarnings("ignore:.*fewer positions:UserWarning")


@pytest.fixture(scope="module", params=["llama", "olmo2", "gpt2", "vit"])
def saved(request, tmp_path_factory):
    """Kind, checkpoint directory, model and selection."""
    kind = request.param
    directory = tmp_path_factory.mktemp(kind) / "model"
    model = models.build(kind)
    model.save_pretrained(directory, max_shard_size="40KB")
    (directory / "tokenizer.json").write_text("{}")
    factors = curvedit.fit(
        model,
        models.ragged_batches(kind),
        targets=models.targets(kind),
        labels="data",
        progress=False,
    )
    return kind, directory, model, curvedit.rank(factors, keep_mass=0.7)


@pytest.fixture
def llama(tmp_path):
    """A checkpoint directory that a test may damage, and a selection."""
    model = models.build("llama")
    model.save_pretrained(tmp_path / "model")
    factors = curvedit.fit(model, models.ragged_batches("llama"), targets="*.mlp.*", progress=False)
    return tmp_path / "model", curvedit.rank(factors, keep_mass=0.7)


def content(directory):
    """The bytes of every stored tensor."""
    found = {}
    for shard in directory.glob("*.safetensors"):
        raw = shard.read_bytes()
        for tensor in checkpoint.stored_tensors(shard):
            found[tensor.key] = raw[tensor.start : tensor.stop]
    return found


def test_equals_the_edit_in_memory_and_touches_nothing_else(saved, tmp_path):
    kind, directory, model, selection = saved
    before = content(directory)
    edit = curvedit.project(directory, selection, out=tmp_path / "edited")
    after = content(tmp_path / "edited")
    assert content(directory) == before
    touched = {name for name in before if before[name] != after[name]}
    if kind == "vit":  # transformers stores its weights under other names
        assert len(touched) == len(selection)
    else:
        assert touched == {f"{name}.weight" for name in selection}
    reloaded = type(model).from_pretrained(tmp_path / "edited")
    with curvedit.project(model, selection):
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, reloaded.get_parameter(name)), name
    assert sorted(p.name for p in directory.iterdir()) == sorted(
        p.name for p in (tmp_path / "edited").iterdir() if p.name != "curvedit.json"
    )
    for path in directory.iterdir():
        if path.suffix != ".safetensors":
            assert path.read_bytes() == (tmp_path / "edited" / path.name).read_bytes()
    assert not list(tmp_path.glob("*.part"))
    record = json.loads((tmp_path / "edited" / "curvedit.json").read_text())
    assert record["recipe"]["keep_mass"] == 0.7
    for name, target in edit.targets.items():
        weight = weight_of(reloaded.get_submodule(name))
        assert record["targets"][name]["sha256_after"] == target.sha256_after == weight_hash(weight)


def test_keeping_all_copies(saved, tmp_path):
    kind, directory, model, _ = saved
    factors = curvedit.fit(
        model, models.ragged_batches(kind), targets=models.targets(kind), progress=False
    )
    curvedit.project(directory, curvedit.rank(factors, keep_mass=1), out=tmp_path / "edited")
    assert content(tmp_path / "edited") == content(directory)


def test_half_precision_on_disk_fitted_in_float32(tmp_path):
    stored = models.build("llama").bfloat16()
    stored.save_pretrained(tmp_path / "model")
    model = type(stored).from_pretrained(tmp_path / "model", dtype=torch.float32)
    factors = curvedit.fit(model, models.ragged_batches("llama"), targets="*.mlp.*", progress=False)
    curvedit.project(
        tmp_path / "model", curvedit.rank(factors, keep_mass=0.7), out=tmp_path / "edited"
    )
    edited = type(stored).from_pretrained(tmp_path / "edited", dtype="auto")
    assert edited.dtype == torch.bfloat16


def test_base_model_prefix_may_be_missing(tmp_path):
    model = models.build("gpt2")
    model.transformer.save_pretrained(tmp_path / "base")
    assert "h.0.mlp.c_fc.weight" in content(tmp_path / "base")
    factors = curvedit.fit(
        model, models.ragged_batches("gpt2"), targets="*.h.1.mlp.c_fc", progress=False
    )
    curvedit.project(
        tmp_path / "base", curvedit.rank(factors, keep_mass=0.7), out=tmp_path / "edited"
    )
    changed = {
        k for k, v in content(tmp_path / "base").items() if content(tmp_path / "edited")[k] != v
    }
    assert changed == {"h.1.mlp.c_fc.weight"}


def test_other_weight_formats_are_left_out(llama, tmp_path):
    directory, selection = llama
    (directory / "pytorch_model.bin").write_bytes(b"unedited")
    curvedit.project(directory, selection, out=tmp_path / "edited")
    assert not (tmp_path / "edited" / "pytorch_model.bin").exists()


def only_legacy(directory):
    (directory / "model.safetensors").unlink()
    (directory / "pytorch_model.bin").write_bytes(b"x")


def truncated(directory):
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def no_header(directory):
    (directory / "model.safetensors").write_bytes(b"\xff" * 40)


def another(directory):
    model = models.build("llama")
    model.model.layers[1].mlp.up_proj.weight.data += 1
    model.save_pretrained(directory)


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (only_legacy, FileNotFoundError, "only safetensors are read"),
        (truncated, ValueError, "is truncated"),
        (no_header, ValueError, "truncated or not a safetensors file"),
        (another, ValueError, "'model.layers.1.mlp.up_proj' is not the one"),
        (shutil.rmtree, FileNotFoundError, "expected a checkpoint directory"),
    ],
)
def test_refuses_before_writing(llama, tmp_path, damage, error, message):
    directory, selection = llama
    damage(directory)
    with pytest.raises(error, match=message):
        curvedit.project(directory, selection, out=tmp_path / "edited")
    assert not list(tmp_path.glob("edited*"))


def test_refuses_to_overwrite(llama, tmp_path):
    directory, selection = llama
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("kept")
    with pytest.raises(FileExistsError, match="out: expected a new or empty directory"):
        curvedit.project(directory, selection, out=tmp_path / "mine")
    with pytest.raises(ValueError, match="out: expected a directory outside the model's"):
        curvedit.project(directory, selection, out=directory / "edited")
    with pytest.raises(ValueError, match="out: expected a new directory"):
        curvedit.project(directory, selection)


def test_full_disk_leaves_nothing(llama, tmp_path, monkeypatch):
    directory, selection = llama
    with monkeypatch.context() as patch:
        patch.setattr("curvedit.files.shutil.disk_usage", lambda _: type("Usage", (), {"free": 10}))
        with pytest.raises(OSError, match="bytes free"):
            curvedit.project(directory, selection, out=tmp_path / "edited")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("curvedit.editing.checkpoint_directory.shutil.copyfile", fail)
    with pytest.raises(OSError, match="nothing was left there"):
        curvedit.project(directory, selection, out=tmp_path / "edited")
    assert not list(tmp_path.glob("edited*"))


def test_a_stale_partial_directory_is_replaced(llama, tmp_path):
    directory, selection = llama
    (tmp_path / "edited.part").mkdir()
    (tmp_path / "edited.part" / "junk").write_text("x")
    curvedit.project(directory, selection, out=tmp_path / "edited")
    assert not (tmp_path / "edited" / "junk").exists()
