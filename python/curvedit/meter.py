"""Seconds and peak memory of a block of code, and how far a long loop has come."""

import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

_EVERY = 30.0  # seconds between two lines off a terminal


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


class Progress:
    """How far a loop has come; :func:`progress` makes one."""

    def __init__(self, total: int | None, unit: str, what: str, *, shown: bool) -> None:
        """Start at zero; ``total`` None if it is not known."""
        self._total, self._unit, self._what = total, unit, what
        self._done, self._note = 0, ""
        self._lines = shown and not sys.stderr.isatty()
        self._started = self._said = time.monotonic()
        self._bar = tqdm(
            total=total,
            unit=unit,
            unit_scale=total is None or total >= 10_000,
            desc=what,
            disable=self._lines or not shown,
        )

    @property
    def total(self) -> int | None:
        """The number of units to come, or None."""
        return self._total

    def expect(self, total: int) -> None:
        """Say how many units there will be, once that is known."""
        self._total = self._bar.total = total

    def update(self, count: int = 1) -> None:
        """Say that ``count`` more units are done."""
        self._done += count
        self._bar.update(count)
        if self._lines and time.monotonic() - self._said >= _EVERY:
            self._say()

    def note(self, text: str) -> None:
        """Show a few words beside the figures from now on, such as the peak memory."""
        self._note = text
        if not self._bar.disable:
            self._bar.set_postfix_str(text, refresh=False)

    def close(self) -> None:
        """End the bar, or the lines with a last one if there were any."""
        self._bar.close()
        if self._said > self._started:
            self._say()

    def _say(self) -> None:
        self._said = now = time.monotonic()
        rate = self._done / max(now - self._started, 1e-9)
        parts = [f"{self._what}: {self._done:,} {self._unit}", f"{rate:,.3g} {self._unit}/s"]
        if self._total:
            parts[0] = f"{self._what}: {self._done:,} of {self._total:,} {self._unit}"
            parts[0] += f" ({self._done / self._total:.0%})"
            left = max(0, self._total - self._done) / rate if rate else float("inf")
            parts.append(f"{tqdm.format_interval(left)} left" if rate else "time left unknown")
        sys.stderr.write(", ".join([*parts, *filter(None, [self._note])]) + "\n")
        sys.stderr.flush()


@contextmanager
def progress(total: int | None, *, unit: str, what: str, shown: bool) -> Iterator[Progress]:
    """Show how far the block has come: a bar on a terminal, elsewhere a line every 30 s.

    Args:
        total: Number of units, or None if it is not known.
        unit: What is counted, such as "tok".
        what: What the block does, the start of the bar or line.
        shown: False shows nothing.

    Yields:
        What to tell of the units done: ``update(count)`` and ``note(text)``.
    """
    found = Progress(total, unit, what, shown=shown)
    try:
        yield found
    finally:
        found.close()
