"""The demo's corpus and training; ``make demo`` runs the whole of it."""

import json

import torch

from curvedit.demo import corpus, training


def test_corpus_is_real_and_disjoint():
    found = corpus.load_corpus()
    assert found.passages.shape == (corpus.PASSAGES, corpus.WINDOW)
    assert len({tuple(row) for row in found.passages.tolist()}) == corpus.PASSAGES
    assert len(found.training) > 1_000_000
    assert found.held_out.shape[0] > 500
    text = bytes(found.training.tolist())
    assert not any(bytes(row) in text for row in found.passages.tolist())
    assert found.sha256 == corpus.load_corpus().sha256


def test_training_is_cached_by_its_recipe(tmp_path):
    found = corpus.load_corpus()
    assert training.trained_model(tmp_path / "model", found, steps=2, progress=False)
    weights = (tmp_path / "model/model.safetensors").read_bytes()
    assert not training.trained_model(tmp_path / "model", found, steps=2, progress=False)
    assert training.trained_model(tmp_path / "model", found, steps=3, progress=False)
    assert (tmp_path / "model/model.safetensors").read_bytes() != weights
    assert json.loads((tmp_path / "model/demo.json").read_text())["steps"] == 3
    assert not list(tmp_path.glob("*.part"))


def test_training_repeats_itself(tmp_path):
    found = corpus.load_corpus()
    state = torch.get_rng_state()
    for name in ("one", "two"):
        training.trained_model(tmp_path / name, found, steps=2, progress=False)
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two
    assert torch.equal(torch.get_rng_state(), state)
