"""The kernel of Hopper GPUs without a GPU: run on a CPU, lane by lane, and compiled by nvcc."""

import contextlib
import itertools
import json
import re
import shutil

import on_host
import pytest

SOURCE, HEADER = "syrk_accumulate_wgmma_on_host.cpp", "syrk_accumulate_wgmma.hpp"
CASES = [  # tokens dim dtype clusters groups poisoned split
    "1 8 bf16 1 1 0 0",
    "64 128 bf16 1 1 0 0",
    "257 136 fp16 1 1 0 0",
    "600 264 bf16 1 1 0 0",  # the ring wraps around
    "2000 136 bf16 3 1 0 0",  # three clusters share one macro tile: a set for each
    "1700 520 bf16 5 1 0 0",  # five compute one each, then share the sixth
    "300 264 bf16 2 4 10 0",
    "400 128 fp16 1 5 30 0",  # the last tokens, and what lies past the columns, are NaN
    "97 120 bf16 1 2 7 0",
    "500 264 bf16 2 1 0 1",
    "300 136 fp16 2 3 9 1",
    "9000 264 bf16 5 1 0 0",  # five share three: one set, and two clusters share what it leaves
    "0 40 bf16 2 1 0 0",
    "16384 8 bf16 1 1 0 0",  # as many as one flush takes
    "16500 8 fp16 1 1 0 0",  # past the flush
]
COPIES = ({}, {"EARLY_COPIES": "1"})  # bulk copies arrive as late as possible, or at once


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    return on_host.build(tmp_path_factory.mktemp("host"), SOURCE)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("copies", COPIES, ids=["late", "early"])
def test_is_exact_and_stays_inside(program, case, copies):
    run = on_host.run(program, case, **copies)
    assert run.returncode == 0, run.stdout + run.stderr
    assert json.loads(run.stdout) == {"wrong": 0, "touched": 0}


def test_sanitizers_find_nothing(tmp_path):
    program = on_host.build(tmp_path, SOURCE, *on_host.SANITIZE)
    for case in (CASES[2], CASES[5]):
        run = on_host.run(program, case)
        assert run.returncode == 0, run.stderr


PLAN = "syrk_accumulate_plan.hpp"
FAULTS = {
    "products not waited for": (
        HEADER,
        "wait_for_products<1>();",
        "wait_for_products<2>();",
    ),
    "a stage not waited for": (HEADER, "wait(ring.full + 8 * ring.stage, ring.turn);", ""),
    "a stage filled too early": (HEADER, "ring.turn ^ 1);", "ring.turn);"),
    "a stage handed back too early": (
        HEADER,
        "if (before >= 0 && lane < 2) arrive_at(ring.empty + 8 * before, lane);",
        "if (before >= 0 && lane < 2) arrive_at(ring.empty + 8 * ring.stage, lane);",
    ),
    "the other block not waited for": (
        HEADER,
        "init_barrier(ring.empty + 8 * stage, 2 * kConsumers / 32);",
        "init_barrier(ring.empty + 8 * stage, kConsumers / 32);",
    ),
    "tokens of the next group": (HEADER, "step.size() < kDepth)", "step.size() < 0)"),
    "the second panel": (
        HEADER,
        "matrix_at(b + token * 128, kPanel, 1024)",
        "matrix_at(b + token * 128, kPanel / 2, 1024)",
    ),
    "the next eight rows": (
        HEADER,
        "matrix_at(a + token * 128, kPanel, 1024)",
        "matrix_at(a + token * 128, kPanel, 2048)",
    ),
    "the other block's columns": (HEADER, "(2 * rank + panel) * kPanel", "panel * kPanel"),
    "the other block's rows": (HEADER, "kLeft + 2 * rank * kPanel)", "kLeft)"),
    "rows of the other warpgroup": (
        HEADER,
        "+ thread_index() / 128 * kPanel;",
        "+ (1 - thread_index() / 128) * kPanel;",
    ),
    "a tile above the diagonal": (HEADER, "row > column ? 2 : 1", "2"),
    "the same product twice": (HEADER, "step.product == 1 ? low", "step.product == 2 ? low"),
    "two pieces in one place": (PLAN, "in_sets + sharer + unit);", "in_sets + unit);"),
    "a piece left out": (PLAN, "set < plan.sets; ++set", "set + 1 < plan.sets; ++set"),
    "a sharer left out": (
        PLAN,
        "sharer < plan.clusters - in_sets && rest_of",
        "sharer + 1 < plan.clusters - in_sets && rest_of",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_seen(tmp_path, fault):
    program = on_host.build_with_fault(tmp_path, SOURCE, *FAULTS[fault])
    with contextlib.suppress(TimeoutError):  # a barrier that no thread passes
        cases = itertools.product(CASES[1:12], COPIES)
        assert any(
            on_host.run(program, case, seconds=6, **copies).returncode for case, copies in cases
        )


def test_every_step_comes_once(program):
    run = on_host.run(program, "plan")
    assert run.returncode == 0, run.stdout


@pytest.fixture(scope="module")
def scale_tokens(tmp_path_factory):
    return on_host.build(tmp_path_factory.mktemp("scale"), "scale_tokens_on_host.cpp")


@pytest.mark.parametrize("case", ["1 8 1 1", "37 136 1 0", "50 120 1 1", "41 13 0 1", "9 1 0 0"])
def test_tokens_are_scaled_and_rounded(scale_tokens, case):
    run = on_host.run(scale_tokens, case)
    assert run.returncode == 0, run.stdout


def test_shared_memory_fits(program):
    """What the launch asks for; that no more is used is checked by running it."""
    assert 0 < int(on_host.run(program, "shared").stdout) <= on_host.SHARED["90a"]


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
@pytest.mark.parametrize("architecture", on_host.SHARED)
def test_compiles_without_spills_or_waits(architecture, tmp_path):
    said, code = on_host.compiled(tmp_path, architecture, "syrk_accumulate_wgmma.cu")
    assert on_host.wasted(said) == {0}
    assert "Potential Performance Loss" not in said  # such as products that wait for each other
    for instruction in (
        "HGMMA.64x256x16.F32.BF16",
        "HGMMA.64x256x16.F32 ",
        "UTMALDG.2D.MULTICAST",
        "USETMAXREG.TRY_ALLOC",
        "REDG.E.ADD.F32x2",
    ):
        assert (instruction in code) == (architecture == "90a"), instruction
    # Four products follow each other, and only the last is waited for.
    products = re.findall(r"HGMMA[^;]*(gsb0)?|(WARPGROUP.DEPBAR)", code)
    if architecture == "90a":
        assert "".join("w" if wait else "p" for _, wait in products).startswith("ppppw")
