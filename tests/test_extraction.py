"""Measures of passages: tokens right, extraction strength, sampling, prompts; and pairs."""

import dataclasses
import json
import math

import models
import numpy as np
import pytest
import torch
from memoriser import Memoriser
from torch import nn

from curvedit import Passages, Report, Suite, evaluate
from curvedit.evaluation import (
    ExtractionStrength,
    Prompts,
    Recitation,
    SampledExtraction,
    Sampling,
    TokenRecall,
    bootstrap,
    forced,
    greedy_continuations,
    perturbed,
    shifted,
    shorter,
    usual_variants,
)
from curvedit.evaluation.extraction_strength import strength
from curvedit.evaluation.sampled_extraction import tries_needed
from curvedit.report import Metric, Units

PREFIX, SUFFIX = 12, 8
TEXTS = [models.draw(PREFIX + SUFFIX, seed=seed) for seed in range(70, 76)]
PASSAGES = Passages.cut(TEXTS, prefix=PREFIX, suffix=SUFFIX)
ALL = [kind(PASSAGES) for kind in (TokenRecall, ExtractionStrength, SampledExtraction, Prompts)]


class FuzzyMemoriser(nn.Module):
    """Knows texts by heart, also from a prefix with some tokens replaced: the nearest text wins."""

    def __init__(self, texts):
        super().__init__()
        self.texts = texts

    def forward(self, input_ids):
        logits = torch.zeros(*input_ids.shape, models.VOCABULARY)
        for row, ids in enumerate(input_ids.tolist()):
            for end in range(1, len(ids) + 1):
                logits[row, end - 1, self.next(ids[:end])] = 50.0
        return logits

    def next(self, read):
        """The token after the stretch of any text that agrees with most of what was read last."""
        places = [(text, end) for text in self.texts for end in range(1, len(text))]

        def agreement(place):
            text, end = place
            stretch = text[max(0, end - len(read)) : end]
            return sum(a == b for a, b in zip(stretch, read[-len(stretch) :], strict=True))

        text, end = max(places, key=agreement)
        return text[end]


def test_a_perfect_memoriser_scores_every_variant_in_full():
    suite = Suite([Recitation(PASSAGES), *ALL], resamples=20, batch_size=4)
    found = evaluate(FuzzyMemoriser(TEXTS), suite, progress=False).before
    assert len(found.prompt_right) == len(found.prompt_strict) == 5
    for key in found:
        family = key.split(":")[0]
        if family in ("prompt_right", "prompt_strict", "right", "near", "strict", "extractable"):
            assert found[key].value == 1.0, key
    assert found["sampled"].value == pytest.approx(1.0)
    assert found["extraction_strength"].value > 0.9


def test_a_model_that_knows_nothing_scores_nothing():
    found = evaluate(
        Memoriser(vocabulary=models.VOCABULARY), Suite(ALL, resamples=20), progress=False
    ).before
    assert all(found[key].value < 1e-9 for key in found)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "neox"])
def test_each_variant_equals_running_it_alone(kind):
    model = models.build(kind)
    made = usual_variants(PASSAGES)
    found = evaluate(model, Suite([Prompts(PASSAGES)], batch_size=3), progress=False).before
    assert list(found.prompt_right) == list(made)
    for name, make in made.items():
        alone = evaluate(model, Suite([TokenRecall(make(PASSAGES))]), progress=False).before
        assert found.prompt_right[name] == alone.right


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_batched_equals_one_by_one(kind, batch_size):
    model, passages = models.build(kind), models.ragged_passages()
    ways = (Sampling(), Sampling(0.7), Sampling(1.0, 5))
    options = {"whole": True, "samplings": ways}
    found = forced(model, passages, batch_size=batch_size, **options)
    for number in range(len(passages)):
        alone = forced(model, passages.take([number]), **options)
        assert found.right[number].tolist() == alone.right[0].tolist()
        for way in ways:
            np.testing.assert_allclose(found.logs[way][number], alone.logs[way][0], rtol=1e-4)


def test_chances_are_those_of_the_logits():
    model, passages = models.build("llama"), models.ragged_passages()
    ways = (Sampling(), Sampling(0.5), Sampling(2.0, 3))
    found = forced(model, passages, samplings=ways)
    for number, (prefix, suffix) in enumerate(passages.rows()):
        with torch.no_grad():
            logits = model(torch.tensor([prefix + suffix])).logits[0, len(prefix) - 1 : -1].double()
        for way in ways:
            scaled = logits / way.temperature
            if way.top_k is not None:
                least = scaled.topk(way.top_k).values[:, -1:]
                scaled = scaled.masked_fill(scaled < least, -math.inf)
            expected = scaled.log_softmax(-1)[range(len(suffix)), list(suffix)]
            np.testing.assert_allclose(found.logs[way][number], expected, rtol=1e-5, atol=1e-5)
        assert found.right[number].tolist() == (logits.argmax(-1) == torch.tensor(suffix)).tolist()


def test_sampling_agrees_with_samples():
    """The chance of a suffix is how often sampling gives it."""
    model = models.build("llama")
    start = models.draw(6)
    with torch.no_grad():
        logits = 40 * model(torch.tensor([start])).logits[0, -1].double()
        chances = logits.topk(4).values.softmax(-1)
    model.lm_head.weight.data *= 40
    ids = logits.topk(4).indices.tolist()
    passages = Passages([start] * 4, [[each] for each in ids])
    way = Sampling(top_k=4)
    measure = SampledExtraction(passages, tries=(1,), sampling=way)
    report = evaluate(model, Suite([measure]), progress=False)
    found = forced(model, passages, samplings=[way]).logs[way]
    np.testing.assert_allclose(np.exp(np.concatenate(found)), chances, rtol=1e-3)
    assert report.before["sampled"].value == pytest.approx(0.25, rel=1e-6)
    assert report.before.extractable["1"].value == float((chances >= 0.5).double().mean())


@pytest.mark.parametrize("chance", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("q", [1.0, 0.9, 0.3, 1e-3, 1e-9])
def test_tries_needed_is_the_least_number(q, chance):
    n = tries_needed(math.log(q), chance)
    assert -math.expm1(n * math.log1p(-q)) >= chance * (1 - 1e-9) if q < 1 else n == 1
    if n > 1:
        assert -math.expm1((n - 1) * math.log1p(-q)) < chance
    assert tries_needed(-math.inf, chance) == math.inf


def test_extraction_strength_is_the_least_prefix_that_brings_out_the_rest():
    assert strength(np.array([True] * 4)) == 1.0
    assert strength(np.array([True, True, True, False])) == 0.0
    assert strength(np.array([False, True, True, True])) == 0.75
    model = models.build("llama")
    start = models.draw(5)
    said = greedy_continuations(model, Passages([start], [[1] * 6]))[0]
    whole = [*start, *said]
    (right,) = forced(model, Passages([whole[:8]], [whole[8:]]), whole=True).right
    shortest = next(
        k
        for k in range(1, len(whole) + 1)
        if k == len(whole)
        or greedy_continuations(model, Passages([whole[:k]], [whole[k:]]))[0] == tuple(whole[k:])
    )
    assert strength(right) == pytest.approx(1 - (shortest - 1) / (len(whole) - 1))


OPENED = Passages([[1, *p] for p in PASSAGES.prefixes], PASSAGES.suffixes, {"bos_ids": [1]})


def test_variants_keep_the_text_and_the_opening():
    for number, whole in enumerate(TEXTS):
        (prefix, suffix) = list(shorter(OPENED, 3).rows())[number]
        assert [*prefix, *suffix] == [1, *whole[3:]]
        for tokens in (-4, 5):
            prefix, suffix = list(shifted(OPENED, tokens).rows())[number]
            assert [*prefix, *suffix] == [1, *whole]
            assert len(prefix) == 1 + PREFIX + tokens
        prefix, same = list(perturbed(OPENED, 0.25, seed=1).rows())[number]
        assert (prefix[0], list(same)) == (1, whole[PREFIX:])
        assert sum(a != b for a, b in zip(prefix[1:], whole, strict=False)) == 3
    assert perturbed(OPENED, 0.25, seed=1) == perturbed(OPENED, 0.25, seed=1)
    assert perturbed(OPENED, 0.25, seed=1) != perturbed(OPENED, 0.25, seed=2)
    assert set(usual_variants(OPENED)) == set(usual_variants(PASSAGES))


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: shorter(OPENED, 12), ValueError, "variants: .* got 0 and 8 of passage 0"),
        (lambda: shifted(OPENED, 8), ValueError, "got 20 and 0 of passage 0 shifted by 8"),
        (lambda: shifted(OPENED, -12), ValueError, "got 0 and 20 of passage 0"),
        (lambda: perturbed(OPENED, 0), ValueError, r"share: expected a number in \(0, 1\], got 0"),
        (lambda: Prompts(PASSAGES, {}), ValueError, "variants: expected at least one, got none"),
        (lambda: Prompts([1]), TypeError, "passages: expected Passages, got list"),
        (lambda: TokenRecall([1]), TypeError, "passages: expected Passages, got list"),
        (lambda: SampledExtraction(PASSAGES, ()), ValueError, "tries: expected numbers"),
        (lambda: SampledExtraction(PASSAGES, (0,)), ValueError, "tries: expected numbers"),
        (lambda: SampledExtraction(PASSAGES, chance=1), ValueError, "chance: expected a number"),
        (lambda: Sampling(0), ValueError, "temperature: expected more than 0, got 0"),
        (lambda: Sampling(top_k=0), ValueError, "top_k: expected at least 1 or None, got 0"),
        (lambda: PASSAGES.take([]), ValueError, "passages: expected at least one, got none"),
        (lambda: Passages([[1]], [[2]], facts=[{}, {}]), ValueError, "facts: expected one mapping"),
    ],
)
def test_refuses(make, kind, message):
    with pytest.raises(kind, match=message):
        make()


@pytest.mark.parametrize("measure", ALL, ids=lambda each: type(each).__name__)
def test_passages_that_do_not_fit_are_refused(measure):
    long = dataclasses.replace(measure, passages=Passages([models.draw(80)], [[5] * 8]))
    with pytest.raises(ValueError, match="passages: expected at most 64 tokens"):
        evaluate(models.build("llama"), Suite([long]), progress=False)
    outside = dataclasses.replace(measure, passages=Passages([[5, 97] * 8], [[5, 6] * 4]))
    with pytest.raises(ValueError, match=r"passages: expected token ids below 97.* got 97"):
        evaluate(models.build("llama"), Suite([outside]), progress=False)


def edited(model):
    nn.init.normal_(model.lm_head.weight, generator=torch.Generator().manual_seed(3))
    return model


def test_passages_and_differences_are_in_the_report(tmp_path):
    facts = [{"source": f"text {number}", "split": "test"} for number in range(len(TEXTS))]
    passages = dataclasses.replace(PASSAGES, facts=facts)
    measures = [Recitation(passages), *(dataclasses.replace(m, passages=passages) for m in ALL)]
    suite = Suite(measures, text=TEXTS, resamples=40, decode=lambda ids: "|".join(map(str, ids)))
    model = models.build("llama")
    evaluate(model, suite, progress=False).save(tmp_path / "before")
    before = Report.load(tmp_path / "before")
    report = evaluate(edited(model), suite, baseline=before, progress=False)
    report = report.with_control("same", report)
    report.save(tmp_path / "after")
    stored = json.loads((tmp_path / "after/report.json").read_text())
    assert set(stored["differences"]) == {"after", "same"}
    for key, change in report.differences.items():
        assert change.value == pytest.approx(report.after[key].value - report.before[key].value)
    assert set(report.differences) == set(report.after)
    rows = stored["details"]["passages"]
    assert rows["before"]["source"] == [each["source"] for each in facts]
    assert len(rows["after"]["said"]) == len(TEXTS)
    assert rows["before"]["true"][0] == "|".join(map(str, TEXTS[0][PREFIX:]))
    assert rows["before"]["right"] != rows["after"]["right"] or rows["before"] != rows["after"]
    loaded = Report.load(tmp_path / "after")
    assert loaded == report
    assert "after less before" in report.table()
    assert "Δ " in report.html()


def test_damaged_units_are_said(tmp_path):
    evaluate(models.build("llama"), Suite(ALL, resamples=20), progress=False).save(tmp_path)
    (tmp_path / "units.safetensors").write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"report: .*units.safetensors is damaged"):
        Report.load(tmp_path)


def test_pairs_cancel_what_both_models_share():
    generator = np.random.default_rng(0)
    hard = generator.normal(5, 2, 200)
    ones = np.ones(200)
    before, after = Units(hard, ones), Units(hard + 0.1 + generator.normal(0, 0.01, 200), ones)
    found = bootstrap.paired_difference(before, after, resamples=500, seed=0)
    assert found.value == pytest.approx(0.1, abs=0.01)
    assert found.high - found.low < 0.01
    assert found.low < found.value < found.high
    assert bootstrap.paired_difference(before, before, resamples=9, seed=0) == Metric(0, 0, 0)
    assert (
        bootstrap.paired_difference(before, Units(ones[:9], ones[:9]), resamples=9, seed=0) is None
    )
    powers = [Units(each.numerator, ones, exponential=True) for each in (before, after)]
    found = bootstrap.paired_difference(*powers, resamples=9, seed=0)
    expected = math.exp(after.numerator.mean()) - math.exp(hard.mean())
    assert found.value == pytest.approx(expected)
