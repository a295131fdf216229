"""Times rivals in turn within one run, measures their memory, and records both."""

import contextlib
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
    """Save the medians, and every rival's time over our own, beside the benchmark's own rounds."""
    benchmark.extra_info["median_ms"] = {
        name: round(1e3 * value, 4) for name, value in seconds.items()
    }
    benchmark.extra_info["over_own"] = {
        name: round(value / seconds[own], 3) for name, value in seconds.items()
    }
    benchmark.extra_info.update(facts)


@contextlib.contextmanager
def torch_threads(count):
    """Limit torch to a number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def extra_memory(run):
    """The most bytes of torch's CPU memory that ``run`` holds at once, its result included."""
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
    """The most bytes by which a fresh process grows while it runs the code ``run``.

    Unlike :func:`extra_memory` it sees what compiled code allocates. Linux only.
    """
    code = _RESIDENT.format(setup=setup, run=run)
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return int(done.stdout)
