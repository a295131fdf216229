"""Measures own their metrics: suites of measures, meanings in reports, the Metrics mapping."""

import json
import pickle
from typing import ClassVar

import models
import pytest
import torch
from torch import nn

from curvedit import Passages, Report, Suite, evaluate
from curvedit.evaluation import (
    NDCG,
    Accuracy,
    Meaning,
    Measure,
    Perplexity,
    Recitation,
    TextMeasure,
    greedy_continuations,
    stage,
)
from curvedit.report import Metric, Metrics, meaning_of, register


class Positive(Measure):
    """The share of positive numbers in a list; says nothing of the model."""

    meanings: ClassVar = {
        "positive": Meaning("KL <positive>", "share", "lower", "above 0", "numbers")
    }

    def __init__(self, numbers, name="numbers"):
        self.numbers, self.name = numbers, name

    def measure(self, model, run):
        run.identify(self.name, repr(self.numbers), {"numbers": len(self.numbers)})
        return {"positive": run.interval([number > 0 for number in self.numbers])}


class Shortest(TextMeasure):
    """The shortest window, which takes the pass over the text but no top tokens."""

    meanings: ClassVar = {
        "shortest": Meaning("Shortest window", "number", "", "its tokens", digits=0)
    }

    def measure(self, model, run):
        tokens = float(self.read(model, run).tokens.min())
        return {"shortest": Metric(tokens, tokens, tokens)}


class Liar(Measure):
    meanings: ClassVar = {"truth": Meaning("Truth", "number", "", "")}

    def measure(self, model, run):
        return {"lie": Metric(1.0, 1.0, 1.0)}


def document(report):
    """report.json without what differs from run to run."""
    return {key: value for key, value in report.to_json().items() if key != "stages"}


WINDOWS = [models.draw(length, seed=length) for length in (20, 13, 5, 17)]
TENSOR = torch.tensor([models.draw(12), models.draw(12, seed=6)])
PREFIXES, SUFFIXES = models.ragged_passages().prefixes, models.ragged_passages().suffixes
SAID = greedy_continuations(models.build("llama"), Passages(PREFIXES, SUFFIXES))
PASSAGES = Passages(PREFIXES, [*SAID[:3], *SUFFIXES[3:]])  # the first three are recited


@pytest.mark.parametrize(
    ("measures", "named"),
    [
        (
            [Recitation(PASSAGES), Perplexity(WINDOWS), NDCG(WINDOWS)],
            {"passages": PASSAGES, "text": WINDOWS},
        ),
        ([Perplexity(WINDOWS), NDCG(TENSOR)], {"text": WINDOWS, "ndcg_text": TENSOR}),
        ([NDCG(WINDOWS)], {"ndcg_text": WINDOWS}),
        ([Recitation(PASSAGES)], {"passages": PASSAGES}),
    ],
    ids=["all", "two texts", "ndcg alone", "passages"],
)
def test_a_list_of_measures_equals_the_keyword_form(measures, named):
    model, options = models.build("llama"), {"resamples": 50, "seed": 3, "batch_size": 3}
    listed, by_name = Suite(measures, **options), Suite(**named, **options)
    before = evaluate(model, by_name)
    assert document(evaluate(model, listed)) == document(before)
    nn.init.normal_(model.lm_head.weight, generator=torch.Generator().manual_seed(3))
    after = evaluate(model, listed, baseline=before)
    assert document(after) == document(evaluate(model, by_name, baseline=before))
    assert after.after != after.before


def test_splits_are_one_measure():
    model, batches = models.build("vit"), models.ragged_batches("vit")
    listed = evaluate(model, Suite([Accuracy({"val": batches, "it's: {}": batches[:1]})]))
    named = evaluate(model, Suite(splits={"val": batches, "it's: {}": batches[:1]}))
    assert document(listed) == document(named)
    assert list(listed.before) == ["accuracy: val", "accuracy: it's: {}"]
    assert list(listed.to_json()["before"]["accuracy"]) == ["val", "it's: {}"]
    assert listed.data == {"split val": {"samples": 6}, "split it's: {}": {"samples": 3}}
    assert "Accuracy, it's: {}" in listed.table()
    assert Report.from_json(listed.to_json()) == listed


def test_listed_measures_come_before_the_usual_ones():
    suite = Suite([Positive([1])], text=TENSOR)
    assert [type(each) for each in suite.measures] == [Positive, Perplexity, NDCG]


def count_calls(model, suite):
    """Forward calls that a suite takes."""
    calls = []
    handle = model.register_forward_hook(lambda *_: calls.append(1))
    report = evaluate(model, suite)
    handle.remove()
    return len(calls), report


@pytest.mark.parametrize("order", [(Perplexity, NDCG), (NDCG, Perplexity, Shortest)])
def test_measures_of_one_text_share_one_pass(order):
    model = models.build("llama")
    batches = models.ragged_batches("llama", sizes=(2, 2, 2))
    calls, report = count_calls(model, Suite([kind(batches) for kind in order]))
    assert calls == len(batches) + 2  # two for the check of causality
    assert list(report.data) == ["text"]
    assert report.reference.top.shape[1] == 10
    assert document(report)["before"]["ndcg10"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    apart = [Perplexity(batches), NDCG(list(batches))]
    assert count_calls(model, Suite(apart))[0] == 2 * len(batches) + 2


def test_causality_is_checked_once_and_first(monkeypatch):
    order = []
    real = stage.require_causal
    monkeypatch.setattr(stage, "require_causal", lambda *given: (order.append(0), real(*given)))

    class Late(Measure):
        meanings: ClassVar = {"late": Meaning("Late", "number", "", "")}

        def measure(self, model, run):
            order.append(1)
            return {"late": run.interval([1.0])}

    evaluate(models.build("llama"), Suite([Late(), Perplexity(TENSOR), Recitation(PASSAGES)]))
    assert order == [0, 1]


def test_a_measure_of_ones_own_is_shown_everywhere(tmp_path):
    suite = Suite([Positive([1, 2, -3, 4])], text=TENSOR, resamples=50)
    model = models.build("llama")
    before = evaluate(model, suite)
    assert before.before.positive == before.before["positive"]
    assert before.before["positive"].value == 0.75
    assert before.data["numbers"] == {"numbers": 4}
    report = evaluate(model, suite, baseline=before)
    report.save(tmp_path)
    stored = json.loads((tmp_path / "report.json").read_text())["after"]
    assert list(stored) == ["positive", "perplexity", "ndcg10"]
    assert stored["positive"]["value"] == 0.75
    assert Report.load(tmp_path) == report
    assert "KL <positive> (lower is better)  75.0 %" in report.table()
    page = (tmp_path / "report.html").read_text()
    assert '<td>KL &lt;positive&gt;<span class="what">above 0; lower is better</span>' in page
    assert "; KL &lt;positive&gt; stayed at 75.0" in page


def test_a_share_of_ones_own_has_its_caveat():
    page = evaluate(nn.Linear(1, 1), Suite([Positive([1] * 50)])).html()
    assert "All 50 alike: KL &lt;positive&gt; (before)" in page


def test_data_of_a_measure_of_ones_own_are_compared_with_the_baseline():
    model = nn.Linear(1, 1)
    before = evaluate(model, Suite([Positive([1])]))
    with pytest.raises(ValueError, match=r"baseline: .* suite's 'numbers' .* other data"):
        evaluate(model, Suite([Positive([2])]), baseline=before)


def test_names_of_data_are_not_used_twice():
    with pytest.raises(ValueError, match="one set of data named 'text', got two"):
        evaluate(models.build("llama"), Suite([Perplexity(TENSOR), Shortest(WINDOWS)]))


def test_a_measure_returns_the_metrics_it_owns():
    with pytest.raises(ValueError, match=r"Liar: expected the metrics \['truth'\], got \['lie'\]"):
        evaluate(nn.Linear(1, 1), Suite([Liar()]))


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: Suite([]), ValueError, "suite: expected passages, text.* or a list of measures"),
        (lambda: Suite(PASSAGES), TypeError, "measures: expected a list of measures, got Passages"),
        (lambda: Suite([PASSAGES]), TypeError, r"such as Perplexity\(text\), got Passages"),
        (
            lambda: Suite([Perplexity(TENSOR)], text=TENSOR),
            ValueError,
            "each metric from one measure, got 'perplexity' twice",
        ),
        (lambda: Recitation([[1]]), TypeError, "passages: expected Passages, got list"),
        (lambda: NDCG(iter([[1, 2]])), TypeError, "ndcg_text: expected a re-iterable"),
        (lambda: Accuracy({}), ValueError, "splits: expected at least one split, got none"),
        (lambda: Accuracy([1]), TypeError, "splits: expected a mapping.*got list"),
        (lambda: Accuracy({"a": []}), ValueError, r"splits\['a'\]: expected at least one batch"),
    ],
)
def test_measures_are_checked_when_made(make, kind, message):
    with pytest.raises(kind, match=message):
        make()


def test_windows_may_change_after_the_suite_is_made():
    windows = [list(window) for window in WINDOWS]
    suite = Suite(text=windows)
    windows[0][0] = windows[0][0] + 1
    model = models.build("llama")
    assert evaluate(model, suite).hashes == evaluate(model, Suite(text=WINDOWS)).hashes


def numbers(value):
    return {"value": value, "low": value, "high": value}


def test_unknown_metrics_load_and_show_their_key(tmp_path):
    before = {"exposure <x>": numbers(0.1234), "tasks": {"arc: easy": numbers(0.5)}}
    control = {"name": "svd", **before}
    (tmp_path / "report.json").write_text(
        json.dumps(
            {
                "format": "curvedit-report",
                "version": 1,
                "before": before,
                "after": before,
                "controls": [control],
            }
        )
    )
    report = Report.load(tmp_path)
    assert report.before["tasks: arc: easy"].value == 0.5
    assert report.before.tasks["arc: easy"].value == 0.5
    assert "exposure <x>      0.123 [0.123, 0.123]" in report.table()
    assert "tasks: arc: easy  0.500" in report.table()
    assert "<td>exposure &lt;x&gt;<" in report.html()
    stored = report.to_json()
    assert (stored["before"], stored["controls"]) == (before, [control])


def test_a_report_of_the_previous_version_loads():
    before = {
        "strict": numbers(0.5),
        "loose": numbers(0.75),
        "avg_levenshtein": numbers(0.25),
        "perplexity": numbers(9.5),
        "ndcg10": numbers(1.0),
        "accuracy": {"val": numbers(0.5)},
    }
    old = {
        "format": "curvedit-report",
        "version": 1,
        "title": "",
        "before": before,
        "after": None,
        "controls": [],
        "model": {},
        "recipe": {},
        "hashes": {"text": "ab"},
        "data": {"text": {"windows": 3}},
        "tool": {},
        "stages": {},
        "targets": [],
        "warnings": [],
    }
    report = Report.from_json(old)
    assert report.to_json() == old
    assert report.before == Metrics(
        strict=Metric(0.5, 0.5, 0.5),
        loose=Metric(0.75, 0.75, 0.75),
        avg_levenshtein=Metric(0.25, 0.25, 0.25),
        perplexity=Metric(9.5, 9.5, 9.5),
        ndcg10=Metric(1.0, 1.0, 1.0),
        accuracy={"val": Metric(0.5, 0.5, 0.5)},
    )


def test_metrics_are_a_read_only_mapping_with_attributes():
    half = Metric(0.5, 0.5, 0.5)
    found = Metrics({"strict": half, "accuracy: val": half})
    assert list(found) == ["strict", "accuracy: val"]
    assert len(found) == 2
    assert found["strict"] is found.strict is half
    assert found.accuracy == {"val": half}
    assert (found.perplexity, Metrics().accuracy) == (None, {})
    assert found == {"strict": half, "accuracy: val": half} == pickle.loads(pickle.dumps(found))
    with pytest.raises(AttributeError, match=r"one of \['strict', .*got 'strikt'"):
        found.strikt  # noqa: B018
    with pytest.raises(AttributeError):
        found.strict = half
    with pytest.raises(TypeError):
        found["strict"] = half
    with pytest.raises(ValueError, match="got both as 'accuracy'"):
        Metrics({"accuracy": half, "accuracy: val": half})


def test_a_meaning_has_one_owner():
    with pytest.raises(ValueError, match=r"got 'strict', which .*Recitation measures"):
        register({"strict": Meaning("Mine", "share", "lower", "")}, owner="mine")
    with pytest.raises(ValueError, match="not reserve, got 'name'"):
        register({"name": Meaning("Mine", "share", "lower", "")}, owner="mine")
    register({"mine": Meaning("Mine", "share", "lower", "")}, owner="test")
    register({"mine": Meaning("Yours", "share", "lower", "")}, owner="test")
    assert meaning_of("mine").label == "Yours"
    assert meaning_of("strict").label == "Verbatim recitation"
    with pytest.raises(ValueError, match=r"unit: expected one of .*got 'percent'"):
        Meaning("Mine", "percent", "", "")
    with pytest.raises(ValueError, match=r"better: expected one of .*got 'up'"):
        Meaning("Mine", "share", "up", "")


def test_a_passage_of_one_token_can_be_measured():
    report = evaluate(models.build("gpt2"), Suite([Recitation(Passages([[5]], [[6]]))]))
    assert report.before["strict"].value in {0.0, 1.0}
