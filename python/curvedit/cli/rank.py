"""``curvedit rank``: factor directory to a selection directory, or to one per share of a sweep."""

import argparse
import time
from pathlib import Path
from typing import Any

from curvedit import models, ranking
from curvedit.cli.config import record
from curvedit.cli.inputs import add_data_flags, add_loading_flags, batches
from curvedit.cli.places import require_kind, require_place
from curvedit.cli.skeleton import read_skeleton, require_data_fits
from curvedit.cli.tables import (
    decomposition_facts,
    decomposition_summary,
    selection_facts,
    selection_table,
    sweep_table,
)
from curvedit.cli.verb import Job, Options, Result, Verb, add_progress_flag, require_at_least
from curvedit.factors import Factors
from curvedit.files import new_directory

_MOST_SHARES = 1000


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--factors", required=True, metavar="DIR", help="what fit wrote")
    share = parser.add_mutually_exclusive_group(required=True)
    share.add_argument(
        "--keep-mass", type=float, metavar="RHO", help="share of the curvature to keep, in (0, 1]"
    )
    share.add_argument(
        "--keep-kl",
        type=float,
        metavar="NATS",
        help="keep what the edit may cost at most, in nats per position (needs --model): as the "
        "factors predict it, or as measured on --holdout",
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
    parser.add_argument(
        "--skip", nargs="+", metavar="PATTERN", help="leave out targets, such as idle ones (none)"
    )
    parser.add_argument(
        "--model", metavar="DIR", help="the fitted model, for --criterion svd and --keep-kl"
    )
    parser.add_argument(
        "--holdout",
        nargs="+",
        metavar="PATH",
        help="general text, or images, on which --keep-kl is measured; given as for fit --data",
    )
    parser.add_argument("--seed", type=int, default=0, help="seeds --criterion random (0)")
    add_loading_flags(parser)
    add_data_flags(parser)
    add_progress_flag(parser)


def _prepare(options: Options, made: frozenset[str] = frozenset()) -> Job:
    require_at_least(options, seed=0)
    shares = shares_of(options)
    for share in shares:
        ranking.require_possible(
            share,
            options.keep_kl,
            criterion=options.criterion,
            scope=options.scope,
            measured=options.holdout is not None,
        )
    if options.device is not None and options.holdout is None:
        raise ValueError(
            f"device: expected --holdout with it, since nothing else runs the model, got "
            f"{options.device!r} alone"
        )
    out, holdout = require_place(options.out), None
    if _reads_weights(options):
        if options.model is None:
            reader = "--keep-kl" if options.criterion != "svd" else "--criterion svd"
            raise ValueError(
                f"model: expected the fitted model, whose weights {reader} reads, got none"
            )
        skeleton = read_skeleton("model", options.model)
        if options.holdout is not None:
            holdout = batches(options.holdout, options, name="holdout")
            require_data_fits("holdout", skeleton, holdout)
    if "factors" not in made:
        place = require_kind("factors", Path(options.factors), "a factor directory", "fit")
        ranking.choose_targets(Factors.load(place), options.targets, options.skip)
    return lambda: _rank(options, out, shares, holdout)


def _rank(options: Options, out: Path, shares: list[float | None], holdout: Any) -> Result:
    factors = Factors.load(options.factors)
    model = None
    if _reads_weights(options):
        device = "cpu" if holdout is None else options.device  # reading weights needs no other
        model = models.load_model(options.model, dtype=options.dtype, device=device)
    started = time.perf_counter()
    selections = [
        ranking.rank(
            factors,
            keep_mass=share,
            keep_kl=options.keep_kl,
            criterion=options.criterion,
            scope=options.scope,
            targets=options.targets,
            skip=options.skip,
            model=model,
            holdout=holdout,
            seed=options.seed,
            progress=options.progress,
        )
        for share in shares
    ]
    seconds = time.perf_counter() - started
    if options.sweep is None:
        selections[0].save(out)
        places, table = [out], selection_table(selections[0])
    else:
        places, table = [out / f"keep-{share:g}" for share in shares], sweep_table(selections)
        with new_directory("out", out) as part:
            for place, selection in zip(places, selections, strict=True):
                selection.save(part / place.name)
    record(options, out)
    kept = [
        {"out": place, **selection_facts(each)}
        for place, each in zip(places, selections, strict=True)
    ]
    summary = decomposition_summary(factors, selections[0], seconds)
    facts = {"out": out, "seconds": round(seconds, 3), "selections": kept}
    bases = decomposition_facts(factors, selections[0])
    return Result(f"{summary}\n{table}", {**facts, "bases": bases})


def _reads_weights(options: Options) -> bool:
    return options.criterion == "svd" or options.keep_kl is not None


def shares_of(options: Options) -> list[float | None]:
    """The shares to keep, one or those of a sweep; None where --keep-kl decides.

    Raises:
        ValueError: the sweep cannot be read.
    """
    return [options.keep_mass] if options.sweep is None else [*_shares(options.sweep)]


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
    number = int((last - first) / step + 1e-9) + 1
    if number > _MOST_SHARES:
        raise ValueError(f"sweep: expected at most {_MOST_SHARES} shares, got {number} by {text!r}")
    return [round(first + index * step, 10) for index in range(number)]


RANK = Verb(
    "rank", "rank components by their curvature and select those to keep", _add_flags, _prepare
)
