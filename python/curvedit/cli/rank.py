"""``curvedit rank``: factor directory to a selection directory, or to one per share of a sweep."""

import argparse
import time
from pathlib import Path

from curvedit import models, ranking
from curvedit.checks import require_new_directory
from curvedit.cli.config import record
from curvedit.cli.inputs import add_dtype_flag
from curvedit.cli.tables import decomposition_summary, selection_table, sweep_table
from curvedit.cli.verb import Options, Verb, add_progress_flag, say
from curvedit.factors import Factors
from curvedit.files import new_directory


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--factors", required=True, metavar="DIR", help="what fit wrote")
    share = parser.add_mutually_exclusive_group(required=True)
    share.add_argument(
        "--keep-mass", type=float, metavar="RHO", help="share of the curvature to keep, in (0, 1]"
    )
    share.add_argument(
        "--sweep",
        metavar="FROM:TO:STEP",
        help="several shares, each ranked into its own directory under --out",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="new selection directory")
    parser.add_argument(
        "--criterion",
        default="curvature",
        choices=ranking.CRITERIA,
        help="how components are scored; svd and random are controls (curvature)",
    )
    parser.add_argument(
        "--scope",
        default="target",
        choices=ranking.SCOPES,
        help="apply the share to each target, or to the model as a whole (target)",
    )
    parser.add_argument(
        "--targets", nargs="+", metavar="PATTERN", help="choose among the fitted targets (all)"
    )
    parser.add_argument("--model", metavar="DIR", help="the fitted model, for --criterion svd")
    parser.add_argument("--seed", type=int, default=0, help="seeds --criterion random (0)")
    add_dtype_flag(parser)
    add_progress_flag(parser)


def _execute(options: Options) -> None:
    out = require_new_directory("out", Path(options.out))
    shares = [options.keep_mass] if options.sweep is None else _shares(options.sweep)
    factors = Factors.load(options.factors)
    model = None
    if options.criterion == "svd" and options.model is not None:
        model = models.load_model(options.model, dtype=options.dtype, device="cpu")
    started = time.perf_counter()
    selections = [
        ranking.rank(
            factors,
            keep_mass=share,
            criterion=options.criterion,
            scope=options.scope,
            targets=options.targets,
            model=model,
            seed=options.seed,
            progress=options.progress,
        )
        for share in shares
    ]
    say(decomposition_summary(factors, selections[0], time.perf_counter() - started))
    if options.sweep is None:
        selections[0].save(out)
        say(selection_table(selections[0]))
    else:
        with new_directory("out", out) as part:
            for share, selection in zip(shares, selections, strict=True):
                selection.save(part / f"keep-{share:g}")
        say(sweep_table(selections))
    record(options, out)


def _shares(text: str) -> list[float]:
    """The shares of ``FROM:TO:STEP``, both ends included."""
    try:
        first, last, step = map(float, text.split(":"))
    except ValueError:
        raise ValueError(
            f"sweep: expected FROM:TO:STEP, for example 0.5:0.95:0.05, got {text!r}"
        ) from None
    if not (0 < first <= last <= 1 and step > 0):
        raise ValueError(f"sweep: expected 0 < FROM <= TO <= 1 and STEP > 0, got {text!r}")
    return [
        round(first + number * step, 10) for number in range(int((last - first) / step + 1e-9) + 1)
    ]


RANK = Verb(
    "rank", "rank components by their curvature and select those to keep", _add_flags, _execute
)
