"""Throughput of kernels on this machine: candidates are checked, then timed in turn.

Rates count the work that the result needs, whoever computes it, so a rival that computes more
shows a lower rate. They are set against ceilings that are measured in the same run.
"""

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

_TOLERANCE = 1e-4
_PAUSE = 0.1  # seconds, on a CPU


@dataclass(frozen=True)
class Candidate:
    """One way to compute a case."""

    name: str
    dtype: torch.dtype  # of its input
    run: Callable[[], Any]
    error: Callable[[], float]  # runs it once into zeroed memory; the largest relative error seen


@dataclass(frozen=True)
class Case:
    """A result, and the candidates that compute it."""

    op: str
    shape: str
    work: float  # operations that the result takes
    size: Callable[[torch.dtype], float]  # bytes to read and write, by the input's dtype
    candidates: Sequence[Candidate]


@dataclass(frozen=True)
class Row:
    """The measurement of one candidate in one case."""

    op: str
    shape: str
    dtype: str
    candidate: str
    milliseconds: float
    tflops: float  # of the work that the result takes
    gigabytes_per_second: float
    roofline: float  # share of the rate that the measured ceilings allow
    error: float


@dataclass(frozen=True)
class Ceilings:
    """The rates that this device reaches, measured in the same run."""

    copy_gigabytes_per_second: float
    tflops: dict[str, float]  # of a large square product, by input dtype


def measure(
    cases: Iterable[Case], *, device: torch.device, rounds: int
) -> tuple[Ceilings, list[Row]]:
    """Check and time every case.

    Args:
        cases: The cases. An iterator that makes them as it goes keeps only one in memory.
        device: Where the cases run.
        rounds: Timed turns of each candidate, of which the median is taken.

    Returns:
        The device's ceilings, and one row per candidate.

    Raises:
        RuntimeError: a candidate's numbers are wrong. Its case has not been timed.
    """
    ceilings = _ceilings(device)
    return ceilings, [row for case in cases for row in _rows(case, device, rounds, ceilings)]


def repeat(case: Case, *, device: torch.device, times: int) -> float:
    """Run a case's first candidate a number of times, for a profiler to attach to.

    Args:
        case: The case; rivals are ignored.
        device: Where it runs.
        times: Timed calls.

    Returns:
        Milliseconds per call.
    """
    first = case.candidates[0]
    with _range(f"{case.op} {first.name} {case.shape}", device):
        return 1e3 * _timed(first.run, device, times)


def table(rows: Sequence[Row]) -> str:
    """One line per row, under a line for each case."""
    lines = [f"{'candidate':32}{'input':10}{'ms':>10}{'TFLOP/s':>9}{'GB/s':>9}{'roofline':>10}"]
    shown = ("", "")
    for row in rows:
        if (row.op, row.shape) != shown:
            shown = (row.op, row.shape)
            lines.append(f"{row.op}, {row.shape}")
        rates = f"{row.tflops:9.3g}{row.gigabytes_per_second:9.3g}{row.roofline:10.0%}"
        lines.append(f"  {row.candidate:30}{row.dtype:10}{row.milliseconds:10.4g}{rates}")
    return "\n".join(lines)


def interleaved(
    runs: Sequence[Callable[[], Any]],
    *,
    rounds: int,
    pause: float = 0.0,
    calls: int = 1,
    device: torch.device,
) -> list[float]:
    """Time several functions in turn, so that noise on the machine affects all of them alike.

    Args:
        runs: The functions.
        rounds: Turns of each.
        pause: Seconds to wait before each turn, on a CPU. The workers of OpenBLAS and OpenMP spin
            for a while after a call and would take a core from the next function. As they sleep
            after a pause, an untimed call wakes them up first.
        calls: Timed calls per turn.
        device: Where they run.

    Returns:
        Median seconds per call of each function.
    """
    times: list[list[float]] = [[] for _ in runs]
    for run in runs:
        run()
    for _ in range(rounds):
        for taken, run in zip(times, runs, strict=True):
            if pause:
                time.sleep(pause)
                run()
            taken.append(_timed(run, device, calls))
    return [statistics.median(taken) for taken in times]


def _rows(case: Case, device: torch.device, rounds: int, ceilings: Ceilings) -> Iterator[Row]:
    errors = [candidate.error() for candidate in case.candidates]
    for candidate, error in zip(case.candidates, errors, strict=True):
        if not error <= _TOLERANCE:
            raise RuntimeError(
                f"{case.op}, {candidate.name}, {candidate.dtype}, {case.shape}: "
                f"wrong numbers, expected an error of at most {_TOLERANCE:g}, got {error:.1e}"
            )
    pause = _PAUSE if device.type == "cpu" else 0.0
    medians = interleaved(
        [each.run for each in case.candidates], rounds=rounds, pause=pause, device=device
    )
    for candidate, seconds, error in zip(case.candidates, medians, errors, strict=True):
        kind = str(candidate.dtype).removeprefix("torch.")
        size = case.size(candidate.dtype)
        least = max(
            case.work / ceilings.tflops[kind] / 1e12,
            size / ceilings.copy_gigabytes_per_second / 1e9,
        )
        yield Row(
            case.op,
            case.shape,
            kind,
            candidate.name,
            _significant(1e3 * seconds),
            _significant(case.work / seconds / 1e12),
            _significant(size / seconds / 1e9),
            _significant(least / seconds),
            error,
        )


def _ceilings(device: torch.device) -> Ceilings:
    size, side = (1 << 30, 8192) if device.type == "cuda" else (1 << 28, 2048)
    source = torch.zeros(size // 4, device=device)
    target = torch.empty_like(source)
    rate = 2 * size / _best(partial(target.copy_, source), device) / 1e9
    rates: dict[str, float] = {}
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.randn(side, side, device=device).to(dtype)
        seconds = _best(partial(torch.mm, a, a, out=torch.empty_like(a)), device)
        rates[str(dtype).removeprefix("torch.")] = _significant(2.0 * side**3 / seconds / 1e12)
    rates["bfloat16"] = max(
        rates.values()
    )  # where its products are slower, it can be converted first
    return Ceilings(_significant(rate), rates)


def _best(run: Callable[[], Any], device: torch.device) -> float:
    return min(_timed(run, device, 1) for _ in range(7))


def _timed(run: Callable[[], Any], device: torch.device, times: int) -> float:
    """Seconds per call."""
    if device.type == "cuda":
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        run()
        torch.cuda.synchronize(device)
        start.record()
        for _ in range(times):
            run()
        stop.record()
        torch.cuda.synchronize(device)
        return float(start.elapsed_time(stop)) / 1e3 / times
    began = time.perf_counter()
    for _ in range(times):
        run()
    return (time.perf_counter() - began) / times


def _significant(value: float) -> float:
    """Rounded to four significant digits, which keeps the rates of a slow machine."""
    return float(f"{value:.4g}")


@contextmanager
def _range(name: str, device: torch.device) -> Iterator[None]:
    """An NVTX range on a GPU."""
    if device.type != "cuda":
        yield
        return
    with torch.cuda.nvtx.range(name):
        yield
