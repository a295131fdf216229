"""``curvedit convert``: a GGUF file to a checkpoint directory, which can be edited."""

import argparse
from pathlib import Path

from curvedit import models
from curvedit.cli.config import record
from curvedit.cli.places import require_place
from curvedit.cli.skeleton import read_skeleton
from curvedit.cli.verb import Job, Options, Result, Verb, add_progress_flag


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="FILE.gguf", help="one GGUF file, quantised or not")
    parser.add_argument("--out", required=True, metavar="DIR", help="new checkpoint directory")
    parser.add_argument(
        "--dtype",
        default="float32",
        choices=models.DTYPES,
        help="precision of the weights (float32, which holds what the file's blocks stand for)",
    )
    add_progress_flag(parser)


def _prepare(options: Options) -> Job:
    if not models.is_gguf(options.model):
        raise ValueError(f"model: expected a GGUF file, NAME.gguf, got {options.model}")
    out = require_place(options.out)
    read_skeleton("model", options.model)
    return lambda: _convert(options, out)


def _convert(options: Options, out: Path) -> Result:
    model = models.convert_gguf(options.model, out, dtype=options.dtype, progress=options.progress)
    record(options, out)
    count = sum(parameter.numel() for parameter in model.parameters())
    architecture = type(model).__name__
    return Result(
        f"{out}: {architecture}, {count:,} parameters in {options.dtype}, "
        f"dequantised from {options.model}",
        {"out": out, "class": architecture, "parameters": count, "dtype": options.dtype},
    )


CONVERT = Verb(
    "convert", "write a GGUF file as a checkpoint that can be edited", _add_flags, _prepare
)
