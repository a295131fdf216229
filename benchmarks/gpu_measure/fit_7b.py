"""``fit`` of a model of OLMo-2-7B's shape with random weights, beside the released procedure.

python benchmarks/gpu_measure/fit_7b.py --json FILE

Every MLP map of all 32 layers: on a card that has 24 GiB, as far as the program can tell, where the
sums wait on the host; and without a cap. Tokens per second are
those from the second batch on, so that the one-off checks are left out; the weights are not hashed,
which happens once per fit. Phases are timed on the device, by events around the pass's own
functions.
"""

import os
import sys
import time
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from unittest import mock

import common
import torch
import transformers

import curvedit
from curvedit.fitting import moments, places, stage
from curvedit.models import calling
from curvedit.ops import VARIABLE
from curvedit.passes import run as passes
from curvedit.passes import streaming

sys.path.insert(0, str(Path(__file__).parents[1]))
from released_collector import collect

CAP = 24 << 30  # bytes
TOKENS = 20_000_000  # of a whole fit, which rates are extrapolated to
_WINDOW = 512
_COUNT = 6  # batches of a fit; the first one is left out
_IN_HALVES = "batches did not fit"  # a fit goes on in parts then, and is slower
_ON_HOST = {"sums_on": "cpu"}


@dataclass(frozen=True)
class Case:
    layers: int  # the last ones; their MLP maps are fitted
    weighted: bool | None = False  # None for the released procedure
    cap: int | None = None  # bytes
    options: dict = field(default_factory=dict)  # of fit
    backend: str | None = None  # of the accumulation


CASES = {
    "own, 32 layers, 24 GiB": Case(32, cap=CAP, options=_ON_HOST),
    "own, 32 layers, 24 GiB, inputs on the host": Case(
        32, cap=CAP, options=_ON_HOST | {"inputs_on": "cpu"}
    ),
    "own, 32 layers": Case(32),
    "released procedure, 4 layers": Case(4, weighted=None),
    "own, 32 layers, graphs 45 GiB": Case(32, options={"graph_bytes": 45 << 30}),
    "own, 9 layers, 24 GiB": Case(9, cap=CAP),
    "own, 32 layers, weighted": Case(32, weighted=True),
    "own, 32 layers, weighted, 24 GiB": Case(32, weighted=True, cap=CAP, options=_ON_HOST),
    "own, 32 layers, triton": Case(32, backend="triton"),
}


def run(session):
    warnings.simplefilter("ignore", FutureWarning)
    model = None
    for name in session.cases(CASES, 4):
        if model is None:
            began = time.perf_counter()
            model = _built(session)
            session.wait()
            made = round(time.perf_counter() - began, 2)
            session.write("model", bytes=size_of(model), seconds=made)
        case = CASES[name]
        with _capped(session, case.cap), _backend(case.backend):
            session.attempt(name, partial(measured, session, model, case))


def _built(session):
    sizes = {"vocab_size": 100352, "max_position_embeddings": 4096}
    sizes |= {"hidden_size": 4096, "intermediate_size": 11008}
    sizes |= {"num_hidden_layers": 32, "num_attention_heads": 32}
    if session.dry:
        sizes |= {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 160}
        sizes |= {"num_hidden_layers": 4, "num_attention_heads": 4}
    torch.set_default_dtype(torch.bfloat16)
    try:
        with session.device:
            config = transformers.Olmo2Config(**sizes, pad_token_id=None, eos_token_id=None)
            return transformers.Olmo2ForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(torch.float32)


def size_of(model):
    return sum(each.numel() * each.itemsize for each in model.parameters())


@contextmanager
def _capped(session, cap):
    if session.dry or cap is None:
        yield
        return
    total = torch.cuda.get_device_properties(0).total_memory
    session.free()
    torch.cuda.set_per_process_memory_fraction(min(1.0, cap / total))
    as_large = partial(mock.patch.object, attribute="total_memory", return_value=cap)
    try:
        with as_large(places), as_large(calling):
            yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@contextmanager
def _backend(name):
    wanted = {"syrk_accumulate": name, "syrk_accumulate_pair": name}
    text = ",".join(f"{op}={each}" for op, each in wanted.items() if each)
    with mock.patch.dict(os.environ, {VARIABLE: text} if text else {}):
        yield


def _batches(session, count, samples):
    size = (count, samples, 32 if session.dry else _WINDOW)
    vocabulary = 512 if session.dry else 100352
    return list(torch.randint(vocabulary, size, device=session.device))


def measured(session, model, case):
    """Measure with as many samples per batch as fit into memory."""
    for samples in (24, 16, 8, 4) if case.cap else (16, 8, 4):
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("error", _IN_HALVES, category=UserWarning)
                row, fit = _rate(session, model, case, samples)
            break
        except (torch.OutOfMemoryError, UserWarning) as error:
            session.write("out of memory", samples=samples, why=str(error)[:200])
        session.free()
    else:
        raise MemoryError("not even 4 samples fit")
    session.write("row", candidate=session.case, **row)
    told = (
        f"{row['tokens_per_second']:9.0f} tokens/s, {row['minutes_of_20_million']:6.1f} min of 20 M"
    )
    peak = f"{row['peak_bytes'] / 2**30:.1f} GiB"
    session.show(f"{row['samples']} samples", f"{told}, {peak} {row['phases_seconds']}")
    if session.left() > 25 and case.weighted is not None and not case.cap:
        _profile(session, fit)
    return True


def _rate(session, model, case, samples):
    """A row of results, and a fit of one batch more."""
    count = len(model.model.layers)
    numbers = range(max(0, count - case.layers), count)
    targets = f"model.layers.{{{numbers[0]}..{numbers[-1]}}}.mlp.*"

    def fit(batches):
        if case.weighted is None:
            return _collected(model, batches, numbers)
        options = {"weighted": case.weighted, "progress": False, **case.options}
        return curvedit.fit(model, batches, targets=targets, **options)

    if not session.dry:
        torch.cuda.reset_peak_memory_stats()
    phases, starts = {}, []

    def batches():
        for number, batch in enumerate(_batches(session, _COUNT, samples)):
            if number == 1:
                for spans in phases.values():
                    spans.clear()
            starts.append(_now(session))
            yield batch

    with _phases(session, phases), mock.patch.object(stage, "fingerprint", return_value=("", "")):
        made = fit(batches())
    session.wait()
    seconds = [
        _elapsed(span) for span in pairwise(starts)
    ]  # the last batch's end is not among them
    tokens = samples * (32 if session.dry else _WINDOW)
    rate = tokens * (len(seconds) - 1) / sum(seconds[1:])
    passes_over = 1 if case.weighted is not None else -(-count // len(numbers))
    row = {
        "layers": len(numbers),
        "weighted": case.weighted,
        "options": case.options,
        "cap": case.cap,
        "samples": samples,
        "batches": len(seconds),
        "seconds_of_batches": [round(each, 4) for each in seconds],
        "peak_bytes": 0 if session.dry else torch.cuda.max_memory_allocated(),
        "tokens_per_second": round(rate, 1),
        "minutes_of_20_million": round(TOKENS / rate / 60 * passes_over, 1),
        "phases_seconds": {
            name: round(sum(map(_elapsed, spans)) / (_COUNT - 1), 4)
            for name, spans in phases.items()
            if spans
        },
        "provenance": {} if case.weighted is None else _plain(made.provenance),
    }
    return row, lambda: fit(_batches(session, 1, samples))


def _collected(model, batches, numbers):
    """The released procedure; whatever it leaves on the model is undone."""
    try:
        return collect(model, batches, layers=numbers)
    finally:
        model.gradient_checkpointing_disable()
        model.get_input_embeddings()._forward_hooks.clear()
        model.eval().requires_grad_(False)


def _plain(provenance):
    keys = ("backend", "backward", "self_check", "peak_memory_bytes")
    return {key: str(provenance[key])[:300] for key in keys if key in provenance}


def _now(session):
    """A moment of the device's work, between two of which :func:`_elapsed` tells the seconds."""
    if session.dry:
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _elapsed(span):
    start, stop = span
    return stop - start if isinstance(start, float) else start.elapsed_time(stop) / 1e3


@contextmanager
def _phases(session, phases):
    """Put events around the functions of a pass; the accumulation lies inside the others."""
    where = {
        "all blocks forward": (streaming, "_run_blocks"),
        "head and loss": (streaming, "_run_tail"),
        "whole batch": (passes, "streamed_backward"),
        "accumulate": (moments.Moments, "add"),
    }
    patches = [
        mock.patch.object(room, name, _spanned(session, getattr(room, name), phases, label))
        for label, (room, name) in where.items()
    ]
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        for patch in patches:
            patch.stop()


def _spanned(session, function, phases, label):
    spans = phases.setdefault(label, [])

    def spanned(*args, **kwargs):
        start = _now(session)
        result = function(*args, **kwargs)
        spans.append((start, _now(session)))
        return result

    return spanned


def _profile(session, fit):
    """The kernels that take the longest, of a fit of one batch."""
    kinds = [torch.profiler.ProfilerActivity.CPU]
    kinds += [] if session.dry else [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=kinds[-1:]) as profile:
        fit()
        session.wait()
    attribute = "self_cpu_time_total" if session.dry else "self_device_time_total"
    events = sorted(profile.key_averages(), key=lambda each: -getattr(each, attribute))
    total = sum(getattr(each, attribute) for each in events)
    top = [
        {
            "kernel": each.key[:120],
            "ms": round(getattr(each, attribute) / 1e3, 3),
            "calls": each.count,
        }
        for each in events[:15]
    ]
    session.write("profile", total_ms=round(total / 1e3, 3), top=top)
    for each in top[:5]:
        session.show(f"{each['ms']:9.2f} ms {each['calls']:6} x", each["kernel"][:60])


if __name__ == "__main__":
    sys.exit(common.main(__doc__, run, seconds=58, stall=60.0))
