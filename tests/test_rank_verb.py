"""``curvedit rank``: what it says of singular factors, idle targets and little that is kept."""

import json
import warnings

import pytest
import torch

from curvedit import Factors
from curvedit.cli import main


@pytest.fixture
def factors(tmp_path):
    """Saved factors: of full rank, of rank 2, steep, and without any curvature."""
    full, short = torch.eye(4), torch.diag(torch.tensor([2.0, 1, 0, 0]))
    steep = torch.diag(torch.tensor([1000.0, 1, 1, 1]))
    nothing = torch.zeros(4, 4)
    moments = {"full": (full, full, 9), "short": (short, full, 9), "steep": (steep, steep, 9)}
    Factors.from_moments(moments).save(tmp_path / "factors")
    Factors.from_moments(moments | {"idle": (full, nothing, 9)}).save(tmp_path / "with-idle")
    return tmp_path


def rank(place, *words):
    return main(["rank", "--factors", str(place), "--out", str(place) + "-out", *words])


def test_it_says_which_factors_are_singular(factors, capsys):
    assert rank(factors / "factors", "--keep-mass", "0.9") == 0
    out = capsys.readouterr().out
    assert "6 bases: residual at most" in out
    (line,) = [line for line in out.splitlines() if "singular" in line]
    assert line.startswith("1 of the 6 factors are singular: A of short (rank 2); the data left")
    assert "components along them are the first to go" in line


def test_it_says_nothing_of_factors_of_full_rank(factors, capsys):
    assert rank(factors / "factors", "--keep-mass", "0.9", "--targets", "full") == 0
    assert "singular" not in capsys.readouterr().out


def test_what_it_says_is_true(factors, capsys):
    """At a share below 1 no component along a direction without curvature is kept."""
    assert rank(factors / "factors", "--keep-mass", "0.999", "--targets", "short", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["bases"]["singular"] == {"A of short": 2}
    assert found["selections"][0]["targets"]["short"]["kept"] == 8 / 16  # of 4 x 4


def test_an_idle_target_is_refused_and_can_be_left_out(factors, capsys):
    assert rank(factors / "with-idle", "--keep-mass", "0.9") == 1
    error = capsys.readouterr().err
    assert error.startswith("curvedit rank: error: factors: 'idle' has no curvature: ")
    assert "leave out with --skip 'idle'" in error
    assert not (factors / "with-idle-out").exists()
    assert rank(factors / "with-idle", "--keep-mass", "0.9", "--skip", "idle") == 0
    kept = json.loads((factors / "with-idle-out/selection.json").read_text())["targets"]
    assert list(kept) == ["full", "short", "steep"]


def test_keeping_very_little_is_a_warning_of_one_line(factors, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert rank(factors / "factors", "--keep-mass", "0.5") == 0
    captured = capsys.readouterr()
    assert captured.err == (
        "curvedit rank: warning: keep_mass: 0.5 keeps less than 10% of the components of 1 of 3 "
        "targets, only 6.25% of 'steep'; an edit that deletes so much may ruin the model: measure "
        "it, or keep more\n"
    )
    assert "keeps 6.25% of its components" in captured.out
