"""How the program ends: in one line whatever happened; and what it prints for programs."""

import json
import os
import signal
import subprocess
import sys
import warnings

import models
import pytest
import torch
import yaml
from safetensors import SafetensorError

import curvedit
from curvedit.cli import main, program
from curvedit.cli.verb import Result, Verb

pytestmark = pytest.mark.filterwarnings("ignore:.*fewer positions:UserWarning")


@pytest.fixture
def verb(monkeypatch):
    """A function that makes a verb "try" do something, and runs it."""

    def run(job, *words):
        tried = Verb("try", "try", lambda _: None, lambda _: job)
        monkeypatch.setitem(program.VERBS, "try", tried)
        return main(["try", *words])

    return run


def raising(error):
    def job():
        raise error

    return job


LONG = "Could not reach the hub.\nCheck your connection\n  or your luck"
SAID = {
    "refusal": (ValueError("x: expected 1, got 2"), "x: expected 1, got 2"),
    "key": (KeyError("G of t was not fitted"), "G of t was not fitted"),
    "library": (OSError(LONG), "Could not reach the hub. (--traceback shows more)"),
    "blank lines": (RuntimeError("\n\n first\nsecond"), "first (--traceback shows more)"),
    "system": (PermissionError(13, "Permission denied", "/root/x"), "/root/x: Permission denied"),
    "full disk": (OSError(28, "out: writing x failed"), "out: writing x failed"),
    "wordless": (ValueError(), "ValueError"),
    "safetensors": (SafetensorError("bad header"), "a safetensors file is damaged (bad header)"),
    "JSON": (json.JSONDecodeError("Expecting value", "", 0), "expected JSON, got something else"),
    "encoding": (
        UnicodeDecodeError("utf-8", b"d\xe9", 1, 2, "invalid continuation byte"),
        "expected text in UTF-8, got another encoding ('utf-8' codec can't decode byte 0xe9",
    ),
    "memory": (MemoryError(), "out of memory (MemoryError); use a smaller --batch-size"),
    "GPU memory": (
        torch.OutOfMemoryError("CUDA out of memory. Tried\nmore"),
        "out of memory on the GPU (CUDA out of memory. Tried); use a smaller --batch-size",
    ),
    "allocator": (
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
        "out of memory ([enforce fail] DefaultCPUAllocator",
    ),
    "fault": (
        AttributeError("no attribute 'x'"),
        "unexpected AttributeError: no attribute 'x'; run again with --traceback and report it at",
    ),
    "assertion": (AssertionError(), "unexpected AssertionError: AssertionError; run again"),
    "index": (IndexError("out of range"), "unexpected IndexError: out of range; run again"),
    "deep": (RecursionError("maximum recursion depth"), "maximum recursion depth"),
}


@pytest.mark.parametrize("case", SAID)
def test_every_error_is_one_line(verb, capsys, case):
    error, message = SAID[case]
    assert verb(raising(error)) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith(f"curvedit try: error: {message}")
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    with pytest.raises(type(error)):
        verb(raising(error), "--traceback")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("words", [[], ["--traceback"]])
def test_a_signal_stops_it_and_cleans_up(verb, capsys, tmp_path, number, status, words):
    before = signal.getsignal(signal.SIGTERM)

    def job():
        with curvedit.files.new_directory("out", tmp_path / "out") as part:
            (part / "half").write_text("half")
            os.kill(os.getpid(), number)
            for _ in range(10**6):
                pass
        return Result("not reached")

    assert verb(job, *words) == status
    captured = capsys.readouterr()
    assert captured.err.startswith("curvedit try: stopped: ")
    assert captured.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_reader_that_leaves(tmp_path):
    """``curvedit inspect … | head -1`` says nothing more."""
    curvedit.Factors.from_moments({"t": (torch.eye(2), torch.eye(2), 1)}).save(tmp_path / "factors")
    command = [sys.executable, "-m", "curvedit", "inspect", str(tmp_path / "factors")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_warnings_are_one_line_each(verb, capsys):
    def job():
        warnings.warn("two\n  lines", stacklevel=1)
        return Result("done")

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert verb(job) == 0
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("done\n", "curvedit try: warning: two lines\n")


def test_a_result_that_is_a_failure(verb, capsys):
    job = lambda: Result("text", {"x": float("nan"), 3: (1, 2.5)}, "wrong")  # noqa: E731
    assert verb(job) == 1
    assert capsys.readouterr() == ("text\n", "curvedit try: error: wrong\n")
    assert verb(job, "--json") == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"x": None, "3": [1, 2.5]}
    assert captured.err == "curvedit try: error: wrong\n"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    directory = tmp_path_factory.mktemp("program")
    models.build("llama").save_pretrained(directory / "model")
    row = {"input_ids": models.draw(90)}
    (directory / "data.jsonl").write_text(json.dumps(row))
    return directory


RUN = {
    "model": "model",
    "fit": {"data": "data.jsonl", "targets": "*.0.mlp.*", "window": 20, "progress": False},
    "rank": {"sweep": "0.8:0.9:0.1", "progress": False},
    "evaluate": {"text": "data.jsonl", "window": 20},
}


def as_json(capsys, *words):
    capsys.readouterr()
    assert main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_every_verb_prints_json(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    (place / "run.yaml").write_text(yaml.safe_dump(RUN))
    found = as_json(capsys, "run", "run.yaml", "--out", "out")
    stages = found["stages"]
    assert list(stages) == ["fit", "rank", "project", "evaluate"]
    assert len(stages["fit"]["targets"]) == 3
    assert stages["fit"]["positions"] > 0
    assert [each["out"] for each in stages["rank"]["selections"]] == [
        f"out/selection/keep-{share}" for share in ("0.8", "0.9")
    ]
    assert [each["out"] for each in stages["project"]["edits"]] == [
        f"out/model/keep-{share}" for share in ("0.8", "0.9")
    ]
    reports = stages["evaluate"]["reports"]
    assert [each["out"] for each in reports] == ["out/report/keep-0.8", "out/report/keep-0.9"]
    for report in reports:
        assert report["before"]["perplexity"]["value"] != report["after"]["perplexity"]["value"]
        on_disk = json.loads((place / report["out"] / "report.json").read_text())
        assert on_disk["after"] == report["after"]
        assert on_disk["recipe"]["keep_mass"] == float(report["out"].rsplit("-", 1)[1])
    factors = "out/factors"
    other = str(models.as_of_other_data(factors, "other"))
    merged = as_json(capsys, "merge", "--factors", factors, other, "--out", "twice")
    assert (merged["out"], len(merged["targets"])) == ("twice", 3)
    bench = ["bench", "--d", "8", "--tokens", "4", "--backend", "torch", "--repeat", "1"]
    assert as_json(capsys, *bench, "--device", "cpu")["runs"][0]["ms"] > 0
    inspects_everything(place, capsys)


def inspects_everything(place, capsys):
    kinds = {"factors": "factors", "selection/keep-0.8": "selection"}
    kinds |= {"model/keep-0.8": "edited checkpoint", "report/keep-0.8": "report"}
    for path, kind in kinds.items():
        assert as_json(capsys, "inspect", f"out/{path}")["kind"] == kind
        assert main(["inspect", f"out/{path}"]) == 0
        assert capsys.readouterr().out.strip()
    for path in ("selection", "model", "report"):
        assert list(as_json(capsys, "inspect", f"out/{path}")["parts"]) == ["keep-0.8", "keep-0.9"]
    assert list(as_json(capsys, "inspect", "out")["parts"]) == [
        *("factors", "model/keep-0.8", "model/keep-0.9", "report/keep-0.8", "report/keep-0.9"),
        *("selection/keep-0.8", "selection/keep-0.9"),
    ]
    assert main(["inspect", "out/model/keep-0.8/curvedit.json"]) == 0
    text = capsys.readouterr().out
    assert "keep_mass: 0.8" in text
    assert "model.layers.0.mlp.gate_proj  48 x 32  keeps " in text
    assert main(["inspect", "out"]) == 0
    assert "model/keep-0.8: an edited checkpoint\n" in capsys.readouterr().out
