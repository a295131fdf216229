"""Seconds and peak memory of a block of code, and how far a long loop has come."""

import itertools
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

_EVERY = 10.0  # seconds between two lines off a terminal
_CGROUP = Path("/sys/fs/cgroup")  # version 2


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


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be allocated on a CUDA device, or in this process; None if unknown."""
    if _has_gauge(device):
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held
    if device.type != "cpu":
        return None
    try:
        found = re.search(r"MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text())
    except OSError:
        return None
    if found is None:
        return None
    available, limit = int(found[1]) * 1024, _container_room()
    return available if limit is None else min(available, limit)


def total_memory(device: torch.device) -> int:
    """Bytes of a CUDA device's memory; 0 for other devices and if there is no such device here."""
    return torch.cuda.get_device_properties(device).total_memory if _has_gauge(device) else 0


def _container_room() -> int | None:
    """Bytes below the limit of this container, file caches not counted; None without a limit."""
    try:
        limit, used = (
            int((_CGROUP / name).read_text()) for name in ("memory.max", "memory.current")
        )
        cached = re.search(r"^inactive_file (\d+)$", (_CGROUP / "memory.stat").read_text(), re.M)
    except (OSError, ValueError):  # "max"
        return None
    return max(0, limit - used + (int(cached[1]) if cached else 0))


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


class _Lines:
    """When the next line is due, for all loops of the process together.

    Short loops that follow each other are long work, and a loop inside another speaks for both.
    """

    def __init__(self) -> None:
        self.shown: list[Progress] = []  # outermost first
        self._said = self._heard = -float("inf")

    def open(self, loop: "Progress") -> None:
        """Count a loop among those shown; the clock runs on if another has just ended."""
        now = time.monotonic()
        if not self.shown and now - self._heard >= _EVERY:
            self._said = now
        self._heard = now
        self.shown.append(loop)

    def close(self, loop: "Progress") -> None:
        """Forget a loop that has ended."""
        self._heard = time.monotonic()
        self.shown.remove(loop)

    def write(self, loop: "Progress", *, at_once: bool = False) -> bool:
        """Write a line for a loop if one is due, or at once; return whether there was one."""
        self._heard = now = time.monotonic()
        if loop.is_bar:  # it moves by itself
            self._said = now
            return False
        since = self._said if loop.counts else max(self._said, loop.started)
        if not at_once and now - since < _EVERY:
            return False
        self._said = now
        outer = itertools.takewhile(lambda each: each is not loop, tuple(self.shown))
        before = [each.state for each in outer if each.counts]
        tqdm.write(" > ".join([*before, loop.line(now)]), file=sys.stderr)
        sys.stderr.flush()
        return True


_lines = _Lines()


class Progress:
    """How far a loop has come; :func:`progress` makes one."""

    def __init__(self, total: int | None, unit: str, what: str, *, shown: bool) -> None:
        """Start at zero; ``total`` None if it is not known, ``unit`` "" if there is none."""
        self._total, self._unit, self._what = total, unit, what
        self._done, self._note = 0, ""
        self._told: int | None = None  # units done at the last line
        self.started = time.monotonic()
        self._shown = shown
        self.counts = bool(unit)
        self.is_bar = shown and self.counts and sys.stderr.isatty()
        self._bar = tqdm(
            total=total,
            unit=unit,
            unit_scale=total is None or total >= 10_000,
            desc=what,
            disable=not self.is_bar,
        )
        if shown:
            _lines.open(self)

    @property
    def total(self) -> int | None:
        """The number of units to come, or None."""
        return self._total

    @property
    def state(self) -> str:
        """What is done, such as "fit: 300 of 1,000 tok (30%)", or since when it goes on."""
        if not self.counts:
            return f"{self._what}: {time.monotonic() - self.started:.0f} s"
        if not self._total:
            return f"{self._what}: {self._done:,} {self._unit}"
        share = self._done / self._total
        return f"{self._what}: {self._done:,} of {self._total:,} {self._unit} ({share:.0%})"

    def line(self, now: float) -> str:
        """The state, the rate, the time left and the note."""
        parts = [self.state]
        rate = self._done / max(now - self.started, 1e-9)
        if rate:
            parts.append(f"{rate:,.3g} {self._unit}/s")
        if rate and self._total:
            left = max(0, self._total - self._done) / rate
            parts.append(f"{tqdm.format_interval(left)} left")
        return ", ".join([*parts, *filter(None, [self._note])])

    def expect(self, total: int) -> None:
        """Say how many units there will be, once that is known."""
        self._total = self._bar.total = total

    def update(self, count: int = 1) -> None:
        """Say that ``count`` more units are done."""
        self._done += count
        self._bar.update(count)
        self.beat()

    def beat(self) -> None:
        """Say that the work goes on, within a unit."""
        if self._shown and _lines.write(self):
            self._told = self._done

    def note(self, text: str) -> None:
        """Show a few words beside the figures from now on, such as the peak memory."""
        self._note = text
        if not self._bar.disable:
            self._bar.set_postfix_str(text, refresh=False)

    def close(self) -> None:
        """End the bar, or the lines with a last one if any and there is more to tell."""
        self._bar.close()
        if self._shown:
            if self._told is not None and self._told < self._done:
                _lines.write(self, at_once=True)
            _lines.close(self)


def beat() -> None:
    """Say that the work goes on, wherever it is; what may take seconds calls this now and then.

    The innermost loop or span that is shown writes a line if one is due.
    """
    for innermost in _lines.shown[-1:]:
        innermost.beat()


@contextmanager
def span(what: str, *, shown: bool) -> Iterator[None]:
    """Let every :func:`beat` in the block be heard: a line of the time taken, every 10 s.

    Loops inside speak for themselves, and on a terminal a bar that moves keeps the lines away.
    """
    with progress(None, unit="", what=what, shown=shown):
        yield


@contextmanager
def progress(total: int | None, *, unit: str, what: str, shown: bool) -> Iterator[Progress]:
    """Show how far the block has come: a bar on a terminal, elsewhere a line every 10 s.

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
