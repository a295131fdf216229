"""The GPU measurements' own machinery: nothing that a candidate does ends a run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks/gpu_measure"
PROGRAM = """
import os, sys, time
sys.path.insert(0, {folder!r})
import common

def run(session):
    for name in session.cases(["first", "second"]):
        runs = {{
            "raises": lambda _: 1 / 0,
            "dies": lambda _: os._exit(9),
            "hangs": lambda _: time.sleep(60),
            "fine": lambda _: None,
        }}
        for candidate, found in common.interleaved(session, runs, rounds=3).items():
            session.write("row", candidate=candidate, **found)

common.main("A test.", run, seconds=60, stall=4)
"""


@pytest.fixture
def written(tmp_path):
    """Runs a program of the folder, or this file's, and returns its lines."""

    def run(program, *options):
        path = tmp_path / "results.jsonl"
        command = [sys.executable, program, "--json", path, *options]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        return [json.loads(line) for line in path.read_text().splitlines()]

    return run


def test_a_candidate_that_dies_or_hangs_is_left_out(written, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(folder=str(FOLDER)))
    lines = written(program, "--dry")
    rows = [(line["case"], line["candidate"]) for line in lines if line["kind"] == "row"]
    assert rows == [("first", "fine"), ("second", "fine")]
    faults = {line["candidate"]: line["fault"] for line in lines if line["kind"] == "fault"}
    assert faults == {"dies": "the process ended with 9", "hangs": "no answer within 4 s"}
    assert {line["case"] for line in lines if line["kind"] == "failed"} == {"first", "second"}


def test_predictions_are_those_of_the_table(written):
    found = {(line["device"], line["case"]): line for line in written(FOLDER / "predictions.py")}
    for d, milliseconds in ((4096, 0.359), (11008, 2.54), (14336, 4.30)):
        limit = found["H200", f"d={d} tokens=16384 bfloat16"]["ms"]["limit"][0]
        assert limit == pytest.approx(milliseconds, rel=5e-3)
    dense = found["H200", "project 11008x4096 i^-0.8 keeps 0.8"]["ms"]["dense float32"][0]
    assert dense == pytest.approx(52, rel=0.01)


def test_a_report_shows_measured_beside_predicted(tmp_path):
    case = "d=4096 tokens=16384 bfloat16"
    row = {"program": "syrk", "kind": "row", "case": case, "candidate": "torch addmm", "ms": 0.75}
    ranges = {"torch addmm": [0.7, 0.75]}
    said = {"program": "predictions", "kind": "predicted", "device": "H100", "case": case}
    missed = {"program": "syrk", "kind": "failed", "case": case, "candidate": "b", "why": "no"}
    path = tmp_path / "results.jsonl"
    lines = [json.dumps(each) for each in (row | {"speedup": 1.0}, said | {"ms": ranges}, missed)]
    path.write_text("\n".join([*lines, '{"cut o']))
    shown = subprocess.run(
        [sys.executable, FOLDER / "report.py", path], check=True, capture_output=True, text=True
    ).stdout
    assert f"| {case} | torch addmm | 0.750 | 0.700-0.750 | 1.00 | 1.00 |" in shown
    assert f"* syrk: {case}, b: failed: no" in shown
