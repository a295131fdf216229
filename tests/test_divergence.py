"""KL divergence and top-1 agreement with the unedited model."""

import models
import numpy as np
import pytest
import torch
from torch import nn

from curvedit import Report, Suite, evaluate
from curvedit.evaluation import NDCG, Agreement, Divergence, Perplexity, divergence
from curvedit.report import Metric, Metrics

TEXT = torch.tensor([models.draw(21, seed=seed) for seed in range(40, 52)])
SUITE = Suite([Divergence(TEXT), Agreement(TEXT), NDCG(TEXT)], resamples=30, batch_size=5)


def edited(model, amount=0.05):
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        weight = model.lm_head.weight
        weight += amount * torch.randn(weight.shape, generator=generator)
    return model


def exact(before, after):
    """KL at each position from whole distributions, and whether the likeliest tokens agree."""
    with torch.no_grad():
        p, q = (each(TEXT).logits[:, :-1].double().log_softmax(-1) for each in (before, after))
    return (p.exp() * (p - q)).sum(-1), p.argmax(-1) == q.argmax(-1)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_model_agrees_with_itself_exactly(kind):
    model = models.build(kind)
    before = evaluate(model, SUITE, progress=False)
    again = evaluate(model, SUITE, baseline=before, progress=False).after
    for metrics in (before.before, again):
        assert metrics.kl == Metric(0.0, 0.0, 0.0)
        assert metrics.top1 == metrics.ndcg10 == Metric(1.0, 1.0, 1.0)


def test_pieces_of_distributions_do_not_matter(monkeypatch):
    """How many rows of logits are worked on at once, here 1 and 7, changes nothing."""
    found = []
    for rows in (1, 7):
        for place in ("text", "divergence"):
            monkeypatch.setattr(f"curvedit.evaluation.{place}.cached_rows", lambda _, n=rows: n)
        suite = Suite([Divergence(TEXT), Agreement(TEXT), Perplexity(TEXT)], batch_size=5)
        before = evaluate(models.build("llama"), suite, progress=False)
        after = evaluate(edited(models.build("llama")), suite, baseline=before, progress=False)
        found.append(after.after)
    assert dict(found[0]) == dict(found[1])
    _, same = exact(models.build("llama"), edited(models.build("llama")))
    assert found[0].top1.value == pytest.approx(float(same.double().mean()))


def test_all_tokens_kept_give_the_divergence_itself(monkeypatch):
    monkeypatch.setattr(divergence, "EXACT", models.VOCABULARY)
    model = models.build("llama")
    before = evaluate(model, SUITE, progress=False)
    after = evaluate(edited(model), SUITE, baseline=before, progress=False).after
    kl, same = exact(models.build("llama"), model)
    assert after.kl.value == pytest.approx(float(kl.mean()), rel=1e-5)
    assert after.top1.value == pytest.approx(float(same.double().mean()))
    assert after.kl.low < after.kl.value < after.kl.high


@pytest.mark.parametrize(("kept", "drawn", "within"), [(32, 32, 0.02), (1, 8, 0.07), (4, 1, 0.15)])
def test_the_rest_is_estimated_without_bias(monkeypatch, kept, drawn, within):
    """The mean over many draws, each off by its noise, is the divergence itself."""
    monkeypatch.setattr(divergence, "EXACT", kept)
    monkeypatch.setattr(divergence, "DRAWN", drawn)
    before, after = models.build("llama"), edited(models.build("llama"))
    with torch.no_grad():
        first, second = (each(TEXT).logits[:, :-1].flatten(0, 1) for each in (before, after))
    found = []
    for draw in range(60):
        keeper = divergence._Keeper()
        keeper._seen = 1000 * draw
        keeper(first, first.logsumexp(-1))
        comparer = divergence._Comparer(keeper.kept())
        comparer(second, second.logsumexp(-1))
        found.append(comparer.divergences().mean())
    kl = float(exact(before, after)[0].mean())
    assert np.mean(found) == pytest.approx(kl, rel=within)
    assert 0 < np.std(found) < 0.5 * kl


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_batching_does_not_matter(tmp_path, batch_size):
    found = []
    for size in (batch_size, 5):
        suite = Suite(SUITE.measures, resamples=30, batch_size=size)
        model = models.build("llama")
        evaluate(model, suite, progress=False).save(tmp_path / str(size))
        before = Report.load(tmp_path / str(size))
        found.append(evaluate(edited(model), suite, baseline=before, progress=False).after)
    for key in ("kl", "top1", "ndcg10"):
        assert found[0][key].value == pytest.approx(found[1][key].value, rel=1e-4)


def test_drawn_places_are_even():
    places = divergence._places(7, 50)
    assert places.shape == (50, divergence.DRAWN)
    assert float(places.min()) > 0
    assert float(places.max()) < 1
    assert np.allclose(places.diff(dim=1), 1 / divergence.DRAWN)
    assert torch.equal(places[3:], divergence._places(10, 47))
    assert 0.4 < float((places[:, 0] * divergence.DRAWN).mean()) < 0.6


def test_refuses():
    model = models.build("llama")
    ndcg = evaluate(model, Suite([NDCG(TEXT)]), progress=False)
    with pytest.raises(ValueError, match=r"baseline: .* distributions that KL divergence compares"):
        evaluate(model, Suite([Divergence(TEXT)]), baseline=ndcg, progress=False)
    with pytest.raises(ValueError, match="expected one text to compare with the baseline on"):
        evaluate(model, Suite([Divergence(TEXT), NDCG(TEXT[:3])]), progress=False)
    before = evaluate(model, Suite([Divergence(TEXT)]), progress=False)
    with pytest.raises(ValueError, match="baseline: expected one measured on"):
        evaluate(model, Suite([Divergence(TEXT.flip(0))]), baseline=before, progress=False)
    nn.init.normal_(model.lm_head.weight)
    evaluate(model, Suite([Divergence(TEXT)]), baseline=before, progress=False)


def test_a_metric_is_found_beside_a_family_of_its_name():
    """The study's "kl: news" must not hide "kl"."""
    import curvedit.study  # noqa: F401  (registers the family)

    assert Metrics({"kl": Metric(0.5, 0.4, 0.6)}).kl == Metric(0.5, 0.4, 0.6)
