"""``curvedit bench``: time the kernels beside their rivals, or one of them alone for a profiler."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

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
from curvedit.checks import require_new_directory
from curvedit.cli.verb import Options, Verb, say
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


def _execute(options: Options) -> None:
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    tokens = options.tokens or (16384 if device.type == "cuda" else 4096)
    shapes = _shapes(options, device)
    asked = options.ops or OPS
    if options.backend is not None:
        for op, backend in _pairs(options.backend, asked):
            only = (backend, getattr(torch, options.dtype))
            case = next(cases(op, shapes, tokens=tokens, device=device, only=only))
            taken = repeat(case, device=device, times=options.repeat)
            say(f"{case.op}, {backend}, {options.dtype}, {case.shape}: {taken:.4f} ms a call")
        return
    out = None if options.out is None else require_new_directory("out", Path(options.out))
    every = (case for op in asked for case in cases(op, shapes, tokens=tokens, device=device))
    ceilings, rows = measure(every, device=device, rounds=options.rounds)
    rates = ", ".join(
        f"{rate:.3g} TFLOP/s with {name} input" for name, rate in ceilings.tflops.items()
    )
    say(f"ceilings: copy {ceilings.copy_gigabytes_per_second:.1f} GB/s, product {rates}")
    say(table(rows))
    if out is not None:
        _save(out, ceilings, rows, asked, device)


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
    out: Path, ceilings: Ceilings, rows: list[Row], asked: Sequence[str], device: torch.device
) -> None:
    """Write ``bench.json`` and a roofline plot per op."""
    facts = examine_facts()
    content = {
        "machine": facts,
        "ceilings": asdict(ceilings),
        "rows": [asdict(row) for row in rows],
    }
    where = facts["gpu"] if device.type == "cuda" else facts["cpu kernels"]
    with new_directory("out", out) as part:
        (part / "bench.json").write_text(json.dumps(content, indent=1))
        for op in asked:
            drawing = draw_roofline(
                ceilings, [row for row in rows if row.op == op], f"{op}, {where}"
            )
            (part / f"roofline-{op}.svg").write_text(drawing)


BENCH = Verb("bench", "time the kernels beside their rivals", _add_flags, _execute)
