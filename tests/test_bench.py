"""The profiler: right before timed, every backend beside its rivals, files that read back."""

import json
import xml.etree.ElementTree as ET

import pytest
import torch

from curvedit import ops
from curvedit.bench import timing, workloads
from curvedit.cli import main

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch):
    monkeypatch.setattr(timing, "_PAUSE", 0.0)
    monkeypatch.setattr(
        profiling,
        "_ceilings",
        lambda _: timing.Ceilings(20.0, {"float32": 0.2, "bfloat16": 0.2}),
    )
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def measured(op, shapes, **options):
    cases = workloads.cases(op, shapes, tokens=256, device=torch.device(DEVICE), **options)
    return timing.measure(cases, device=torch.device(DEVICE), rounds=1)[1]


def test_rows_and_files(tmp_path, capsys):
    sizes = ["--d", "130", "64", "--tokens", "256", "--rounds", "2", "--device", DEVICE]
    assert main(["bench", *sizes, "--out", str(tmp_path / "out")]) == 0
    assert "roofline" in capsys.readouterr().out
    content = json.loads((tmp_path / "out/bench.json").read_text())
    assert {row["op"] for row in content["rows"]} == set(workloads.OPS)
    for op in workloads.OPS:
        rows = [row for row in content["rows"] if row["op"] == op]
        root = ET.parse(tmp_path / f"out/roofline-{op}.svg").getroot()
        candidates = {row["candidate"] for row in rows}
        assert sum(element.tag.endswith("circle") for element in root.iter()) == len(rows) + len(
            candidates
        )
        assert "curvedit torch" in candidates
        assert any(name.startswith("torch") for name in candidates)
        assert all(row["error"] < 1e-4 for row in rows)
    for d in (64, 130):
        rows = [row for row in content["rows"] if row["shape"] == f"d = {d}, 256 tokens"]
        assert rows
        for row in rows:
            assert row["tflops"] * row["milliseconds"] * 1e9 == pytest.approx(
                256 * d * (d + 1), rel=1e-3
            )


def test_experts_have_tokens_of_their_own():
    rows = measured("syrk_accumulate", [(40, 40, 5)])
    assert {row.shape for row in rows} == {"d = 40, 256 tokens of 5 experts"}
    assert "torch addmm, a loop" in {row.candidate for row in rows}


def test_projections_say_what_they_save():
    rows = measured("staircase_project", [(48, 80, 0)])
    assert len({row.shape for row in rows}) == len(workloads.SHARES)
    assert all("80 x 48, keeps" in row.shape for row in rows)


def test_stored_gradients_are_left_out_where_they_are_too_large(monkeypatch):
    assert "torch, stored gradients" in {
        row.candidate for row in measured("second_moment_accumulate", [(40, 30, 0)])
    }
    monkeypatch.setattr(workloads, "_STORED", 1000)
    rows = measured("second_moment_accumulate", [(40, 30, 0)])
    assert "torch, stored gradients" not in {row.candidate for row in rows}


@pytest.mark.parametrize("op", workloads.OPS)
def test_wrong_numbers_are_not_timed(op, monkeypatch):
    right = ops.call

    def wrong(op, *arguments, backend=None):
        returned = right(op, *arguments, backend=backend)
        if op != "staircase_limits":
            (arguments[0] if returned is None else returned).add_(0.5)
        return returned

    monkeypatch.setattr(ops, "call", wrong)
    with pytest.raises(RuntimeError, match="wrong numbers"):
        measured(op, [(40, 40, 0)])


def test_one_backend_for_a_profiler(capsys):
    assert (
        main(
            [
                "bench",
                "--backend",
                "torch",
                "--d",
                "40",
                "--tokens",
                "20",
                "--repeat",
                "2",
                "--device",
                DEVICE,
            ]
        )
        == 0
    )
    assert "ms a call" in capsys.readouterr().out
    assert (
        main(["bench", "--backend", "opencl", "--d", "40", "--tokens", "20", "--device", DEVICE])
        == 1
    )
    assert "has no backend 'opencl'" in capsys.readouterr().err
