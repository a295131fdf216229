"""The kernel of Hopper GPUs without a GPU: run on a CPU, lane by lane.

test_syrk_accumulate_cuda.py checks what it compiles to, since both kernels are in one source.
"""

import contextlib
import itertools
import json

import on_host
import pytest

SOURCE, HEADER = "syrk_accumulate_wgmma_on_host.cpp", "syrk_accumulate_wgmma.hpp"
CASES = [  # tokens dim dtype splits groups poisoned
    "1 8 bf16 1 1 0",
    "64 128 bf16 1 1 0",
    "257 136 fp16 1 1 0",
    "600 264 bf16 1 1 0",  # the ring wraps around
    "500 136 bf16 3 1 0",
    "300 264 bf16 2 4 10",
    "400 128 fp16 1 5 30",  # the last tokens, and what lies past the columns, are NaN
    "97 120 bf16 1 2 7",
    "0 40 bf16 2 1 0",
    "16384 8 bf16 1 1 0",  # as many as one flush takes
    "16500 8 fp16 1 1 0",  # past the flush
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


FAULTS = {
    "products not waited for": (
        "wait_for_products<1>();",
        "wait_for_products<2>();",
    ),
    "a stage not waited for": ("wait(full + 8 * stage, turn & 1);", "(void)turn;"),
    "a stage filled too early": ("(turn & 1) ^ 1", "turn & 1"),
    "a stage handed back too early": (
        "arrive(empty + 8 * static_cast<unsigned>((k - 1) % kStages))",
        "arrive(empty + 8 * stage)",
    ),
    "tokens of the next group": ("if (tokens < kDepth) clear_tail", "if (tokens < 0) clear_tail"),
    "the second panel": (
        "matrix_at(b + row * 128, kPanel, 1024)",
        "matrix_at(b + row * 128, kPanel / 2, 1024)",
    ),
    "the next eight rows": (
        "matrix_at(a + row * 128, kPanel, 1024)",
        "matrix_at(a + row * 128, kPanel, 2048)",
    ),
    "one operand for all tiles": ("(panel < 2 ? row : column)", "row"),
    "rows of the other warpgroup": (
        "thread_index() / 128 * kPanel;",
        "(1 - thread_index() / 128) * kPanel;",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_seen(tmp_path, fault):
    program = on_host.build_with_fault(tmp_path, SOURCE, HEADER, *FAULTS[fault])
    with contextlib.suppress(TimeoutError):  # a barrier that no thread passes
        cases = itertools.product(CASES[1:7], COPIES)
        assert any(
            on_host.run(program, case, seconds=6, **copies).returncode for case, copies in cases
        )


def test_shared_memory_fits(program):
    """What the launch asks for; that no more is used is checked by running it."""
    assert 0 < int(on_host.run(program, "shared").stdout) <= on_host.SHARED["90a"]
