"""Factors in memory and on disk: bases, merging, checks, and damaged directories."""

import json

import models
import pytest
import torch

import curvedit
from curvedit import Factors

pytestmark = pytest.mark.filterwarnings("ignore:.*fewer positions:UserWarning")


@pytest.fixture(scope="module")
def model():
    return models.build("llama")


def fitted(model, batches):
    return curvedit.fit(model, batches, targets="*.mlp.*", labels="data", progress=False)


@pytest.fixture(scope="module")
def factors(model):
    return fitted(model, models.ragged_batches("llama"))


def assert_same(ours, theirs):
    assert list(ours) == list(theirs)
    for name in ours:
        assert ours[name].tokens == theirs[name].tokens
        for kind in ("A", "G", "A_w", "G_w"):
            torch.testing.assert_close(
                ours.mean(kind, name), theirs.mean(kind, name), rtol=1e-5, atol=1e-9
            )


def test_save_and_load(factors, tmp_path):
    directory = Factors.merge([factors]).save(tmp_path / "factors")
    loaded = Factors.load(directory)
    assert_same(factors, loaded)
    assert loaded.targets == factors.targets
    assert loaded.provenance["labels"] == "data"
    assert not list(tmp_path.glob("*.part"))


def test_bases_are_cached_beside_the_factors(factors, tmp_path):
    loaded = Factors.load(Factors.merge([factors]).save(tmp_path / "factors"))
    name = next(iter(loaded))
    first = loaded.basis("G", name)
    assert (tmp_path / "factors" / f"G.{name}.basis.safetensors").is_file()
    again = Factors.load(tmp_path / "factors").basis("G", name)
    assert torch.equal(first.vectors, again.vectors)
    assert again.certificate["residual"] < 1e-5
    assert again.values.dtype == torch.float64


def test_merge_of_disjoint_data_is_the_whole(model, factors):
    first, second = models.ragged_batches("llama")
    assert_same(Factors.merge([fitted(model, [first]), fitted(model, [second])]), factors)


def test_merge_refuses_another_model(factors):
    other = models.build("llama")
    other.model.layers[1].mlp.up_proj.weight.data += 1
    with pytest.raises(ValueError, match=r"merge: target 'model.layers.1.mlp.up_proj' differs"):
        Factors.merge([factors, fitted(other, models.ragged_batches("llama"))])


def test_from_moments_round_trip(model, factors):
    name = "model.layers.1.mlp.down_proj"
    own = factors[name]
    made = Factors.from_moments({name: (own.A, own.G, own.tokens)}, model=model)
    torch.testing.assert_close(made[name].A, own.A)
    torch.testing.assert_close(made[name].G, own.G)
    assert made.targets[name].weight_sha256 == factors.targets[name].weight_sha256


def test_from_moments_shares_inputs_given_twice():
    shared = torch.eye(3)
    made = Factors.from_moments({"a": (shared, torch.eye(2), 5), "b": (shared, torch.eye(4), 5)})
    assert made.targets["b"].input_group == "a"
    assert made.targets["b"].shape == (4, 3)


def test_norm_weighted_factors_are_missed_by_name(model):
    made = Factors.from_moments({"a": (torch.eye(3), torch.eye(2), 5)})
    with pytest.raises(KeyError, match=r"[AG]_w of a was not fitted; fit again with weighted=True"):
        curvedit.rank(made, keep_mass=0.5, criterion="weighted")


def test_require_model(model, factors):
    factors.require_model(model)
    other = models.build("llama")
    other.model.layers[2].mlp.down_proj.weight.data[0, 0] += 1
    with pytest.raises(ValueError, match=r"'model.layers.2.mlp.down_proj' is not the one"):
        factors.require_model(other)
    with pytest.raises(ValueError, match=r"expected a linear map 'model.layers.0.mlp.gate_proj'"):
        factors.require_model(models.build("gpt2"))


def truncate(directory):
    path = next(directory.glob("G.*.safetensors"))
    path.write_bytes(path.read_bytes()[:-10])


def flip(directory):
    path = next(directory.glob("G.*.safetensors"))
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def cut_manifest(directory):
    path = directory / "manifest.json"
    path.write_text(path.read_text()[:50])


def unfinished(directory):
    path = directory / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "status": "running"}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "is truncated: expected"),
        (flip, "is damaged"),
        (cut_manifest, "manifest.json is damaged"),
        (unfinished, "'running'"),
        (lambda directory: next(directory.glob("A.*")).unlink(), "is missing"),
    ],
)
def test_refuses_damaged_directories(factors, tmp_path, damage, message):
    directory = Factors.merge([factors]).save(tmp_path / "factors")
    damage(directory)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        Factors.merge([Factors.load(directory)])


def test_refuses_to_overwrite(factors, tmp_path):
    (tmp_path / "kept").write_text("mine")
    with pytest.raises(FileExistsError, match="expected a new or empty directory"):
        factors.save(tmp_path)
    assert (tmp_path / "kept").read_text() == "mine"


def test_full_disk_leaves_nothing(factors, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "curvedit.files.shutil.disk_usage", lambda _: type("Usage", (), {"free": 10})
    )
    with pytest.raises(OSError, match="bytes free"):
        factors.save(tmp_path / "factors")
    assert not list(tmp_path.iterdir())


def test_failed_write_leaves_nothing(factors, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("curvedit.factors.directory.save_file", fail)
    with pytest.raises(OSError, match="No space left on device"):
        factors.save(tmp_path / "factors")
    assert not list(tmp_path.iterdir())
