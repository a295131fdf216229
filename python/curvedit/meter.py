"""Seconds and peak memory of a stage."""

import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass
class Meter:
    """What a stage took; filled when its block ends."""

    seconds: float = 0.0
    peak_bytes: int = 0  # of the CUDA device, or of the whole process on a CPU


def peak_memory(device: torch.device) -> int:
    """Peak bytes so far: allocated on a CUDA device, or resident in this process."""
    if _has_gauge(device):
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would answer with the parent's peak where that is larger
        found = re.search(r"VmHWM:\s*(\d+) kB", status.read_text())
        return int(found[1]) * 1024 if found else 0
    if sys.platform == "win32":
        return 0  # not known
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


@contextmanager
def metered(device: torch.device) -> Iterator[Meter]:
    """Measure the block; on CUDA the peak is the block's own."""
    meter = Meter()
    if _has_gauge(device):
        torch.cuda.reset_peak_memory_stats(device)
    start = time.perf_counter()
    try:
        yield meter
    finally:
        meter.seconds = time.perf_counter() - start
        meter.peak_bytes = peak_memory(device)


def _has_gauge(device: torch.device) -> bool:
    """Whether torch counts the device's memory: fake tensors name GPUs that are not there."""
    return device.type == "cuda" and torch.cuda.is_available()
