"""``curvedit bench``: right before timed, every backend beside its rivals, files that read back."""

import json
import xml.etree.ElementTree as ET

import pytest
import torch
from cases import limits_of, normal, orthogonal

from curvedit import ops
from curvedit.bench import rivals, timing, workloads
from curvedit.cli import main

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch):
    monkeypatch.setattr(timing, "_PAUSE", 0.0)
    ceilings = timing.Ceilings(20.0, {"float32": 0.2, "bfloat16": 0.2})
    monkeypatch.setattr(timing, "_ceilings", lambda _: ceilings)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def measured(op, shapes, **options):
    cases = workloads.cases(op, shapes, tokens=256, device=torch.device(DEVICE), **options)
    return timing.measure(cases, device=torch.device(DEVICE), rounds=1)[1]


def candidates(op, shapes):
    return {row.candidate for row in measured(op, shapes)}


def test_rows_and_files(tmp_path, capsys):
    sizes = ["--d", "130", "64", "--tokens", "256", "--rounds", "2", "--device", DEVICE]
    assert main(["bench", *sizes, "--out", str(tmp_path / "out")]) == 0
    assert "roofline" in capsys.readouterr().out
    content = json.loads((tmp_path / "out/bench.json").read_text())
    assert {row["op"] for row in content["rows"]} == set(workloads.OPS)
    for op in workloads.OPS:
        rows = [row for row in content["rows"] if row["op"] == op]
        names = {row["candidate"] for row in rows}
        root = ET.parse(tmp_path / f"out/roofline-{op}.svg").getroot()
        circles = sum(element.tag.endswith("circle") for element in root.iter())
        assert circles == len(rows) + len(names)
        assert "curvedit torch" in names
        assert any(name.startswith("torch") for name in names)
        assert all(row["error"] < 1e-4 for row in rows)
    for d in (64, 130):
        rows = [row for row in content["rows"] if row["shape"] == f"d = {d}, 256 tokens"]
        assert rows
        for row in rows:
            operations = row["tflops"] * row["milliseconds"] * 1e9
            assert operations == pytest.approx(256 * d * (d + 1), rel=1e-3)


def test_candidates_name_the_instruction_set():
    x = torch.zeros(2, 2)
    label = ops.choose("syrk_accumulate", ops.tiles.zeros(2), x, backend="cpp").label
    assert label != "cpp"
    cases = workloads.cases("syrk_accumulate", [(40, 40, 0)], tokens=16, device=torch.device("cpu"))
    names = {(each.name, each.dtype) for case in cases for each in case.candidates}
    assert (f"curvedit {label}", torch.float32) in names


def test_experts_share_the_tokens():
    rows = measured("syrk_accumulate", [(40, 40, 5)])
    assert {row.shape for row in rows} == {"d = 40, 256 tokens of 5 experts"}
    assert "torch addmm, a loop" in {row.candidate for row in rows}


def test_projections_say_what_they_save():
    rows = measured("staircase_project", [(48, 80, 0)])
    assert len({row.shape for row in rows}) == len(workloads.SHARES)
    assert all("80 x 48, keeps" in row.shape for row in rows)


def test_stored_gradients_are_left_out_where_they_are_too_large(monkeypatch):
    shapes = [(40, 30, 0)]
    assert "torch, stored gradients" in candidates("second_moment_accumulate", shapes)
    monkeypatch.setattr(workloads, "_STORED", 1000)
    assert "torch, stored gradients" not in candidates("second_moment_accumulate", shapes)


@pytest.mark.parametrize("op", workloads.OPS)
def test_wrong_numbers_are_not_timed(op, monkeypatch):
    choose = ops.choose

    def choose_wrong(op, *arguments, backend=None):
        implementation = choose(op, *arguments, backend=backend)

        def run(*arguments):
            returned = implementation(*arguments)
            (arguments[0] if returned is None else returned).add_(0.5)
            return returned

        run.label = implementation.label
        return run

    monkeypatch.setattr(ops, "choose", choose_wrong)
    with pytest.raises(RuntimeError, match=r"curvedit .* wrong numbers, expected an error of at"):
        measured(op, [(40, 40, 0)])


@pytest.mark.parametrize(
    ("op", "rival"),
    [
        ("syrk_accumulate", "addmm"),
        ("second_moment_accumulate", "stored_gradients"),
        ("staircase_project", "four_dense_products"),
    ],
)
def test_a_wrong_rival_is_not_timed(op, rival, monkeypatch):
    prepare = getattr(rivals, rival)

    def prepare_wrong(*arguments):
        run = prepare(*arguments)
        return lambda: run().add_(0.5)

    monkeypatch.setattr(rivals, rival, prepare_wrong)
    with pytest.raises(RuntimeError, match=r"torch.* wrong numbers"):
        measured(op, [(40, 40, 0)])


def test_rivals_compute_what_the_kernels_do():
    x, a = normal(12, 5), normal(12, 7, seed=1)
    truth = x.T @ x
    for rival in (rivals.addmm, rivals.ssyrk):
        run = rival(torch.zeros(5, 5), x)
        run()
        torch.testing.assert_close(run().tril(), 2 * truth.tril())
    offsets = torch.tensor([0, 3, 3, 12])
    parts = torch.stack([x[:3].T @ x[:3], torch.zeros(5, 5), x[3:].T @ x[3:]])
    run = rivals.addmm_per_expert(torch.zeros(3, 5, 5), x, offsets)
    torch.testing.assert_close(run(), parts)
    gradients = torch.stack([x[i : i + 4].T @ a[i : i + 4] for i in (0, 4, 8)])
    torch.testing.assert_close(
        rivals.stored_gradients(x, a, 4)(), gradients.square().sum(0), rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(rivals.one_product(x, a)(), x.T @ a)
    w, u_out, u_in, limits = normal(5, 7), orthogonal(5), orthogonal(7), limits_of(5, 7, 0.7)
    kept = torch.arange(7) < limits[:, None]
    torch.testing.assert_close(
        rivals.four_dense_products(w, u_out, u_in, limits)(),
        u_out @ ((u_out.T @ w @ u_in) * kept) @ u_in.T,
        rtol=1e-5,
        atol=1e-5,
    )


def test_one_backend_for_a_profiler(capsys):
    small = ["bench", "--d", "40", "--tokens", "20", "--device", DEVICE]
    assert main([*small, "--backend", "torch", "--repeat", "2"]) == 0
    assert "ms a call" in capsys.readouterr().out
    assert main([*small, "--backend", "opencl"]) == 1
    assert "has no backend 'opencl'" in capsys.readouterr().err


@pytest.mark.parametrize("op", workloads.OPS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_one_backend_of_every_kernel(op, dtype, capsys):
    asked = ["--ops", op, "--backend", "torch", "--dtype", dtype, "--repeat", "1"]
    assert main(["bench", *asked, "--d", "40", "--tokens", "20", "--device", DEVICE]) == 0
    assert f"{op}, torch, {dtype}" in capsys.readouterr().out
