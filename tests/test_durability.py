"""What survives an edit: rounding to few bits, and training on other text."""

import pytest
import reciter
import torch
from reciter import same, weights

import curvedit
from curvedit.evaluation import (
    Perplexity,
    Relearning,
    Rounding,
    Suite,
    TokenRecall,
    evaluate,
    relearn,
    rounding,
)


@pytest.fixture(scope="module")
def model():
    return reciter.trained()


@pytest.fixture(scope="module")
def material():
    return reciter.material()


def test_rounding_keeps_integers_and_is_within_half_a_step():
    whole = torch.arange(-7, 8).float().repeat(4)[:48].view(2, 24)
    assert torch.equal(rounding.rounded_to(whole * 0.5, 4), whole * 0.5)
    weight = torch.randn(5, 70, generator=torch.Generator().manual_seed(0))
    found = rounding.rounded_to(weight, 4)
    for start in range(0, 70, rounding.GROUP):
        part = slice(start, start + rounding.GROUP)
        step = weight[:, part].abs().amax(1, keepdim=True) / 7
        assert ((found - weight)[:, part].abs() <= step / 2 + 1e-6).all()
    assert torch.equal(rounding.rounded_to(torch.zeros(2, 3), 8), torch.zeros(2, 3))


def test_relearning_trains_and_restores(model, material):
    before = weights(model)
    rows = [prefix + suffix for prefix, suffix in material.passages.rows()]
    seen = []

    def probe():
        seen.append(weights(model))
        return len(seen)

    assert relearn(model, rows, probe, steps=(1, 3)) == [1, 2]
    assert not same(seen[0], before)
    assert not same(seen[0], seen[1])
    assert torch.equal(seen[1]["model.embed_tokens.weight"], before["model.embed_tokens.weight"])
    assert same(before, weights(model))
    assert all(each.requires_grad and each.grad is None for each in model.parameters())


def suite(passages, text, **options):
    measures = [TokenRecall(passages), Rounding(passages), Relearning(passages, text, **options)]
    return Suite(measures, resamples=50)


def test_an_unedited_model_scores_beside_its_edit(model, material):
    """The model that recites does so after int8 and a step; the edited one is compared with it."""
    before, passages = weights(model), reciter.passages()
    measured = suite(passages, reciter.text(20, seed=5), steps=(1, 2))
    baseline = evaluate(model, measured, progress=False)
    found = baseline.before
    assert found["right"].value > 0.9
    assert found["right_int8"].value == pytest.approx(found["right"].value, abs=0.02)
    assert found["right_int4"].value < found["right_int8"].value
    assert found["right_relearned: 1 steps"].value > 0.9
    factors = curvedit.fit(
        model, material.fitted_on[600], targets="model.layers.*.mlp.*", progress=False
    )
    with curvedit.forget(
        model, factors, passages, holdout=reciter.text(8, seed=6), budget=0.3, progress=False
    ):
        edited = weights(model)
        report = evaluate(model, measured, baseline=baseline, progress=False)
        assert same(edited, weights(model))
    assert same(before, weights(model))
    for key in ("right", "right_int8", "right_int4", "right_relearned: 2 steps"):
        assert report.after[key].value < baseline.before[key].value
        change = report.differences[key]
        assert change.low <= change.value <= change.high
        assert change.value < 0
    assert "int4" in report.table()
    assert "2 steps" in report.html()


@pytest.mark.parametrize(
    "form", ["windows", "a tensor", "batches", "token batches", "padded batches"]
)
def test_any_form_of_text_is_trained_on_alike(model, form):
    rows, passages = reciter.text(12, seed=5), reciter.passages()
    ids = torch.tensor(rows)
    mask = torch.ones(12, 30, dtype=torch.long)
    mask[:, 24:] = 0
    padded = {"input_ids": torch.nn.functional.pad(ids, (0, 6)), "attention_mask": mask}
    given = {
        "windows": rows,
        "a tensor": ids,
        "batches": [{"input_ids": part} for part in ids.split(5)],
        "token batches": curvedit.token_batches(rows, window=24, batch_size=5),
        "padded batches": [padded],
    }[form]
    found = [
        evaluate(model, Suite([Relearning(passages, text, steps=(3,))]), progress=False).before
        for text in (rows, given)
    ]
    assert found[0] == found[1]


def test_a_model_that_does_not_need_gradients_keeps_it_so(model):
    frozen = next(model.parameters()).requires_grad_(False)
    try:
        relearn(model, reciter.text(4, seed=5), lambda: None, steps=(1,))
        assert not frozen.requires_grad
    finally:
        frozen.requires_grad_(True)


@pytest.mark.parametrize(
    ("error", "options", "message"),
    [
        (ValueError, {"text": []}, "text: expected some to train on, got none"),
        (ValueError, {"text": [[3, 4]], "steps": ()}, "steps: expected numbers of at least 1"),
        (ValueError, {"text": [[3, 4]], "steps": (0,)}, "steps: expected numbers of at least 1"),
        (TypeError, {"text": iter([[3, 4]])}, "text: expected a re-iterable"),
    ],
)
def test_bad_input(error, options, message):
    with pytest.raises(error, match=message):
        Relearning(reciter.passages(), **options)


def test_text_that_does_not_fit_is_refused_before_anything_is_trained(model, monkeypatch):
    monkeypatch.setattr(
        "curvedit.evaluation.relearning.relearn", lambda *_, **__: pytest.fail("it was trained")
    )
    measure = Relearning(reciter.passages(), [[3, 64]])
    with pytest.raises(ValueError, match="text: expected token ids below 64"):
        evaluate(model, Suite([measure]), progress=False)


def test_it_stands_beside_the_perplexity_of_the_same_text(model):
    text = reciter.text(6, seed=5)
    passages = reciter.passages()
    both = Suite([Perplexity(text), Relearning(passages, text, steps=(1,))])
    assert evaluate(model, both, progress=False).before.perplexity.value > 1
