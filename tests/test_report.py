"""Report: JSON round trip, text table, page."""

import dataclasses
import json
import re
from xml.etree import ElementTree

import models
import numpy as np
import pytest
import torch

import curvedit
from curvedit import Factors, Passages, Report, Suite, evaluate
from curvedit.report import Metric, Metrics, verdict
from curvedit.report.svg import Axis
from curvedit.selection import TargetSummary, summarise_selection

pytestmark = pytest.mark.filterwarnings("ignore:.*fewer positions:UserWarning")


def metrics(shift=0.0):
    return Metrics(
        strict=Metric(1.0 - shift, 1.0 - shift, 1.0 - shift),
        loose=Metric(0.9, 0.8, 0.95),
        avg_levenshtein=Metric(0.01 + shift, 0.0, 0.9),
        perplexity=Metric(20 + shift, 19.5, 21.5),
        ndcg10=Metric(1 - shift / 9, 0.8, 1.0),
    )


def report():
    return Report(
        before=metrics(),
        after=metrics(0.75),
        hashes={"text": "ab"},
        data={"passages": {"passages": 500}, "text": {"windows": 3, "tokens": 60}},
        model={"class": "Llama<&>", "name_or_path": "org/<model>", "parameters": 123},
        tool={"curvedit": "0.1.0"},
    )


def selection(criterion="curvature", count=2):
    generator = torch.Generator().manual_seed(0)

    def factor(n):
        basis = torch.linalg.qr(torch.randn(n, n, generator=generator)).Q
        return basis @ torch.diag(torch.arange(1, n + 1) ** -1.5) @ basis.T

    factors = Factors.from_moments(
        {f"layer.{i}": (factor(40), factor(24), 100) for i in range(count)}
    )
    return curvedit.rank(factors, keep_mass=0.6, criterion=criterion)


@dataclasses.dataclass
class Edited:
    change: float = 0.5
    backend: str = "torch"
    sha256_after: str = "ff" * 32


def full_report(count=2):
    chosen = selection(count=count)
    fitted = {
        "seconds": 2.5,
        "peak_memory_bytes": 2**30,
        "backend": {"syrk": "torch"},
        "warnings": ["few <tokens>"],
    }
    done = report().with_control("svd & co", dataclasses.replace(report(), after=metrics(0.5)))
    return done.with_edit(chosen, dict.fromkeys(chosen, Edited()), fitted).with_stage(
        "project", seconds=0.25
    )


class Parser:
    """Reads a page as XML, so that every tag must be closed, and collects what it refers to."""

    def __init__(self, page):
        self.root = ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>"))
        self.references = [
            value
            for node in self.root.iter()
            for key, value in node.attrib.items()
            if key.rsplit("}")[-1] in {"src", "href", "data", "srcset", "action"}
        ]
        self.tags = [node.tag for node in self.root.iter()]
        self.text = " ".join(self.root.itertext())


def test_json_round_trip(tmp_path):
    path = full_report().save(tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / "report.json"
    assert Report.load(path) == Report.load(path.parent) == full_report()
    document = json.loads(path.read_text())
    assert document["before"]["strict"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert document["controls"][0]["name"] == "svd & co"
    assert set(document["controls"][0]) == {
        "name",
        "strict",
        "loose",
        "avg_levenshtein",
        "perplexity",
        "ndcg10",
    }
    assert document["stages"]["fit"]["peak_memory_bytes"] == 2**30
    assert document["recipe"]["keep_mass"] == 0.6
    assert not list(path.parent.glob("*.part"))


def test_a_saved_baseline_serves_again(tmp_path):
    model = models.build("llama")
    suite = Suite(text=torch.arange(3, 15)[None], passages=Passages([[5, 6]], [[7]]), resamples=20)
    before = evaluate(model, suite)
    before.save(tmp_path)
    loaded = Report.load(tmp_path)
    assert loaded == before
    assert np.array_equal(loaded.reference.top, before.reference.top)
    assert evaluate(model, suite, baseline=loaded).after.ndcg10.value == 1.0


def test_absent_metrics_are_left_out():
    only = Report(before=Metrics(accuracy={"val": Metric(0.5, 0.4, 0.6)}))
    assert only.to_json()["before"] == {
        "accuracy": {"val": {"value": 0.5, "low": 0.4, "high": 0.6}}
    }
    assert Report.from_json(only.to_json()) == only
    assert "Accuracy, val" in only.table()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "expected JSON"),
        ("[]", "expected a document with format 'curvedit-report', got list"),
        ('{"format": "other"}', "got format 'other'"),
        ('{"format": "curvedit-report", "version": 9}', "expected version 1, got 9"),
        (
            '{"format": "curvedit-report", "version": 1, "before": {"strict": 1}}',
            "value, low and high of 'strict'",
        ),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    (tmp_path / "report.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        Report.load(tmp_path)


def test_a_metric_is_finite():
    with pytest.raises(ValueError, match="expected finite"):
        Metric(float("nan"), 0.0, 1.0)


def test_controls_need_a_new_name_and_the_same_data():
    with pytest.raises(ValueError, match="'after', which is taken"):
        report().with_control("after", report())
    with pytest.raises(ValueError, match="measured with baseline"):
        report().with_control("svd", dataclasses.replace(report(), after=None))
    with pytest.raises(ValueError, match="on other data"):
        report().with_control("svd", dataclasses.replace(report(), hashes={"text": "cd"}))


def test_table_is_aligned():
    lines = full_report().table().splitlines()
    assert lines[0].split()[:2] == ["before", "after"]
    after = lines[0].index("after")
    assert [line[after:].split()[0] for line in lines[2:7]] == [
        "25.0",
        "90.0",
        "0.760",
        "20.75",
        "0.917",
    ]
    assert "100.0 % [100.0, 100.0]" in lines[2]
    assert "95 %" in lines[-1]


def test_page_is_well_formed_and_self_contained():
    page = full_report().html()
    parsed = Parser(page)
    assert parsed.references == []
    assert not re.search(r"https?://|url\(|@import|<script|<link|<img", page)
    assert parsed.tags.count("svg") == 5 + 1 + 2 * 2
    for expected in (
        "<model>: what the edit forgot",
        "svd & co",
        "few <tokens>",
        "What this does not claim",
    ):
        assert expected in parsed.text
    assert "fell from 100.0 % to 25.0 % of 500 passages" in parsed.text.replace("\u00a0", " ")
    assert "nan" not in page.lower().split("</style>")[1]


def test_page_names_shares_whose_interval_is_a_point():
    assert "All 500 alike: verbatim recitation (before)" in Parser(full_report().html()).text


def test_page_shows_at_most_twelve_targets_but_lists_all():
    parsed = Parser(full_report(count=15).html())
    assert parsed.tags.count("svg") == 5 + 1 + 2 * 12
    assert "12 of 15 targets." in parsed.text
    assert all(f"layer.{i}" in parsed.text for i in range(15))


def told(count):
    """What was found of passages, as a run with a tokenizer tells it."""
    true = [f"the <end> of {number}" for number in range(count)]
    before = {"prefix": ["x" * 500] * count, "true": true, "said": true, "distance": [0] * count}
    after = {"said": [each.replace("end", "&") for each in true], "distance": [3] * count}
    return {"passages": {"before": {**before, "source": ["kjv.txt"] * count}, "after": after}}


def test_page_shows_what_was_said_before_and_after():
    page = dataclasses.replace(report(), details=told(3)).html()
    ElementTree.fromstring(page.split("\n", 1)[1])
    assert "All 3: the end" in page
    assert page.count("kjv.txt") == 3
    assert "<mark>the &lt;end&gt; of 2</mark> <span>(0 edits)</span>" in page
    assert "<mark>the &lt;</mark>&amp;&gt; of 2 <span>(3 edits)</span>" in page
    assert f"…{'x' * 160}<" in page


def test_page_shows_at_most_twelve_passages():
    page = dataclasses.replace(report(), details=told(100)).html()
    assert page.count("<dt>after</dt>") == 12
    assert "12 of 100: " in page
    assert "Passage 1," in page
    assert "Passage 100," in page


def test_page_shows_no_passages_without_their_text():
    details = told(3)
    del details["passages"]["before"]["prefix"]
    assert "<h2>Passages" not in dataclasses.replace(report(), details=details).html()


def test_page_of_passages_before_any_edit():
    details = told(3)
    del details["passages"]["after"]
    page = dataclasses.replace(report(), after=None, details=details).html()
    assert page.count("<dt>before</dt>") == 3
    assert "<dt>after</dt>" not in page


@pytest.mark.parametrize(
    "bare", [Report(before=metrics()), Report(before=Metrics())], ids=["baseline", "empty"]
)
def test_page_of_a_baseline_alone(bare):
    assert "unedited model" in Parser(bare.html()).text


def test_page_of_a_selection_without_staircase():
    chosen = selection("random")
    text = Parser(report().with_edit(chosen).html()).text
    assert "layer.0" in text
    assert "all" not in {target.name for target in summarise_selection(chosen)}


def test_record_of_an_edited_checkpoint():
    entry = {
        "threshold": 0.1,
        "mass": 0.6,
        "kept": 0.2,
        "change": 0.3,
        "backend": "torch",
        "key": "k",
        "file": "f",
    }
    record = {
        "recipe": {"keep_mass": 0.6},
        "targets": {"a": {**entry, "sha256_before": "aa", "sha256_after": "bb"}},
    }
    done = report().with_record(record)
    assert done.targets[0] == TargetSummary(
        "a", None, 0.2, 0.6, 0.1, (), (), (), "aa", 0.3, "torch", "bb"
    )
    assert Report.from_json(json.loads(json.dumps(done.to_json()))) == done
    assert "20 %" in Parser(done.html()).text


@pytest.mark.parametrize("rows", [1, 7, 255, 256, 257, 5000])
def test_polylines_are_short_and_keep_their_ends(rows):
    limits = torch.arange(rows, 0, -1, dtype=torch.int32)
    values = torch.linspace(2, 1, rows, dtype=torch.float64)
    base = selection()["layer.0"]
    target = dataclasses.replace(
        base, shape=(rows, rows), limits=limits, values_out=values, values_in=None, kept=rows
    )
    [summary] = summarise_selection(curvedit.Selection({"t": target}, {}))
    for line in (summary.limits, summary.values_out):
        assert len(line) <= 256
        assert (line[0][0], line[-1][0]) == (0, rows - 1)
    assert dict(summary.limits)[rows - 1] == 1
    assert summary.values_in == ()


def test_ticks_lie_within_the_axis():
    assert Axis(0, 1, 0, 100).ticks(4) == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert Axis(1, 1000, 0, 100, log=True).ticks(4) == [1, 10, 100, 1000]
    assert Axis(1, 1000, 0, 90, log=True).at(10) == pytest.approx(30)
    assert Axis(0, 1, 0, 100).at(7) == 100


@pytest.mark.parametrize(
    ("interval", "said"),
    [
        (None, "rose from 3.72 to 3.94 (their intervals overlap) (+5.9 %)"),
        ((0.21, 0.24), "rose from 3.72 to 3.94 (+5.9 %)"),
        ((-0.1, 0.5), "to 3.94 (the interval of the difference includes 0) (+5.9 %)"),
    ],
)
def test_the_sentence_goes_by_the_paired_difference(interval, said):
    before = {"perplexity": Metric(3.72, 3.6, 3.84)}
    after = {"perplexity": Metric(3.94, 3.81, 4.07)}
    differences = {} if interval is None else {"perplexity": Metric(0.22, *interval)}
    assert said in verdict.sentence(before, after, {}, differences)
