"""Sums that cannot fit are refused before anything is allocated or run."""

import pytest
import torch
from torch import nn

import curvedit
from curvedit import meter
from curvedit.fitting import memory
from curvedit.ops import tiles


class Head(nn.Module):
    """A map to far more outputs than a dense second moment can have."""

    def __init__(self, outputs=400_000):
        super().__init__()
        self.small, self.head = nn.Linear(8, 8), nn.Linear(8, outputs)

    def forward(self, x):
        raise AssertionError("the model was run")


def test_a_head_over_a_vocabulary_is_refused_before_work():
    pairs = [(torch.randn(2, 8), torch.tensor([0, 1]))]
    with pytest.raises(ValueError, match="targets: expected sums that fit") as raised:
        curvedit.fit(Head(), pairs, targets="*", progress=False)
    said = str(raised.value)
    assert "'head' (400000 x 8)" in said
    assert "596.0 GiB" in said
    assert "leave it out" in said


def test_what_fits_is_run():
    pairs = [(torch.randn(2, 8), torch.tensor([0, 1]))]
    with pytest.raises(AssertionError, match="the model was run"):
        curvedit.fit(Head(), pairs, targets="small", progress=False)


def test_the_least_is_what_tiles_of_these_widths_take():
    shapes = {"one": (300, 200), "two": (100, 200), "three": (100, 70)}
    triangles = [n * (n + 1) // 2 for n in (300, 100, 100, 200, 70)]
    assert memory.least_bytes(shapes, weighted=False) == 4 * sum(triangles)
    pairs = [rows * (rows + 1) // 2 + cols * (cols + 1) // 2 for rows, cols in shapes.values()]
    both = 4 * (sum(triangles) + sum(pairs))
    assert memory.least_bytes(shapes, weighted=True) == both
    corrected = sum(rows * columns for rows, columns in shapes.values())
    assert memory.least_bytes(shapes, weighted=True, corrected=True) == both + 4 * corrected
    assert tiles.zeros(300).numel() * 4 >= 4 * 300 * 301 // 2


@pytest.mark.filterwarnings("ignore:.*fewer positions:UserWarning")
def test_the_largest_share_is_named(monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda _: 1000)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 30), nn.Linear(30, 2))
    pairs = [(torch.randn(4, 4), torch.randint(2, (4,)))]
    with pytest.raises(ValueError, match=r"most of it '2' \(30 x 8\)"):
        curvedit.fit(model, pairs, targets="*", progress=False)
    monkeypatch.setattr(memory, "free_memory", lambda _: None)
    curvedit.fit(model, pairs, targets="*", weighted=False, progress=False)


def test_free_memory_of_this_machine():
    free = meter.free_memory(torch.device("cpu"))
    assert free is None or 0 < free < 1 << 50


def test_a_limit_of_the_container_counts(tmp_path, monkeypatch):
    (tmp_path / "memory.max").write_text("3000000\n")
    (tmp_path / "memory.current").write_text("1000000\n")
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 400000\n")
    monkeypatch.setattr(meter, "_CGROUP", tmp_path)
    assert meter.free_memory(torch.device("cpu")) == 2_400_000
    (tmp_path / "memory.max").write_text("max\n")
    assert meter.free_memory(torch.device("cpu")) > 10_000_000
