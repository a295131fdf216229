"""``fit`` of a model of OLMo-2-7B's shape with random weights, beside the released procedure.

python benchmarks/gpu_measure/fit_7b.py --json FILE

Every MLP map of 9 layers under a cap of 24 GiB, and of all 32 without one. Tokens per second are
the marginal ones: the seconds of a fit of several batches less those of a fit of one, which holds
the one-off checks. Phases are timed on the device, by events around the pass's own functions.
"""

import os
import sys
import time
import warnings
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from unittest import mock

import common
import torch
import transformers

import curvedit
from curvedit.fitting import moments
from curvedit.ops import VARIABLE
from curvedit.passes import run as passes
from curvedit.passes import streaming

sys.path.insert(0, str(Path(__file__).parents[1]))
from released_collector import collect

CAP = 24 << 30  # bytes
TOKENS = 20_000_000  # of a whole fit, which rates are extrapolated to
_WINDOW = 512
_BATCH = "batches, without their checks"
_SECONDS = 7.0  # that one measurement may take, about
# Name: layers fitted, weighted sums too, cap, backend of the accumulation (None for the default).
CASES = {
    "own, 9 layers, 24 GiB": (9, False, CAP, None),
    "own, 32 layers": (32, False, None, None),
    "released procedure, 4 layers": (4, None, None, None),
    "own, 9 layers, 24 GiB, triton": (9, False, CAP, "triton"),
    "own, 9 layers, 24 GiB, cuda": (9, False, CAP, "cuda"),
    "own, 32 layers, triton": (32, False, None, "triton"),
    "own, 9 layers, weighted": (9, True, None, None),
    "own, 32 layers, weighted": (32, True, None, None),
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
            session.write("model", bytes=_size(model), seconds=made)
        layers, weighted, cap, backend = CASES[name]
        options = {"layers": min(layers, len(model.model.layers)), "weighted": weighted}
        with _capped(session, cap), _backend(backend):
            session.attempt(name, partial(_case, session, model, **options))


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


def _size(model):
    return sum(each.numel() * each.itemsize for each in model.parameters())


@contextmanager
def _capped(session, cap):
    if session.dry or cap is None:
        yield
        return
    total = torch.cuda.get_device_properties(0).total_memory
    session.free()
    torch.cuda.set_per_process_memory_fraction(min(1.0, cap / total))
    try:
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


def _case(session, model, layers, weighted):
    """Measure with as many samples per batch as fit into memory."""
    for samples in (16, 8, 4):
        try:
            return _measured(session, model, layers, weighted, samples)
        except torch.OutOfMemoryError as error:
            session.write("out of memory", samples=samples, why=str(error)[:200])
        session.free()
    raise MemoryError("not even 4 samples fit")


def _measured(session, model, layers, weighted, samples):
    numbers = range(len(model.model.layers) - layers, len(model.model.layers))

    def fit(count):
        batches = _batches(session, count, samples)
        if weighted is None:
            return _collected(model, batches, numbers)
        targets = f"model.layers.{{{numbers[0]}..{numbers[-1]}}}.mlp.*"
        return curvedit.fit(model, batches, targets=targets, weighted=weighted, progress=False)

    first, _ = _timed(session, fit, 1)  # holds what happens once: compilation, libraries
    once, _ = _timed(session, fit, 1)
    session.write("first", samples=samples, first_seconds=first, seconds=once)
    count = 1 + max(1, min(16, int(_SECONDS / max(once, 1e-3) / 2)))
    if not session.dry:
        torch.cuda.reset_peak_memory_stats()
    phases = {}
    with _phases(session, phases):
        seconds, factors = _timed(session, fit, count)
    peak = 0 if session.dry else torch.cuda.max_memory_allocated()
    tokens = (count - 1) * samples * (32 if session.dry else _WINDOW)
    if seconds <= once:
        raise RuntimeError(f"{count} batches took {seconds} s, one took {once} s: no rate")
    rate = tokens / (seconds - once)
    provenance = {} if weighted is None else _plain(factors.provenance)
    del factors
    whole = TOKENS / rate / 60 * (1 if weighted is not None else _passes(model, layers))
    row = {"layers": layers, "weighted": weighted, "samples": samples, "batches": count}
    row |= {"seconds": round(seconds, 3), "once": round(once, 3), "peak_bytes": peak}
    row |= {"tokens_per_second": round(rate, 1), "minutes_of_20_million": round(whole, 1)}
    row["phases_seconds"] = {each: round(_sum(spans), 4) for each, spans in phases.items()}
    row["batch_seconds"] = [round(_sum([span]), 4) for span in phases[_BATCH]]
    session.write("row", candidate=session.case, provenance=provenance, **row)
    text = f"{rate:9.0f} tokens/s, {whole:6.1f} min of 20 M, {peak / 2**30:.1f} GiB"
    session.show(f"{samples} samples", f"{text} {row['phases_seconds']}")
    session.free()
    if session.left() > 3 * once + 2 and weighted is not None:
        _profile(session, fit)
    return True


def _collected(model, batches, numbers):
    """The released procedure; whatever it leaves on the model is undone."""
    try:
        return collect(model, batches, layers=numbers)
    finally:
        model.gradient_checkpointing_disable()
        model.get_input_embeddings()._forward_hooks.clear()
        model.eval().requires_grad_(False)


def _passes(model, layers):
    """The released procedure goes over the data once per 4 layers; minutes are of all layers."""
    return -(-len(model.model.layers) // layers)


def _plain(provenance):
    keys = ("backend", "backward", "self_check", "peak_memory_bytes")
    return {key: str(provenance[key])[:300] for key in keys if key in provenance}


def _timed(session, fit, count):
    session.wait()
    began = time.perf_counter()
    result = fit(count)
    session.wait()
    return round(time.perf_counter() - began, 4), result


@contextmanager
def _phases(session, phases):
    """Put events around the functions of a pass; the accumulation lies inside the others."""
    places = {
        "self-check": (passes, "check_fidelity"),
        "all blocks forward": (streaming, "_run_blocks"),
        "head and loss": (streaming, "_run_tail"),
        _BATCH: (passes, "streamed_backward"),
        "accumulate": (moments.Moments, "add"),
    }
    patches = [
        mock.patch.object(where, name, _spanned(session, getattr(where, name), phases, label))
        for label, (where, name) in places.items()
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
        if session.dry:
            began = time.perf_counter()
            result = function(*args, **kwargs)
            spans.append(time.perf_counter() - began)
            return result
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        result = function(*args, **kwargs)
        stop.record()
        spans.append((start, stop))
        return result

    return spanned


def _sum(spans):
    return sum(
        span if isinstance(span, float) else span[0].elapsed_time(span[1]) / 1e3 for span in spans
    )


def _profile(session, fit):
    """The kernels that take the longest, of a fit of one batch."""
    kinds = [torch.profiler.ProfilerActivity.CPU]
    kinds += [] if session.dry else [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=kinds[-1:]) as profile:
        fit(1)
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
    sys.exit(common.main(__doc__, run, seconds=58, stall=45.0))
