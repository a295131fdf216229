"""Puts the machine and the versions that matter into every saved run."""

import os

import torch

from curvedit import _C


def pytest_benchmark_update_machine_info(machine_info):
    machine_info["torch"] = torch.__version__
    machine_info["instruction_set"] = _C.instruction_sets("syrk_accumulate")[0]
    machine_info["gpu"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    machine_info["cores"] = os.cpu_count()
    machine_info.pop("node", None)
