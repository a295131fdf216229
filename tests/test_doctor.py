"""The self-test: it sees every kernel, a wrong one, and what ``CURVEDIT_BACKEND`` asks for."""

import json

import pytest
import torch

from curvedit import doctor, ops
from curvedit.cli import main


@pytest.fixture(autouse=True)
def without_a_wish(request, monkeypatch):
    monkeypatch.delenv(ops.VARIABLE, raising=False)
    if request.function is not test_every_backend_is_looked_at:
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)  # it takes seconds per kernel


def diagnosed(capsys):
    """The checks by kernel and backend, on the CPU; and the facts."""
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    checks = [check for check in found["checks"] if check["device"] == "cpu"]
    return {(check["op"], check["backend"]): check for check in checks}, found["facts"]


def test_every_backend_is_looked_at(capsys):
    checks, facts = diagnosed(capsys)
    assert "torch" in facts
    assert ops.VARIABLE not in facts
    assert set(checks) == {(op, backend) for op in ops.operations() for backend in ops.backends(op)}
    for op in ops.operations():
        uses = [check["use"] for check in checks.values() if check["op"] == op]
        assert uses.count("default") == 1
    for check in checks.values():
        assert (check["error"] is None) == (check["use"] == "cannot")
        assert check["reason"] or check["use"] == "default"


def test_wrong_numbers_fail(monkeypatch, capsys):
    right = ops.call

    def wrong(op, *arguments, backend=None):
        returned = right(op, *arguments, backend=backend)
        if (op, backend) == ("syrk_accumulate", "cpp"):
            arguments[0][0, 3, 2] += 40  # one element of 40 thousand
        return returned

    monkeypatch.setattr(ops, "call", wrong)
    assert main(["doctor"]) == 1
    captured = capsys.readouterr()
    assert "WRONG" in captured.out
    assert "doctor: wrong numbers from syrk_accumulate (cpp, cpu)" in captured.err


def planted(monkeypatch, change):
    """The check of the compiled kernel whose result ``change`` has changed."""
    right = ops.call

    def wrong(op, *arguments, backend=None):
        returned = right(op, *arguments, backend=backend)
        if (op, backend) == ("syrk_accumulate", "cpp"):
            change(arguments[0], arguments[1])
        return returned

    monkeypatch.setattr(ops, "call", wrong)
    return doctor.check("syrk_accumulate", "cpp", "cpu")


def test_a_kernel_that_truncates_when_it_adds_is_sound(monkeypatch):
    def cut(out, x):
        if x.is_floating_point() and not torch.equal(x, x.round()):
            out *= 1 - doctor.truncation(len(x))

    assert planted(monkeypatch, cut).is_sound


def test_a_kernel_that_is_off_by_one_in_exact_sums_is_wrong(monkeypatch):
    def off(out, x):
        if torch.equal(x, x.round()):
            out[0, 3, 2] += 1

    check = planted(monkeypatch, off)
    assert check.error < check.limit
    assert not check.is_sound
    assert "WRONG" in str(check)
    assert "not exact on integers" in str(check)


def test_a_kernel_that_loses_more_than_truncation_is_wrong(monkeypatch):
    def lose(out, x):
        if x.dtype != torch.float32 and not torch.equal(x, x.round()):
            out *= 1 - 8 * doctor.truncation(len(x))

    check = planted(monkeypatch, lose)
    assert check.is_exact
    assert not check.is_sound


def test_nan_is_wrong(monkeypatch):
    assert not planted(monkeypatch, lambda out, x: out.fill_(torch.nan)).is_sound


def test_a_kernel_that_raises_is_wrong_and_the_rest_is_examined(monkeypatch, capsys):
    def fail(out, x):
        raise RuntimeError("an illegal memory access was encountered\nand more")

    check = planted(monkeypatch, fail)
    assert not check.is_sound
    assert check.reason == "raised RuntimeError: an illegal memory access was encountered"
    assert main(["doctor"]) == 1
    assert "masked_project" in capsys.readouterr().out


def test_every_backend_of_a_kernel_has_trials_it_takes():
    """Such as sums without weights, which the Hopper kernel needs."""
    trials = doctor._TRIALS["syrk_accumulate"](torch.device("cpu"))
    assert {len(trial.arguments) for trial in trials} == {2, 3}
    assert {trial.limit == 0 for trial in trials} == {True, False}


def test_truncation_bounds_a_sum_that_is_cut():
    """16 products at a time, each sum cut to 24 bits, and all of one sign."""
    values = torch.rand(4096, generator=torch.Generator().manual_seed(0)).double() + 0.5
    total = 0.0
    for part in values.split(16):
        total += float(part.sum())
        unit = 2.0 ** (torch.tensor(total).log2().floor().item() - 23)
        total = total // unit * unit
    lost = 1 - total / float(values.sum())
    assert 0.1 * doctor.truncation(4096) < lost <= doctor.truncation(4096)


def test_a_reason_is_given_where_a_backend_cannot_run():
    check = doctor.check("syrk_accumulate", "triton", "cpu")
    assert check.use == "cannot"
    assert check.reason.startswith(("needs CUDA tensors", "needs the triton package"))


def test_a_backend_that_takes_some_dtypes_is_run_on_those():
    check = doctor.check("syrk_accumulate", "reference", "cpu")  # takes float32 only
    assert check.use == "by name"
    assert check.error < doctor.TOLERANCE


def test_a_backend_for_one_kernel(monkeypatch, capsys):
    monkeypatch.setenv(ops.VARIABLE, "syrk_accumulate=torch")
    checks, facts = diagnosed(capsys)
    assert checks["syrk_accumulate", "torch"]["use"] == "default"
    assert checks["syrk_accumulate", "cpp"]["reason"] == "after torch"
    assert checks["syrk_accumulate_pair", "cpp"]["use"] == "default"
    meaning = facts[ops.VARIABLE]
    assert meaning.startswith("syrk_accumulate=torch: torch for syrk_accumulate; no wish for syrk")


def test_a_bare_backend(monkeypatch, capsys, recwarn):
    monkeypatch.setenv(ops.VARIABLE, "torch")
    checks, facts = diagnosed(capsys)
    assert checks["syrk_accumulate_pair", "torch"]["use"] == "default"
    assert checks["staircase_limits", "cpp"]["use"] == "default"
    assert facts[ops.VARIABLE].endswith("; no backend torch in staircase_limits")
    assert not recwarn


def test_a_mixture(monkeypatch, capsys):
    monkeypatch.setenv(ops.VARIABLE, "torch, staircase_limits=reference, syrk_accumulate=cpp")
    checks, facts = diagnosed(capsys)
    assert checks["syrk_accumulate", "cpp"]["use"] == "default"
    assert checks["syrk_accumulate_pair", "torch"]["use"] == "default"
    assert checks["staircase_limits", "reference"]["use"] == "default"
    meaning = facts[ops.VARIABLE].partition(": ")[2]
    assert meaning.startswith("reference for staircase_limits; cpp for syrk_accumulate; torch for")
    assert "no backend" not in meaning


@pytest.mark.parametrize("text", ["syrk_accumulate=wgmma", "wgmma"])
def test_a_backend_that_cannot_run_here(text, monkeypatch, capsys):
    monkeypatch.setenv(ops.VARIABLE, text)
    checks, _ = diagnosed(capsys)
    uses = {use["use"] for (op, _), use in checks.items() if op == "syrk_accumulate"}
    assert "default" not in uses
    reason = checks["syrk_accumulate", "cpp"]["reason"]
    assert reason == f"{ops.VARIABLE}: wgmma needs CUDA tensors, got cpu"
    assert checks["staircase_limits", "cpp"]["use"] == "default"


@pytest.mark.parametrize("text", ["opencl", "syrk=cpp", "syrk_accumulate=opencl", "cpp,torch"])
def test_nonsense_is_named(text, monkeypatch, capsys):
    monkeypatch.setenv(ops.VARIABLE, text)
    assert main(["doctor"]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith(f"curvedit doctor: error: {ops.VARIABLE}: expected ")
    assert "Traceback" not in captured.err


def test_a_staircase_is_examined_on_every_device():
    for device in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
        assert doctor.check("staircase_rotate", "torch", device).error < doctor.TOLERANCE
