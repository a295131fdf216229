"""Timing rivals in turn within one run, the memory they need, and what of it is saved."""

import subprocess
import sys

import torch

from curvedit import bench


def interleaved(candidates, rounds, pause=0.0, calls=1):
    """Median seconds per call of each named candidate."""
    runs, device = list(candidates.values()), torch.device("cpu")
    seconds = bench.interleaved(runs, rounds=rounds, pause=pause, calls=calls, device=device)
    return dict(zip(candidates, seconds, strict=True))


def record(benchmark, seconds, own, **facts):
    """Store the medians, and every rival's time over our own, beside the benchmark's own rounds."""
    benchmark.extra_info["median_ms"] = {
        name: round(1e3 * value, 4) for name, value in seconds.items()
    }
    benchmark.extra_info["over_own"] = {
        name: round(value / seconds[own], 3) for name, value in seconds.items()
    }
    benchmark.extra_info.update(facts)


def extra_memory(run):
    """Most bytes that ``run`` holds at once, its result included, of what torch allocates on a CPU."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        result = run()
    held = most = 0
    events = (
        event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"
    )
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    del result
    return most


_RESIDENT = """
import re
from pathlib import Path
{setup}
def resident(what):
    return 1024 * int(re.search(what + r":\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
before = resident("VmRSS")
{run}
print(resident("VmHWM") - before)
"""


def extra_resident(setup, run):
    """Bytes by which a fresh process grows at most while the code ``run`` runs: for compiled code. Linux only."""
    code = _RESIDENT.format(setup=setup, run=run)
    return int(
        subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True
        ).stdout
    )
