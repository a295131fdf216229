"""The self-test: it sees every kernel, and a wrong one."""

import json

import pytest

from curvedit import doctor, ops
from curvedit.cli import main


def test_every_backend_is_looked_at(capsys):
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    looked_at = {(check["op"], check["backend"]) for check in found["checks"]}
    assert looked_at == {(op, backend) for op in ops.operations() for backend in ops.backends(op)}
    for op in ops.operations():
        uses = [
            check["use"]
            for check in found["checks"]
            if check["op"] == op and check["device"] == "cpu"
        ]
        assert uses.count("default") == 1
        assert "torch" in found["facts"]
    for check in found["checks"]:
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


def test_a_reason_is_given_where_a_backend_cannot_run(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    if doctor.torch.cuda.is_available():
        pytest.skip("it can run here")
    check = doctor.check("syrk_accumulate", "triton", "cpu")
    assert check.use == "cannot"
    assert "needs CUDA tensors" in check.reason
