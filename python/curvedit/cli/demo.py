"""``curvedit demo``: the whole workflow on a model trained on the spot."""

import argparse
import warnings
from pathlib import Path

import torch

from curvedit.cli.places import require_device
from curvedit.cli.verb import Job, Options, Result, Verb, add_progress_flag
from curvedit.demo import run_demo


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out",
        default="demo",
        metavar="DIR",
        help="working directory; a model already trained there is reused",
    )
    parser.add_argument(
        "--device", metavar="NAME", help="cpu, cuda, …; by default CUDA where there is one"
    )
    add_progress_flag(parser)


def _prepare(options: Options) -> Job:
    require_device("device", options.device)
    out = Path(options.out)
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"out: expected a directory, got {out}, a file")
    return lambda: _demo(options, out)


def _demo(options: Options, out: Path) -> Result:
    # The demo's search for the largest share that forgets tries many that keep little.
    warnings.filterwarnings("ignore", message="keep_mass:")
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    report = run_demo(out, device=device, progress=options.progress)
    text = f"{report.table()}\nreport: {out / 'report.html'}"
    return Result(text, {"out": out, **report.to_json()})


DEMO = Verb("demo", "train a small model that recites, and edit it", _add_flags, _prepare)
