"""``curvedit demo``: the whole workflow on a model trained on the spot."""

import argparse
from pathlib import Path

from curvedit.cli.verb import Options, Verb, add_progress_flag, say
from curvedit.demo import run_demo


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out",
        default="demo",
        metavar="DIR",
        help="working directory; a model already trained there is reused",
    )
    add_progress_flag(parser)


def _execute(options: Options) -> None:
    out = Path(options.out)
    report = run_demo(out, progress=options.progress)
    say(report.table())
    say(f"report: {out / 'report.html'}")


DEMO = Verb("demo", "train a small model that recites, and edit it", _add_flags, _execute)
