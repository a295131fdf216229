"""Every Triton variant compiles for every supported GPU within its registers and shared memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SHARED = {80: 166912, 86: 101376, 89: 101376, 90: 232448, 120: 101376}  # bytes per block
WORKER = Path(__file__).with_name("aot_worker.py")


@pytest.fixture(scope="module", params=SHARED, ids="sm_{}".format)
def compiled(request, tmp_path_factory):
    """An architecture, and the resources of each variant by name."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    run = subprocess.run(
        [sys.executable, WORKER, str(request.param)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return request.param, json.loads(run.stdout)


def test_nothing_spills(compiled):
    _, variants = compiled
    assert len(variants) == 43
    assert {name: used for name, used in variants.items() if used["stack"] or used["spills"]} == {}


def test_shared_memory_fits(compiled):
    architecture, variants = compiled
    assert {
        name: used for name, used in variants.items() if used["shared"] > SHARED[architecture]
    } == {}


def test_tensor_cores_are_used(compiled):
    _, variants = compiled
    on_tensor_cores = [name for name in variants if "fp32" not in name and "parts" not in name]
    assert all(variants[name]["tensor_core"] > 0 for name in on_tensor_cores)
