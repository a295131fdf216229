"""The profiler: right before timed, every backend beside its rivals, files that read back."""

import json
import xml.etree.ElementTree as ET

import pytest
import torch

from curvedit import ops, profiling
from curvedit.cli import main

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch):
    monkeypatch.setattr(profiling, "_PAUSE", 0.0)
    monkeypatch.setattr(profiling, "_ceilings", lambda _: profiling.Ceilings(20.0, {"float32": 0.2, "bfloat16": 0.2}))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def test_rows_and_files(tmp_path, capsys):
    sizes = ["--d", "130", "64", "--tokens", "40", "--rounds", "2", "--device", DEVICE]
    assert main(["bench", *sizes, "--out", str(tmp_path / "out")]) == 0
    assert "roofline" in capsys.readouterr().out
    content = json.loads((tmp_path / "out/bench.json").read_text())
    assert {row["d"] for row in content["rows"]} == {64, 130}
    candidates = {row["candidate"] for row in content["rows"]}
    assert {"curvedit torch", "torch addmm"} <= candidates
    for row in content["rows"]:
        assert row["error"] < 1e-4
        assert row["tflops"] * row["milliseconds"] * 1e9 == pytest.approx(40 * row["d"] * (row["d"] + 1), rel=1e-3)
    root = ET.parse(tmp_path / "out/roofline.svg").getroot()
    assert sum(element.tag.endswith("circle") for element in root.iter()) == len(content["rows"]) + len(candidates)


def test_experts_have_tokens_of_their_own():
    _, rows = profiling.measure([(40, 5)], tokens=60, device=torch.device(DEVICE), rounds=1)
    assert {row.groups for row in rows} == {5}
    assert "torch addmm, a loop" in {row.candidate for row in rows}


def test_wrong_numbers_are_not_timed(monkeypatch):
    right = ops.call

    def wrong(op, out, *arguments, backend=None):
        right(op, out, *arguments, backend=backend)
        out += 0.5

    monkeypatch.setattr(ops, "call", wrong)
    with pytest.raises(RuntimeError, match="d = 40: wrong numbers"):
        profiling.measure([(40, 0)], tokens=60, device=torch.device(DEVICE), rounds=1)


def test_one_backend_for_a_profiler(capsys):
    assert (
        main(["bench", "--backend", "torch", "--d", "40", "--tokens", "20", "--repeat", "2", "--device", DEVICE]) == 0
    )
    assert "ms a call" in capsys.readouterr().out
    assert main(["bench", "--backend", "opencl", "--d", "40", "--tokens", "20", "--device", DEVICE]) == 1
    assert "has no backend 'opencl'" in capsys.readouterr().err
