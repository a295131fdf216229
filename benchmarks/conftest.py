"""What every saved run records; and that it is saved from a clean tree only.

A saved JSON names a commit. If tracked files are modified, its numbers are those of no commit, so
pytest refuses ``--benchmark-json`` and its like before it measures anything. ``--allow-dirty``
saves all the same; the JSON's ``commit_info`` then says ``"dirty": true``. Untracked files do not
count.
"""

import os
from pathlib import Path

import pytest
import torch
from clean_tree import why_not_clean

from curvedit import _C

ROOT = Path(__file__).parents[1]


def pytest_addoption(parser):
    parser.addoption(
        "--allow-dirty", action="store_true", help="save benchmarks of uncommitted changes"
    )


def pytest_configure(config):
    # here, so that the tests run where pytest-benchmark is not installed
    category = "pytest_benchmark.logger.PytestBenchmarkWarning"
    config.addinivalue_line("filterwarnings", f"default::{category}")
    options = config.option
    saves = options.benchmark_json or options.benchmark_save or options.benchmark_autosave
    if saves and not options.allow_dirty:
        why = why_not_clean(ROOT)
        if why:
            raise pytest.UsageError(
                f"a saved benchmark names a commit, but {why}; commit first, or pass --allow-dirty"
            )


def pytest_benchmark_update_machine_info(machine_info):
    machine_info["torch"] = torch.__version__
    machine_info["instruction_set"] = _C.instruction_sets("syrk_accumulate")[0]
    machine_info["gpu"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    machine_info["cores"] = os.cpu_count()
    machine_info.pop("node", None)
