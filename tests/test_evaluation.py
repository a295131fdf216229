"""evaluate: metrics against values worked out by hand or in float64."""

import dataclasses
import math

import models
import numpy as np
import pytest
import torch
import transformers
from torch import nn

import curvedit
from curvedit import Passages, Report, Suite, evaluate
from curvedit.evaluation import bootstrap
from curvedit.evaluation.ndcg import ndcg_sums
from curvedit.evaluation.text import measure_text
from curvedit.models import CausalityError, require_causal
from curvedit.report import Metric


def test_perplexity_weighs_every_token_alike():
    model, batches = models.build("llama"), models.ragged_batches("llama", sizes=(4, 2))
    total = count = 0.0
    exact = models.build("llama").double()
    for batch in batches:
        for ids, mask, labels in zip(
            batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True
        ):
            row, wanted = ids[: mask.sum()], labels[: mask.sum()]
            with torch.no_grad():
                logs = exact(input_ids=row[None]).logits[0].log_softmax(-1)
            for t in range(len(row) - 1):
                if wanted[t + 1] != -100:
                    total -= float(logs[t, wanted[t + 1]])
                    count += 1
    before = evaluate(model, Suite(text=batches)).before
    assert before.perplexity.value == pytest.approx(math.exp(total / count), rel=1e-5)
    assert before.perplexity.low <= before.perplexity.value <= before.perplexity.high
    assert before.strict is None


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_padding_and_batching_do_not_matter(kind):
    windows = [models.draw(n, seed=n) for n in (20, 13, 5, 20, 2, 17)]
    model = models.build(kind)
    reports = [evaluate(model, Suite(text=windows, batch_size=size)) for size in (1, 4, 6)]
    left = [
        {"input_ids": torch.tensor([[0] * (20 - len(w)) + w]), "attention_mask": _left_mask(w)}
        for w in windows
    ]
    reports.append(evaluate(model, Suite(text=left)))
    for report in reports[1:]:
        assert report.hashes == reports[0].hashes
        assert report.before.perplexity.value == pytest.approx(
            reports[0].before.perplexity.value, rel=1e-5
        )
        assert np.array_equal(report.reference.top, reports[0].reference.top)


def _left_mask(window):
    return (torch.arange(20) >= 20 - len(window)).long()[None]


def test_ndcg_by_hand():
    reference = np.array([[7, 5, 3], [7, 5, 3], [7, 5, 3]], dtype=np.int32)
    top = np.array([[5, 9, 7], [7, 5, 3], [7, 5, 3]], dtype=np.int32)
    gained = 2 + 3 / math.log2(4)  # gains 2, 0, 3 where 3, 2, 1 is best
    best = 3 + 2 / math.log2(3) + 1 / math.log2(4)
    sums = ndcg_sums(top, reference, np.array([1, 2]))
    assert sums == pytest.approx([gained / best, 2.0], rel=1e-14)


def test_the_unedited_model_agrees_with_itself_exactly():
    model, batches = models.build("gpt2"), models.ragged_batches("gpt2")
    before = evaluate(model, Suite(text=batches))
    again = evaluate(model, Suite(text=batches), baseline=before)
    assert before.before.ndcg10 == again.after.ndcg10 == Metric(1.0, 1.0, 1.0)
    assert set(again.differences) == {"perplexity", "ndcg10"}
    assert set(again.differences.values()) == {Metric(0.0, 0.0, 0.0)}
    nn.init.normal_(
        model.transformer.h[1].mlp.c_proj.weight, generator=torch.Generator().manual_seed(3)
    )
    edited = evaluate(model, Suite(text=batches), baseline=before)
    assert 0 < edited.after.ndcg10.value < 1
    assert edited.before == before.before


def test_ndcg_has_a_text_of_its_own():
    model = models.build("llama")
    suite = Suite(
        text=torch.tensor([models.draw(12)]), ndcg_text=torch.tensor([models.draw(9, seed=8)])
    )
    report = evaluate(model, suite)
    assert report.data == {
        "text": {"windows": 1, "tokens": 11},
        "ndcg_text": {"windows": 1, "tokens": 8},
    }
    assert report.reference.top.shape == (8, 10)


def test_a_baseline_of_other_data_is_refused():
    model, one, two = (
        models.build("llama"),
        torch.tensor([models.draw(12)]),
        torch.tensor([models.draw(12, seed=6)]),
    )
    before = evaluate(model, Suite(text=one))
    with pytest.raises(
        ValueError,
        match=r"baseline: expected one measured on the suite's 'text' .* measure .* again",
    ):
        evaluate(model, Suite(text=two), baseline=before)
    with pytest.raises(ValueError, match="'passages', got one on \\['text'\\]"):
        evaluate(model, Suite(passages=models.ragged_passages()), baseline=before)
    with pytest.raises(ValueError, match="expected its reference for nDCG@10"):
        evaluate(model, Suite(text=one), baseline=dataclasses.replace(before, reference=None))


@torch.no_grad()
def test_text_in_pieces_gives_the_same(monkeypatch):
    model, batches = models.build("gemma2"), models.ragged_batches("gemma2")
    whole = measure_text(model, batches, name="text", depth=10)
    monkeypatch.setattr("curvedit.evaluation.text._LOGITS_BYTES", 1)
    monkeypatch.setattr("curvedit.evaluation.text._POSITIONS", 3)
    pieces = measure_text(model, batches, name="text", depth=10)
    assert np.allclose(whole.loss, pieces.loss, rtol=1e-5)
    assert np.array_equal(whole.top, pieces.top)
    assert whole.sha256 == pieces.sha256


def test_accuracy_of_classifiers():
    model, batches = models.build("vit"), models.ragged_batches("vit")
    with torch.no_grad():
        right = torch.cat(
            [
                model(pixel_values=b["pixel_values"]).logits.argmax(-1) == b["labels"]
                for b in batches
            ]
        )
    report = evaluate(model, Suite(splits={"val": batches}))
    assert report.before.accuracy["val"].value == pytest.approx(float(right.float().mean()))
    assert report.before.perplexity is None
    logits = torch.eye(4)
    pairs = [(logits, torch.tensor([0, 1, 2, 0]))]
    assert (
        evaluate(nn.Identity(), Suite(splits={"toy": pairs})).before.accuracy["toy"].value == 0.75
    )


def test_shuffled_splits_are_the_same_data():
    inputs, labels = (
        torch.randn(6, 4, generator=torch.Generator().manual_seed(0)),
        torch.tensor([0, 1, 2, 3, 0, 1]),
    )
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    before = evaluate(nn.Identity(), Suite(splits={"val": [(inputs, labels)]}))
    shuffled = [(inputs[order[:2]], labels[order[:2]]), (inputs[order[2:]], labels[order[2:]])]
    again = evaluate(nn.Identity(), Suite(splits={"val": shuffled}), baseline=before)
    assert again.after == again.before
    with pytest.raises(ValueError, match="'split val'"):
        evaluate(nn.Identity(), Suite(splits={"val": [(inputs + 1, labels)]}), baseline=before)


def test_bootstrap_is_deterministic_and_covers():
    generator = np.random.default_rng(0)
    assert bootstrap.ratio(np.arange(9), resamples=50, seed=1) == bootstrap.ratio(
        np.arange(9), resamples=50, seed=1
    )
    covered = 0
    for _ in range(200):
        metric = bootstrap.ratio(generator.random(80) < 0.3, resamples=200, seed=0)
        covered += metric.low <= 0.3 <= metric.high
    assert 0.9 <= covered / 200 <= 0.99
    one = bootstrap.ratio(np.ones(5), resamples=10, seed=0)
    assert (one.value, one.low, one.high) == (1.0, 1.0, 1.0)


def test_bootstrap_of_a_ratio_weighs_the_units():
    metric = bootstrap.ratio([1.0, 6.0], [1.0, 3.0], resamples=400, seed=0)
    assert metric.value == 7 / 4
    assert (metric.low, metric.high) == (1.0, 2.0)


def test_the_mode_of_every_module_is_restored():
    model = models.build("llama").train()
    model.model.layers[1].eval()
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    evaluate(model, Suite(passages=models.ragged_passages(), text=torch.tensor([models.draw(9)])))
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    model.train()(input_ids=torch.tensor([models.draw(9)])).logits.sum().backward()


@pytest.mark.parametrize(
    "what", [{"passages": Passages([[5, 6]], [[7, 8]])}, {"text": torch.tensor([[5, 6, 7, 8]])}]
)
def test_a_masked_language_model_is_refused(what):
    config = transformers.BertConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
    )
    with torch.random.fork_rng():
        bert = transformers.BertForMaskedLM(config)
    with pytest.raises(
        CausalityError, match="expected a causal language model, got BertForMaskedLM"
    ):
        evaluate(bert, Suite(**what))


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2", "neox", "mistral", "qwen3"])
def test_causal_models_pass(kind):
    require_causal(models.build(kind), torch.tensor([models.draw(12)]))
    require_causal(models.build(kind).bfloat16(), torch.tensor([[5]]))


def test_broken_weights_are_an_error_not_a_score():
    model = models.build("llama")
    model.lm_head.weight.data[0, 0] = math.nan
    for what in ({"passages": models.ragged_passages()}, {"text": torch.tensor([models.draw(9)])}):
        with pytest.raises(ValueError, match="not finite"):
            evaluate(model, Suite(**what))


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: Suite(), ValueError, "suite: expected passages, text"),
        (lambda: Suite(text=[]), ValueError, "text: expected at least one batch, got none"),
        (
            lambda: Suite(text=iter([[1, 2]])),
            TypeError,
            "text: expected a re-iterable, such as a list",
        ),
        (
            lambda: Suite(text=[[1, 2], [3]]),
            ValueError,
            "text: expected windows of at least 2 tokens, got 1 as row 1",
        ),
        (
            lambda: Suite(text=torch.ones(3)),
            ValueError,
            r"text: expected windows of token ids \(N, T\)",
        ),
        (
            lambda: Suite(text=[[1, 2]], batch_size=0),
            ValueError,
            "batch_size: expected at least 1, got 0",
        ),
        (lambda: Suite(passages=[[1]]), TypeError, "passages: expected Passages, got list"),
        (lambda: Passages([], []), ValueError, "passages: expected at least one, got none"),
        (
            lambda: Passages([[1]], [[1], [2]]),
            ValueError,
            "as many suffixes as prefixes, got 2 and 1",
        ),
        (
            lambda: Passages([[1]], [[]]),
            ValueError,
            "suffixes: expected at least one token, got none as row 0",
        ),
        (lambda: Passages([[]], [[1]]), ValueError, "prefixes: expected at least one token"),
        (
            lambda: Passages([[-1]], [[1]]),
            ValueError,
            "prefixes: expected token ids of at least 0, got -1",
        ),
        (
            lambda: Passages(["ab"], [[1]]),
            TypeError,
            "prefixes: expected token ids, integers, got 'ab'",
        ),
        (lambda: Passages([[1.5]], [[1]]), TypeError, "prefixes: expected token ids, integers"),
        (
            lambda: Passages.cut([[1, 2, 3]], prefix=2, suffix=2),
            ValueError,
            "at least 4 tokens, got 3 as row 0",
        ),
    ],
)
def test_a_suite_is_checked_when_made(make, kind, message):
    with pytest.raises(kind, match=message):
        make()


@pytest.mark.parametrize(
    ("suite", "message"),
    [
        (
            Suite(passages=Passages([[5] * 60], [[6] * 5])),
            "passages: expected at most 64 tokens.*got 65",
        ),
        (Suite(passages=Passages([[5]], [[97]])), "passages: expected token ids below 97.*got 97"),
        (Suite(text=[[5, 400]]), "text: expected token ids below 97"),
        (
            Suite(
                text=[{"input_ids": torch.tensor([[5, 6]]), "labels": torch.tensor([[5, -100]])}]
            ),
            "text: .*no position",
        ),
        (Suite(text=[{"ids": torch.tensor([[5, 6]])}]), "text: .*language task expects input_ids"),
        (Suite(text=[(torch.tensor([[5, 6]]), torch.tensor([0]))]), "text: expected token ids"),
        (
            Suite(splits={"val": [{"input_ids": torch.tensor([[5, 6]])}]}),
            r"splits\['val'\]: batch 0: expected",
        ),
        (
            Suite(splits={"val": [(torch.tensor([[5, 6]]), torch.tensor([0]))]}),
            r"splits\['val'\]: batch 0: expected logits",
        ),
    ],
)
def test_data_that_do_not_fit_the_model_are_named(suite, message):
    with pytest.raises(ValueError, match=message):
        evaluate(models.build("llama"), suite)


def test_the_verb_is_public():
    assert curvedit.evaluate is evaluate
    assert curvedit.Report is Report
