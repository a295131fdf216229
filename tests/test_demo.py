"""The demo's corpus and training; ``make demo`` runs the whole of it."""

import contextlib
import dataclasses
import json

import models
import numpy as np
import pytest
import torch

from curvedit.demo import corpus, forgetting, run, training


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


def test_isotonic_means():
    values = np.array([3.0, 1.0, 2.0, 5.0, 4.0, 6.0])
    assert forgetting.isotonic(values).tolist() == [2.0, 2.0, 2.0, 4.5, 4.5, 6.0]
    assert forgetting.isotonic(np.arange(4.0)).tolist() == [0.0, 1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("recited", "step"),
    [
        ([0.0, 0.1, 0.9], 1.5),
        ([0.0, 0.05, 0.9], 2.0),
        ([0.1, 0.0, 0.45], 2.0),  # the first two are 0.05 together
        ([0.2, 0.3, 0.9], 1.0),
        ([0.0, 0.0, 0.01], 3.0),
    ],
)
def test_the_step_where_a_share_is_recited(recited, step):
    assert forgetting.crossing(np.arange(1.0, 4.0), np.array(recited), 0.05) == pytest.approx(step)


def curve_of(shift, passages=64, windows=50):
    """A curve whose passages are forgotten one after the other, and whose loss is -steps / 10."""
    steps = np.arange(0.0, 11.0)
    places = np.linspace(3.0, 8.0, passages) + shift
    recited = (steps[:, None] >= places).astype(float)
    loss = np.repeat(1.0 - steps[::2, None] / 10, windows, axis=1)
    return forgetting.Curve(3, steps, recited, steps[::2], loss, None)


def test_the_cost_of_forgetting_does_not_depend_on_the_grid():
    """Curves that forget half a step later cost what half a step costs, not a whole one."""
    found = [forgetting.cost([curve_of(shift)], level=0.05) for shift in (0.0, 0.25, 0.5)]
    steps = [10 * (1 - np.log1p(metric.value)) for metric in found]
    assert steps[0] == pytest.approx(3.1, abs=0.2)
    assert np.diff(steps) == pytest.approx([0.25, 0.25], abs=0.2)
    assert all(metric.low <= metric.value <= metric.high for metric in found)
    spread = forgetting.cost([curve_of(shift) for shift in (-2, 0, 2)], level=0.05)
    assert spread.value == pytest.approx(found[0].value, rel=0.02)
    assert spread.high - spread.low > 3 * (found[0].high - found[0].low)
    assert spread == forgetting.cost([curve_of(shift) for shift in (-2, 0, 2)], level=0.05)


class Edits:
    """A model that recites passage i from step i / 4 on; its "selections" are shares kept."""

    def __init__(self, monkeypatch, passages=40):
        self.kept, self.passages = 1.0, passages
        monkeypatch.setattr(forgetting, "project", self.project)
        monkeypatch.setattr(forgetting, "recites", lambda *_: self.step() >= self.thresholds())
        monkeypatch.setattr(forgetting, "window_losses", lambda *_: np.full(6, 1 - self.kept))

    def thresholds(self):
        return 10 + np.arange(self.passages) / 4

    def step(self):
        return np.inf if self.kept == 1 else -4 * np.log2((1 - self.kept) / 0.5) + 1e-9

    @contextlib.contextmanager
    def project(self, _, kept):
        self.kept = kept
        yield
        self.kept = 1.0


def test_a_search_brackets_the_step_that_forgets(monkeypatch):
    edits, tried = Edits(monkeypatch), []
    search = forgetting.Search(edits, None, None, level=0.05, tried=tried.append)
    found = search.curve(lambda kept: kept)
    place = forgetting.crossing(found.steps, found.recited.mean(1), 0.05)
    assert place == pytest.approx(10.4, abs=0.5)
    edits.kept = found.selection
    assert 10.25 <= edits.step() < 10.5  # two of forty passages, to an eighth of a step
    assert found.increase(0.05, np.ones(40), np.ones(6)) == pytest.approx(
        np.expm1(0.5 * 2 ** (-place / 4)), rel=0.05
    )
    first, tried[:] = len(tried), []
    again = search.curve(lambda kept: kept, near=found.first)
    assert len(tried) < first
    assert forgetting.crossing(again.steps, again.recited.mean(1), 0.05) == pytest.approx(
        place, abs=0.5
    )
    shifted = search.curve(lambda kept: kept, near=found.first + 12)
    assert forgetting.crossing(shifted.steps, shifted.recited.mean(1), 0.05) == pytest.approx(
        place, abs=0.5
    )


def test_a_model_that_never_forgets_is_an_error(monkeypatch):
    edits = Edits(monkeypatch)
    edits.thresholds = lambda: np.full(40, -1.0)
    with pytest.raises(RuntimeError, match="demo: at most 50 % kept still recites"):
        forgetting.Search(edits, None, None, level=0.05).curve(lambda kept: kept)


def test_losses_of_windows():
    model = models.build("llama")
    text = torch.tensor([models.draw(20, seed=seed) for seed in range(40)])
    with torch.no_grad():
        logs = model(input_ids=text).logits[:, :-1].log_softmax(-1)
    expected = -logs.gather(2, text[:, 1:, None])[:, :, 0].mean(1)
    assert forgetting.window_losses(model, text) == pytest.approx(expected.numpy(), rel=1e-5)


@pytest.mark.filterwarnings("ignore:.*fewer positions:UserWarning")
def test_the_whole_of_it_in_little(tmp_path, monkeypatch):
    """Every stage and output, on a model that has learnt nothing and a search of one step."""
    found = corpus.load_corpus()
    few = dataclasses.replace(found, passages=found.passages[:3], held_out=found.held_out[:16])
    monkeypatch.setattr(run, "load_corpus", lambda: few)
    monkeypatch.setattr(run, "_FIT_BATCHES", 1)
    monkeypatch.setattr(forgetting, "_bracket", lambda *_: forgetting._STEPS)
    monkeypatch.setattr(forgetting, "_HALVINGS", 1)
    report = run.run_demo(tmp_path, steps=1, progress=False)
    document = json.loads((tmp_path / "report.json").read_text())
    for side in (document["after"], *document["controls"]):
        cost = side["matched_increase"]
        assert cost["low"] <= cost["value"] <= cost["high"]
    assert [control["name"] for control in document["controls"]] == list(run.CONTROLS.values())
    assert "Perplexity increase at 5 % recited" in report.table()
    assert (tmp_path / "edited/model.safetensors").is_file()
    assert document["recipe"]["criterion"] == run.CRITERION
    assert set(document["stages"]) >= {"train", "fit", "rank", "project"}
