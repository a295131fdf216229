"""Wall-clock seconds and peak memory of a block of code."""

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
    """The cost of a block; filled in when the block ends."""

    seconds: float = 0.0
    peak_bytes: int = 0  # allocated on the CUDA device; on a CPU, resident in the whole process


def peak_memory(device: torch.device) -> int:
    """Return the peak so far, in bytes: allocated on a CUDA device, or resident in this process."""
    if _has_gauge(device):
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():  # getrusage reports the parent's peak if that was larger
        found = re.search(r"VmHWM:\s*(\d+) kB", status.read_text())
        return int(found[1]) * 1024 if found else 0
    if sys.platform == "win32":
        return 0  # unknown
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


@contextmanager
def metered(device: torch.device) -> Iterator[Meter]:
    """Measure the block. On CUDA the peak is the block's own, on a CPU the process's."""
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
    """Whether torch counts this device's memory; fake tensors may name a GPU that is absent."""
    return device.type == "cuda" and torch.cuda.is_available()
