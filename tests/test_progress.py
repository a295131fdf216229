"""How far a long loop has come: a bar on a terminal, a plain line every 10 s elsewhere."""

import io
import re

import models
import pytest
import torch

import curvedit
from curvedit import meter
from curvedit.data import encoded
from curvedit.files import file_hash
from curvedit.meter import progress
from curvedit.models import call, weight_hash


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is told otherwise."""
    now = [100.0]
    monkeypatch.setattr(meter.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(meter, "_lines", meter._Lines())
    return now


def test_a_line_every_10_seconds_off_a_terminal(clock, capsys):
    with progress(1000, unit="tok", what="fit", shown=True) as bar:
        for _ in range(7):
            clock[0] += 4
            bar.note(f"peak {clock[0]:.0f} GiB")
            bar.update(100)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "fit: 300 of 1,000 tok (30%), 25 tok/s, 00:28 left, peak 112 GiB",
        "fit: 600 of 1,000 tok (60%), 25 tok/s, 00:16 left, peak 124 GiB",
        "fit: 700 of 1,000 tok (70%), 25 tok/s, 00:12 left, peak 128 GiB",  # where it stopped
    ]


def test_a_short_loop_says_nothing(clock, capsys):
    for _ in range(2):
        with progress(10, unit="tok", what="fit", shown=True) as bar:
            clock[0] += 9
            bar.update(10)
        clock[0] += 60  # other work, or a pause
    assert capsys.readouterr() == ("", "")


def test_short_loops_one_after_the_other_are_long_work(clock, capsys):
    for number in range(3):
        with progress(2, unit="tok", what=f"loop {number}", shown=True) as bar:
            for _ in range(2):
                clock[0] += 3
                bar.update()
    assert capsys.readouterr().err.splitlines() == [
        "loop 1: 2 of 2 tok (100%), 0.333 tok/s, 00:00 left"
    ]


def test_a_loop_inside_another_speaks_for_both(clock, capsys):
    with progress(3, unit="arm", what="study", shown=True) as outer:
        outer.update()
        with progress(None, unit="tok", what="check", shown=True) as inner:
            clock[0] += 20
            inner.update(10)
            with progress(5, unit="op", what="hidden", shown=False) as hidden:
                clock[0] += 20
                hidden.update()
            inner.update(10)
        outer.update()
        clock[0] += 10
        outer.update()
    assert capsys.readouterr().err.splitlines() == [
        "study: 1 of 3 arm (33%) > check: 10 tok, 0.5 tok/s",
        "study: 1 of 3 arm (33%) > check: 20 tok, 0.5 tok/s",
        "study: 3 of 3 arm (100%), 0.06 arm/s, 00:00 left",
    ]


def test_a_beat_tells_of_work_within_a_unit(clock, capsys):
    meter.beat()  # nothing is shown, so nothing is said
    with progress(4, unit="batch", what="fit", shown=True) as bar:
        meter.beat()
        clock[0] += 11
        meter.beat()
        assert capsys.readouterr().err == "fit: 0 of 4 batch (0%)\n"
        clock[0] += 11
        with progress(1, unit="op", what="hidden", shown=False):
            meter.beat()
        bar.update(4)
    assert capsys.readouterr().err.splitlines() == [
        "fit: 0 of 4 batch (0%)",
        "fit: 4 of 4 batch (100%), 0.182 batch/s, 00:00 left",
    ]


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_a_span_tells_of_work_without_units(clock, monkeypatch, stream):
    error = stream()
    monkeypatch.setattr("sys.stderr", error)
    with meter.span("project", shown=True):
        clock[0] += 9
        meter.beat()
        clock[0] += 3
        meter.beat()
    assert error.getvalue() == "project: 12 s\n"


def test_a_bar_keeps_the_lines_of_a_span_away(clock, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with meter.span("project", shown=True):
        with progress(3, unit="op", what="decompose", shown=True) as bar:
            for _ in range(3):
                clock[0] += 20
                bar.update()
        clock[0] += 9
        meter.beat()
    assert "project:" not in terminal.getvalue()


def test_a_span_stands_in_no_other_line(clock, capsys):
    with (
        meter.span("fit", shown=True),
        progress(3, unit="tok", what="read", shown=True) as bar,
    ):
        clock[0] += 20
        bar.update()
    assert capsys.readouterr().err == "read: 1 of 3 tok (33%), 0.05 tok/s, 00:40 left\n"


def test_nothing_is_shown_unless_wanted(clock, capsys):
    with progress(10, unit="tok", what="fit", shown=False) as bar:
        clock[0] += 100
        bar.update(10)
    assert capsys.readouterr() == ("", "")


def test_a_total_that_is_not_known(clock, capsys):
    with progress(None, unit="batch", what="evaluate", shown=True) as bar:
        clock[0] += 40
        bar.update(8)
        assert capsys.readouterr().err == "evaluate: 8 batch, 0.2 batch/s\n"
        bar.expect(16)
        clock[0] += 40
        bar.update(0)
    assert "8 of 16 batch (50%), 0.1 batch/s, 01:20 left" in capsys.readouterr().err


def test_a_bar_on_a_terminal(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with progress(4, unit="passage", what="recite", shown=True) as bar:
        bar.note("here")
        bar.update(4)
    assert re.search(r"recite: 100%\|.*\| 4/4 .*here", terminal.getvalue())


@pytest.mark.filterwarnings("ignore:.*fewer positions:UserWarning")
def test_a_fit_and_a_decomposition_say_how_far_they_are(monkeypatch, capsys):
    monkeypatch.setattr(meter, "_EVERY", 0.0)
    batches = models.ragged_batches("llama")
    factors = curvedit.fit(models.build("llama"), batches, targets="*.0.mlp.*")
    curvedit.rank(factors, keep_mass=0.5)
    lines = capsys.readouterr().err.splitlines()
    peak = r"fit: \d+ of \d+ tok \(\d+%\), .* tok/s, .* left, peak .* GiB"
    assert any(re.fullmatch(peak, line) for line in lines)
    assert any(line.startswith("decompose: ") for line in lines)


class Words:
    """A tokenizer of words."""

    def __call__(self, text, **_):
        return {"input_ids": [len(word) for word in text.split()]}


def _hash_a_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"content")
    file_hash(path)


def _fit(_):
    model = models.build("llama")
    curvedit.fit(model, models.ragged_batches("llama"), targets="*.0.mlp.*", progress=False)


WORK = {
    "a call of a model": lambda _: call(torch.nn.Linear(3, 2), (torch.ones(1, 3),)),
    "the hash of a weight": lambda _: weight_hash(torch.ones(3, 2)),
    "the hash of a file": _hash_a_file,
    "text that is tokenised": lambda _: list(encoded(Words(), "some words")),
    "a fit": _fit,
}


@pytest.mark.filterwarnings("ignore:.*fewer positions:UserWarning")
@pytest.mark.parametrize("work", WORK.values(), ids=WORK)
def test_work_that_may_take_seconds_is_heard(work, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(meter, "_EVERY", 0.0)
    with meter.span("verb", shown=True):
        work(tmp_path)
    assert set(capsys.readouterr().err.splitlines()) == {"verb: 0 s"}


def test_blocks_of_a_streamed_pass_are_heard(monkeypatch):
    heard = []
    monkeypatch.setattr("curvedit.passes.streaming.beat", lambda: heard.append("block"))
    _fit(None)
    assert len(heard) >= 2
