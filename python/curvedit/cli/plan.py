"""``curvedit plan``: what a fit will take, from a checkpoint's configuration alone."""

import argparse
import math
from typing import Any

import torch
from torch import nn

from curvedit import fitting
from curvedit.cli.inputs import add_dtype_flag
from curvedit.cli.skeleton import read_skeleton
from curvedit.cli.verb import Job, Options, Result, Verb, require_at_least
from curvedit.meter import total_memory
from curvedit.models import is_gguf

_GIB = 2**30
# Flags of fit, in the order in which they are advised: what costs nothing first.
_SETTINGS: dict[str, dict[str, bool]] = {
    "": {},
    "--sums-on cpu": {"sums_on_host": True},
    "--sums-on cpu --inputs-on cpu": {"sums_on_host": True, "inputs_on_host": True},
}


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        required=True,
        metavar="DIR",
        help="checkpoint directory, of which only config.json is read, hub name or .gguf file",
    )
    parser.add_argument(
        "--targets",
        required=True,
        nargs="+",
        metavar="PATTERN",
        help="names of linear maps, as for fit",
    )
    parser.add_argument(
        "--device-memory",
        type=float,
        metavar="GIB",
        help="of the GPU to plan for (the one that is here)",
    )
    parser.add_argument(
        "--tflops",
        type=float,
        metavar="RATE",
        help="10^12 operations that the GPU does in a second of a fit, to be told the time: an "
        "H200 did 400 in bfloat16, half of what it does in large products",
    )
    parser.add_argument(
        "--no-weighted", dest="weighted", action="store_false", help="skip norm-weighted factors"
    )
    parser.add_argument("--window", type=int, default=512, help="tokens per window (512)")
    parser.add_argument("--batch-size", type=int, default=8, help="windows at a time (8)")
    add_dtype_flag(parser)


def _prepare(options: Options) -> Job:
    require_at_least(options, window=2, batch_size=1)
    memory = _memory(options.device_memory)
    if options.tflops is not None and not 0 < options.tflops < math.inf:
        raise ValueError(f"tflops: expected a positive number, got {options.tflops:g}")
    skeleton = read_skeleton("model", options.model, modules=True)
    modules = skeleton.modules
    if modules is None:
        raise ValueError(
            "model: expected one that can be built from its configuration alone, got "
            f"{options.model}"
        )
    dtype = _dtype(options.dtype, options.model, skeleton.config)
    return lambda: _plan(options, modules, dtype, memory)


def _memory(given: float | None) -> int:
    """Bytes of the device to plan for."""
    if given is not None:
        if not 0.5 <= given <= 1e5:
            raise ValueError(f"device_memory: expected GiB, at least 0.5, got {given:g}")
        return int(given * _GIB)
    found = total_memory(torch.device("cuda"))
    if not found:
        raise ValueError("device_memory: expected the GiB of a GPU, since there is none here")
    return found


def _plan(options: Options, modules: nn.Module, dtype: torch.dtype, memory: int) -> Result:
    plan = fitting.plan_fit(
        modules,
        options.targets,
        rows=options.batch_size,
        length=options.window,
        dtype=dtype,
        weighted=options.weighted,
    )
    settings = {
        name: {
            "device": plan.on_device(memory, **places),
            "host": plan.on_host(**places),
            "largest_batch": plan.most_rows(memory, **places),
        }
        for name, places in _SETTINGS.items()
    }
    best = next(
        (
            name
            for least in (plan.rows, 1)  # flags rather than a smaller batch
            for name, each in settings.items()
            if each["largest_batch"] >= least
        ),
        None,
    )
    facts = {
        "device_memory": memory,
        "dtype": str(dtype).removeprefix("torch."),
        "window": plan.length,
        "batch_size": plan.rows,
        "bytes": {name: getattr(plan, name) for name in _PARTS},
        "operations_per_position": plan.operations,
        "seconds_per_million_tokens": _seconds(plan, options.tflops),
        "settings": settings,
        "advice": best,
    }
    return Result(_text(plan, settings, best, memory, options.tflops), facts)


def _seconds(plan: fitting.Plan, rate: float | None) -> float | None:
    """Of a million tokens, where so many 10^12 operations take one second."""
    return None if rate is None else 1e-6 * sum(plan.operations.values()) / rate


_PARTS = {
    "weights": "weights",
    "sums": "sums",
    "inputs": "inputs of the blocks",
    "graph": "a block's graph",
    "logits": "logits and loss, at once",
}


def _text(
    plan: fitting.Plan,
    settings: dict[str, dict[str, int]],
    best: str | None,
    memory: int,
    rate: float | None,
) -> str:
    lines = [f"{label:26}{getattr(plan, name) / _GIB:8.1f} GiB" for name, label in _PARTS.items()]
    model, sums = (plan.operations[each] / 1e9 for each in ("model", "sums"))
    lines += [
        f"per position{model:22.1f} GFLOP in the model, {sums:.1f} in the sums",
        *_time(plan, rate),
        "",
        f"fit with batches of {plan.rows} x {plan.length}     device      host  "
        f"largest batch within {memory / _GIB:g} GiB",
    ]
    for name, each in settings.items():
        most = each["largest_batch"]
        device, host = (each[where] / _GIB for where in ("device", "host"))
        lines.append(
            f"{name or 'with no more flags':31}{device:6.1f} GiB{host:6.1f} GiB  "
            f"{most if most else 'does not fit'}"
        )
    if best is None:
        least = (
            "fit fewer targets at a time"
            if plan.weights < memory
            else (f"the weights alone take {plan.weights / _GIB:.1f} GiB")
        )
        return "\n".join([*lines, f"nothing fits: {least}"])
    batch = min(plan.rows, settings[best]["largest_batch"])
    flags = f"--batch-size {batch} --window {plan.length} {best}".strip()
    return "\n".join([*lines, f"fits: curvedit fit … {flags}"])


def _time(plan: fitting.Plan, rate: float | None) -> list[str]:
    seconds = _seconds(plan, rate)
    return [] if seconds is None else [f"per million tokens{seconds / 60:16.1f} minutes"]


def _dtype(name: str, model: str, config: Any) -> torch.dtype:
    """The precision that fit would load the model in."""
    if name == "auto" and is_gguf(model):
        return torch.float32
    if name == "auto":
        found = getattr(config, "dtype", None) or getattr(config, "torch_dtype", None)
        return found if isinstance(found, torch.dtype) else torch.float32
    given: torch.dtype = getattr(torch, name)
    return given


PLAN = Verb("plan", "count what a fit will take, before anything is loaded", _add_flags, _prepare)
