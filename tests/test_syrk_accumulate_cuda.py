"""The tensor-core kernel without a GPU: run on a CPU, lane by lane, and compiled for every architecture."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
import triton

from curvedit import native_cuda

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "tests/host/syrk_accumulate_on_host.cpp"
KERNEL = ROOT / "csrc/syrk_accumulate.cu"
TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
SHARED = {"80": 166912, "86": 101376, "89": 101376, "90a": 232448, "120": 101376}  # bytes per block
SANITIZE = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover"]
COMPILER = shutil.which("g++") or shutil.which("c++")
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


def build(directory, name, *flags, source=SOURCE):
    program = directory / name
    include = ["-I", ROOT / "tests/host", "-I", ROOT / "csrc"]
    command = [COMPILER, "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", *flags, *include, source, "-o", program]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return program


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    return build(tmp_path_factory.mktemp("host"), "kernel")


@pytest.mark.parametrize("case", CASES)
def test_is_exact_and_stays_inside(program, case):
    run = subprocess.run([program, *case.split()], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert json.loads(run.stdout) == {"wrong": 0, "touched": 0}


def test_every_lower_tile_comes_once(program):
    run = subprocess.run([program, "order"], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout


def test_sanitizers_find_nothing(tmp_path):
    program = build(tmp_path, "kernel", *SANITIZE)
    for case in (CASES[2], CASES[5], CASES[7]):
        run = subprocess.run([program, *case.split()], capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr


FAULTS = {
    "the halves of a fragment": ("b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]", "b[n / 2][1], b[n / 2][0]"),
    "a stage not waited for": ("wait_for_copies<kStages - 2>()", "wait_for_copies<kStages - 1>()"),
    "the end of the tokens": ("const bool is_token = token + t < last;", "const bool is_token = token + t <= last;"),
    "only one side weighted": ("b[n][r] = scaled<Words>(b[n][r], roots + r % 2 * 8)", "(void)roots"),
    "a tile of its own": (
        "float* const tile = (p.partial ? p.partial : p.out) + index",
        "float* const tile = p.out + 0 * index",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_seen(tmp_path, fault):
    right, wrong = FAULTS[fault]
    text = (ROOT / "csrc/syrk_accumulate_mma.hpp").read_text()
    assert text.count(right) == 1
    (tmp_path / "csrc").mkdir()
    for header in ("device_functions.hpp", "tile_order.hpp"):
        shutil.copy(ROOT / "csrc" / header, tmp_path / "csrc")
    (tmp_path / "csrc/syrk_accumulate_mma.hpp").write_text(text.replace(right, wrong))
    (tmp_path / "tests/host").mkdir(parents=True)
    source = shutil.copy(SOURCE, tmp_path / "tests/host")
    program = build(tmp_path, "kernel", "-Wno-error", source=source)
    results = [subprocess.run([program, *case.split()], capture_output=True, check=False) for case in CASES[1:8]]
    assert any(result.returncode for result in results)


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
@pytest.mark.parametrize("architecture", SHARED)
def test_compiles_within_its_means(architecture, tmp_path):
    cubin = tmp_path / "kernel.cubin"
    run = subprocess.run(
        ["nvcc", "-std=c++17", "-O3", "-Xptxas", "-v", "-cubin", f"-arch=sm_{architecture}", "-o", cubin, KERNEL],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert set(re.findall(r"(\d+) bytes spill", run.stderr)) == {"0"}
    assert set(re.findall(r"(\d+) bytes stack", run.stderr)) == {"0"}
    stage = 2 * 32 * 128 * 2 + 32 * 4  # two operands of 32 tokens, and the tokens' weights
    assert 4 * stage <= SHARED[architecture]
    sass = subprocess.run([TOOLS / "nvdisasm", "-c", cubin], capture_output=True, text=True, check=True).stdout
    for instruction in ("HMMA.16816.F32.BF16", "HMMA.16816.F32 ", "LDGSTS.E.BYPASS.128", "LDSM.16.MT88.4"):
        assert instruction in sass, instruction


def test_tokens_are_shared_where_tiles_are_few():
    assert native_cuda.splits_of(36, 16384, 132) == 8  # d = 1024 on 132 processors: 36 tiles
    assert native_cuda.splits_of(528, 16384, 132) == 1  # d = 4096: four waves
    assert native_cuda.splits_of(1, 100, 132) == 1
    assert native_cuda.splits_of(0, 0, 132) == 1


def test_says_why_it_cannot_run():
    assert "needs CUDA tensors" in native_cuda.refuses(torch.ones(2, 2))
