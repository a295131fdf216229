"""How far a long loop has come: a bar on a terminal, a plain line every 30 s elsewhere."""

import io
import re

import models
import pytest

import curvedit
from curvedit import meter
from curvedit.meter import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is told otherwise."""
    now = [100.0]
    monkeypatch.setattr(meter.time, "monotonic", lambda: now[0])
    return now


def test_a_line_every_30_seconds_off_a_terminal(clock, capsys):
    with progress(1000, unit="tok", what="fit", shown=True) as bar:
        for _ in range(7):
            clock[0] += 10
            bar.note(f"peak {clock[0]:.0f} GiB")
            bar.update(100)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "fit: 300 of 1,000 tok (30%), 10 tok/s, 01:10 left, peak 130 GiB",
        "fit: 600 of 1,000 tok (60%), 10 tok/s, 00:40 left, peak 160 GiB",
        "fit: 700 of 1,000 tok (70%), 10 tok/s, 00:30 left, peak 170 GiB",  # where it stopped
    ]


def test_a_short_loop_says_nothing(clock, capsys):
    with progress(10, unit="tok", what="fit", shown=True) as bar:
        clock[0] += 29
        bar.update(10)
    assert capsys.readouterr() == ("", "")


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
    assert re.fullmatch(peak, lines[0])
    assert any(line.startswith("decompose: ") for line in lines)
