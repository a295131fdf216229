"""The tensor-core kernel without a GPU: run on a CPU, lane by lane, and compiled by nvcc.

What nvcc compiles is checked for every architecture.
"""

import json
import shutil

import on_host
import pytest
import torch

from curvedit import _C, ops
from curvedit.ops import tiles

SOURCE, HEADER = "syrk_accumulate_on_host.cpp", "syrk_accumulate_mma.hpp"
CASES = [  # tokens dim dtype weighted aligned splits groups
    "1 8 bf16 0 1 1 1",
    "257 136 bf16 0 1 1 1",
    "257 136 fp16 1 1 1 1",
    "100 130 fp16 1 0 1 1",
    "100 1 bf16 0 0 1 1",
    "97 127 bf16 1 0 1 1",
    "129 264 bf16 1 1 3 1",
    "200 129 bf16 1 0 2 4",
    "300 128 fp16 0 1 1 5",
    "0 40 bf16 0 1 2 1",
    "16500 8 bf16 1 1 1 1",  # past the flush
]


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    return on_host.build(tmp_path_factory.mktemp("host"), SOURCE)


@pytest.mark.parametrize("case", CASES)
def test_is_exact_and_stays_inside(program, case):
    run = on_host.run(program, case)
    assert run.returncode == 0, run.stdout + run.stderr
    assert json.loads(run.stdout) == {"wrong": 0, "touched": 0}


def test_shared_memory_fits(program):
    """What the launch asks for; that no more is used is checked by running it."""
    asked = int(on_host.run(program, "shared").stdout)
    assert 0 < asked <= min(on_host.SHARED.values())


def test_every_lower_tile_comes_once(program):
    run = on_host.run(program, "order")
    assert run.returncode == 0, run.stdout


def test_sanitizers_find_nothing(tmp_path):
    program = on_host.build(tmp_path, SOURCE, *on_host.SANITIZE)
    for case in (CASES[2], CASES[5], CASES[7]):
        run = on_host.run(program, case)
        assert run.returncode == 0, run.stderr


FAULTS = {
    "the halves of a fragment": (
        "b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]",
        "b[n / 2][1], b[n / 2][0]",
    ),
    "a stage not waited for": ("wait_for_copies<kStages - 2>()", "wait_for_copies<kStages - 1>()"),
    "the end of the tokens": (
        "const bool is_token = token + t < last;",
        "const bool is_token = token + t <= last;",
    ),
    "only one side weighted": (
        "b[n][r] = scaled<Words>(b[n][r], roots + r % 2 * 8)",
        "(void)roots",
    ),
    "the wrong tile": (
        "float* const tile = tile_of(p, at);",
        "float* const tile = p.out;",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_seen(tmp_path, fault):
    program = on_host.build_with_fault(tmp_path, SOURCE, HEADER, *FAULTS[fault])
    assert any(on_host.run(program, case).returncode for case in CASES[1:8])


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
@pytest.mark.parametrize("architecture", on_host.SHARED)
def test_compiles_without_spills_or_waste(architecture, tmp_path):
    said, code = on_host.compiled(tmp_path, architecture, "syrk_accumulate.cu")
    assert on_host.wasted(said) == {0}
    for instruction in (
        "HMMA.16816.F32.BF16",
        "HMMA.16816.F32 ",
        "LDGSTS.E.BYPASS.128",
        "LDSM.16.MT88.4",
    ):
        assert instruction in code, instruction


def half_precision_case():
    return tiles.zeros(2), torch.ones(2, 2, dtype=torch.bfloat16)


@pytest.mark.parametrize("backend", ["cuda", "wgmma"])
def test_says_why_it_cannot_run(backend):
    case = half_precision_case()
    assert ops.explain("syrk_accumulate", *case)[backend] == "needs CUDA tensors, got cpu"
    with pytest.raises(RuntimeError, match=f"^syrk_accumulate: {backend} needs CUDA tensors, got"):
        ops.choose("syrk_accumulate", *case, backend=backend)


class SaysCuda(torch.Tensor):
    """A CPU tensor that says it is on a GPU."""

    device = torch.device("cuda", 0)


@pytest.mark.parametrize("backend", ["cuda", "wgmma"])
def test_says_what_is_missing_for_tensors_on_cuda(backend, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    why = "needs a GPU that torch can use"
    if not _C.cuda_architectures():
        why = "is not in this build: nvcc was not found"
    case = [tensor.as_subclass(SaysCuda) for tensor in half_precision_case()]
    assert ops.explain("syrk_accumulate", *case)[backend] == why
    with pytest.raises(RuntimeError, match=f"^syrk_accumulate: {backend} {why}$"):
        ops.choose("syrk_accumulate", *case, backend=backend)
