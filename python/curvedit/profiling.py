"""Kernel throughput on this machine: every backend beside its rivals, checked, then timed in turn.

A row's work is what the result needs, ``tokens d (d + 1)`` operations and one pass over input and
packed output, whoever computes it: a rival that computes the full square shows half the rate.
"""

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from curvedit import ops
from curvedit.kernels import tiles

WIDTHS = {  # hidden and intermediate size; experts
    "olmo2-1b": ((2048, 8192), 0),
    "olmo2-7b": ((4096, 11008), 0),
    "llama-3.1-8b": ((4096, 14336), 0),
    "qwen3-14b": ((5120, 17408), 0),
    "qwen3-30b-a3b": ((768, 2048), 128),
}
_TOLERANCE = 1e-4  # of an element, relative to the roots of its two diagonal elements
_SAMPLE = 256  # elements checked
_PAUSE = 0.1  # seconds, on a CPU


@dataclass(frozen=True)
class Row:
    """One candidate at one size."""

    d: int
    tokens: int
    groups: int  # experts, each with tokens of its own; 0 for none
    dtype: str
    candidate: str
    milliseconds: float
    tflops: float  # of the work the result needs
    gigabytes_per_second: float
    roofline: float  # share of what the measured ceilings allow
    error: float  # largest, of the sampled elements


@dataclass(frozen=True)
class Ceilings:
    """What this device reaches, measured in the same run."""

    copy_gigabytes_per_second: float
    tflops: dict[str, float]  # of a large square product, by input dtype


def measure(
    widths: Iterable[tuple[int, int]], *, tokens: int, device: torch.device, rounds: int
) -> tuple[Ceilings, list[Row]]:
    """Time ``syrk_accumulate`` at every (width, experts), each backend beside its rivals.

    Args:
        widths: Pairs of d and the number of experts, 0 for none.
        tokens: Rows of the input.
        device: Where.
        rounds: Turns of each candidate; the median counts.

    Raises:
        RuntimeError: a candidate's numbers are wrong; nothing is timed then.
    """
    ceilings = _ceilings(device)
    rows = [row for d, groups in widths for row in _rows(d, groups, tokens, device, rounds, ceilings)]
    return ceilings, rows


def repeat(backend: str, d: int, *, tokens: int, dtype: torch.dtype, device: torch.device, times: int) -> float:
    """Run one backend a number of times, for a profiler to attach to; milliseconds per call.

    Raises:
        RuntimeError: the backend cannot run here.
    """
    x = torch.randn(tokens, d, device=device).to(dtype)
    out = tiles.zeros(d, device=device)
    with _range(f"syrk_accumulate {backend} d={d}", device):
        return 1e3 * _timed(lambda: ops.call("syrk_accumulate", out, x, backend=backend), device, times)


def table(rows: Sequence[Row]) -> str:
    """One line per row."""
    lines = [
        f"{'d':>6} {'experts':>7}  {'candidate':28}{'input':10}{'ms':>10}{'TFLOP/s':>9}{'GB/s':>9}{'roofline':>10}"
    ]
    for row in rows:
        measured = f"{row.milliseconds:10.3f}{row.tflops:9.3f}{row.gigabytes_per_second:9.1f}{row.roofline:10.0%}"
        lines.append(f"{row.d:6} {row.groups or '':>7}  {row.candidate:28}{row.dtype:10}{measured}")
    return "\n".join(lines)


def interleaved(
    runs: Sequence[Callable[[], Any]], *, rounds: int, pause: float = 0.0, calls: int = 1, device: torch.device
) -> list[float]:
    """Median seconds per call of each, timed in turn, so that a noisy machine is equally unfair to all.

    With a pause, a turn waits, calls once untimed and then ``calls`` times timed: OpenBLAS's and
    OpenMP's workers spin for a while after a call and would take a core from the next candidate,
    and after a pause they have to be woken up again.
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


@dataclass(frozen=True)
class _Candidate:
    name: str
    dtype: torch.dtype
    run: Callable[[], Any]
    at: Callable[[int, Tensor, Tensor], Tensor]  # (group, rows, columns) to the elements of its result
    clear: Callable[[], Any]


def _rows(d: int, groups: int, tokens: int, device: torch.device, rounds: int, ceilings: Ceilings) -> Iterator[Row]:
    inputs = {torch.float32: torch.randn(tokens, d, device=device)}
    inputs[torch.bfloat16] = inputs[torch.float32].bfloat16()
    offsets = None
    if groups:  # uneven, as routers are
        cuts = torch.randint(tokens + 1, (groups - 1,), generator=torch.Generator().manual_seed(0)).sort().values
        offsets = torch.cat([torch.tensor([0]), cuts, torch.tensor([tokens])]).to(device)
    candidates = [*_own(d, inputs, offsets), *(_rivals(d, inputs) if offsets is None else _loops(d, inputs, offsets))]
    errors = [_error(candidate, inputs[candidate.dtype], offsets) for candidate in candidates]
    for candidate, error in zip(candidates, errors, strict=True):
        if not error <= _TOLERANCE:
            raise RuntimeError(f"{candidate.name}, {candidate.dtype}, d = {d}: wrong numbers, error {error:.1e}")
    pause = _PAUSE if device.type == "cpu" else 0.0
    medians = interleaved([candidate.run for candidate in candidates], rounds=rounds, pause=pause, device=device)
    for candidate, seconds, error in zip(candidates, medians, errors, strict=True):
        kind = str(candidate.dtype).removeprefix("torch.")
        work = tokens * d * (d + 1.0)
        size = tokens * d * candidate.dtype.itemsize + 2.0 * 4 * max(1, groups) * d * (d + 1) / 2
        least = max(work / ceilings.tflops[kind] / 1e12, size / ceilings.copy_gigabytes_per_second / 1e9)
        yield Row(
            d,
            tokens,
            groups,
            kind,
            candidate.name,
            _significant(1e3 * seconds),
            _significant(work / seconds / 1e12),
            _significant(size / seconds / 1e9),
            _significant(least / seconds),
            error,
        )


def _own(d: int, inputs: dict[torch.dtype, Tensor], offsets: Tensor | None) -> Iterator[_Candidate]:
    groups = [] if offsets is None else [len(offsets) - 1]
    out = torch.zeros(*groups, tiles.tile_count(d), tiles.TILE, tiles.TILE, device=inputs[torch.float32].device)

    def at(group: int, rows: Tensor, columns: Tensor) -> Tensor:
        packed = out if offsets is None else out[group]
        row, column = rows // tiles.TILE, columns // tiles.TILE
        return packed[row * (row + 1) // 2 + column, rows % tiles.TILE, columns % tiles.TILE]

    for backend in ops.backends("syrk_accumulate"):
        for dtype, x in inputs.items():
            if backend == "reference" or not _can(backend, out, x, offsets):
                continue

            def run(x: Tensor = x, backend: str = backend) -> None:
                ops.call("syrk_accumulate", out, x, None, offsets, backend=backend)

            yield _Candidate(f"curvedit {backend}", dtype, run, at, out.zero_)


def _can(backend: str, out: Tensor, x: Tensor, offsets: Tensor | None) -> bool:
    try:
        ops.choose("syrk_accumulate", out, x, None, offsets, backend=backend)
    except RuntimeError:
        return False
    return True


def _rivals(d: int, inputs: dict[torch.dtype, Tensor]) -> Iterator[_Candidate]:
    x, half = inputs[torch.float32], inputs[torch.bfloat16]
    square = torch.zeros(d, d, device=x.device)

    def at(_: int, rows: Tensor, columns: Tensor) -> Tensor:
        return square[rows, columns]

    yield _Candidate("torch addmm", torch.float32, lambda: square.addmm_(x.mT, x), at, square.zero_)
    if x.is_cuda:

        def addmm() -> None:
            torch.addmm(square, half.mT, half, out_dtype=torch.float32, out=square)

        yield _Candidate("torch addmm, float32 output", torch.bfloat16, addmm, at, square.zero_)
        return
    try:
        from scipy.linalg import blas  # type: ignore[import-untyped]
    except ImportError:
        return
    packed, columns_first = square.numpy().T, x.numpy().T  # the upper triangle by columns is the lower by rows

    def ssyrk() -> None:
        blas.ssyrk(1.0, columns_first, 1.0, packed, trans=0, lower=0, overwrite_c=1)

    yield _Candidate("OpenBLAS ssyrk", torch.float32, ssyrk, at, square.zero_)


def _loops(d: int, inputs: dict[torch.dtype, Tensor], offsets: Tensor) -> Iterator[_Candidate]:
    """What there is for experts: one product after the other."""
    x = inputs[torch.float32]
    square = torch.zeros(len(offsets) - 1, d, d, device=x.device)
    bounds = offsets.tolist()

    def run() -> None:
        for group, (start, stop) in enumerate(pairwise(bounds)):
            square[group].addmm_(x[start:stop].mT, x[start:stop])

    yield _Candidate("torch addmm, a loop", torch.float32, run, lambda g, r, c: square[g, r, c], square.zero_)


def _error(candidate: _Candidate, x: Tensor, offsets: Tensor | None) -> float:
    generator = torch.Generator().manual_seed(1)
    pairs = torch.randint(x.shape[1], (2, _SAMPLE), generator=generator).sort(dim=0, descending=True).values
    rows, columns = pairs.to(x.device)
    bounds = [0, len(x)] if offsets is None else offsets.tolist()
    candidate.clear()
    candidate.run()
    worst = 0.0
    for group in {0, len(bounds) // 2, len(bounds) - 2} & set(range(len(bounds) - 1)):
        part = x[bounds[group] : bounds[group + 1]].double()
        left, right = part[:, rows], part[:, columns]
        scale = (left.square().sum(0) * right.square().sum(0)).sqrt().clamp_min(1e-30)
        off = candidate.at(group, rows, columns).double() - (left * right).sum(0)
        worst = max(worst, float((off.abs() / scale).max()))
    return worst


def _ceilings(device: torch.device) -> Ceilings:
    size, side = (1 << 30, 8192) if device.type == "cuda" else (1 << 28, 2048)
    source = torch.zeros(size // 4, device=device)
    target = torch.empty_like(source)
    rate = 2 * size / _best(partial(target.copy_, source), device) / 1e9
    rates: dict[str, float] = {}
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        if rates and device.type != "cuda":  # half input is multiplied in float32 on a CPU
            rates[name] = rates["float32"]
            continue
        a = torch.randn(side, side, device=device).to(dtype)
        seconds = _best(partial(torch.mm, a, a, out=torch.empty_like(a)), device)
        rates[name] = _significant(2.0 * side**3 / seconds / 1e12)
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
    """Four digits, however small: a slow machine's rates are not rounded away."""
    return float(f"{value:.4g}")


@contextmanager
def _range(name: str, device: torch.device) -> Iterator[None]:
    """An NVTX range on a GPU."""
    if device.type != "cuda":
        yield
        return
    with torch.cuda.nvtx.range(name):
        yield
