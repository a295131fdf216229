"""``curvedit bench``: time the kernels beside their rivals, or one of them alone for a profiler."""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from curvedit.bench import (
    MODELS,
    OPS,
    Ceilings,
    Row,
    cases,
    draw_roofline,
    measure,
    repeat,
    table,
)
from curvedit.cli.places import require_device, require_place
from curvedit.cli.verb import Job, Options, Result, Verb, require_at_least
from curvedit.doctor import examine_facts
from curvedit.files import new_directory
from curvedit.ops import parse_backends

_Shape = tuple[int, int, int]


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--ops", nargs="+", choices=OPS, metavar="OP", help=f"{', '.join(OPS)} (all)"
    )
    shapes = f"{', '.join(MODELS)} (all on a GPU, the first on a CPU)"
    parser.add_argument("--models", nargs="+", choices=MODELS, metavar="NAME", help=shapes)
    parser.add_argument(
        "--d", nargs="+", type=int, metavar="N", help="square maps of these widths instead"
    )
    parser.add_argument(
        "--tokens", type=int, metavar="N", help="rows of the input (16384 on a GPU, 4096 on a CPU)"
    )
    parser.add_argument(
        "--rounds", type=int, default=7, metavar="N", help="turns of each candidate (7)"
    )
    parser.add_argument(
        "--device", metavar="NAME", help="cpu or cuda; by default CUDA where there is one"
    )
    parser.add_argument(
        "--out", metavar="DIR", help="new directory for bench.json and roofline plots"
    )
    parser.add_argument(
        "--backend",
        metavar="NAME",
        help="run only this backend, for a profiler to attach to; OP=NAME picks the kernel too",
    )
    parser.add_argument(
        "--repeat", type=int, default=10, metavar="N", help="calls of that backend (10)"
    )
    parser.add_argument(
        "--dtype",
        default="bfloat16",
        choices=["float32", "bfloat16", "float16"],
        help="precision of that backend's input (bfloat16)",
    )


def _prepare(options: Options) -> Job:
    require_at_least(options, tokens=1, rounds=1, repeat=1)
    if min(options.d or [1]) < 1:
        raise ValueError(f"d: expected widths of at least 1, got {options.d}")
    require_device("device", options.device)
    asked = options.ops or OPS
    if options.backend is not None:
        pairs = _pairs(options.backend, asked)
        return lambda: _repeat(options, pairs)
    out = None if options.out is None else require_place(options.out)
    return lambda: _measure(options, asked, out)


def _device(options: Options) -> torch.device:
    return torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))


def _rows(options: Options, device: torch.device) -> int:
    """Rows of the input."""
    return options.tokens or (16384 if device.type == "cuda" else 4096)


def _repeat(options: Options, pairs: list[tuple[str, str]]) -> Result:
    """Run one backend of each op, for a profiler."""
    device = _device(options)
    shapes, tokens = _shapes(options, device), _rows(options, device)
    lines, facts = [], []
    for op, backend in pairs:
        only = (backend, getattr(torch, options.dtype))
        case = next(cases(op, shapes, tokens=tokens, device=device, only=only))
        taken = repeat(case, device=device, times=options.repeat)
        lines.append(f"{case.op}, {backend}, {options.dtype}, {case.shape}: {taken:.4f} ms a call")
        facts.append({"op": case.op, "backend": backend, "shape": case.shape, "ms": taken})
    return Result("\n".join(lines), {"dtype": options.dtype, "runs": facts})


def _measure(options: Options, asked: Sequence[str], out: Path | None) -> Result:
    """Time every backend of the ops beside its rivals."""
    device = _device(options)
    shapes, tokens = _shapes(options, device), _rows(options, device)
    every = (case for op in asked for case in cases(op, shapes, tokens=tokens, device=device))
    ceilings, rows = measure(every, device=device, rounds=options.rounds)
    rates = ", ".join(
        f"{rate:.3g} TFLOP/s with {name} input" for name, rate in ceilings.tflops.items()
    )
    text = f"ceilings: copy {ceilings.copy_gigabytes_per_second:.1f} GB/s, product {rates}"
    content = {
        "machine": examine_facts(),
        "ceilings": asdict(ceilings),
        "rows": [asdict(row) for row in rows],
    }
    if out is not None:
        _save(out, content, ceilings, rows, asked, device)
    return Result(f"{text}\n{table(rows)}", content)


def _shapes(options: Options, device: torch.device) -> list[_Shape]:
    """The shapes asked for, or the device's usual ones."""
    shapes = [(d, d, 0) for d in options.d or []] + [MODELS[name] for name in options.models or []]
    if shapes:
        return shapes
    return list(MODELS.values()) if device.type == "cuda" else [MODELS["olmo2-1b"]]


def _pairs(text: str, asked: Sequence[str]) -> list[tuple[str, str]]:
    """Op and backend of each run: a bare name is one of the first op's backends."""
    if "=" not in text:
        return [(asked[0], text)]
    bare, by_op = parse_backends(text, "backend")
    for op in by_op:
        if op not in asked:
            raise ValueError(f"backend: expected one of the ops {list(asked)}, got {op!r}")
    first = {asked[0]: bare} if bare else {}
    return list((first | by_op).items())


def _save(
    out: Path,
    content: Mapping[str, Any],
    ceilings: Ceilings,
    rows: list[Row],
    asked: Sequence[str],
    device: torch.device,
) -> None:
    """Write ``bench.json`` and a roofline plot per op."""
    where = content["machine"]["gpu" if device.type == "cuda" else "cpu kernels"]
    with new_directory("out", out) as part:
        (part / "bench.json").write_text(json.dumps(content, indent=1))
        for op in asked:
            drawing = draw_roofline(
                ceilings, [row for row in rows if row.op == op], f"{op}, {where}"
            )
            (part / f"roofline-{op}.svg").write_text(drawing)


BENCH = Verb("bench", "time the kernels beside their rivals", _add_flags, _prepare)
