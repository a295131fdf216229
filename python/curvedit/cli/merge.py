"""``curvedit merge``: factor directories of disjoint data to one of their union."""

import argparse
from pathlib import Path

from curvedit.cli.config import record
from curvedit.cli.places import require_kind, require_place
from curvedit.cli.verb import Job, Options, Result, Verb
from curvedit.factors import Factors


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--factors", nargs="+", required=True, metavar="DIR", help="what fit wrote, twice or more"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="new factor directory")


def _prepare(options: Options) -> Job:
    if len(options.factors) < 2:
        raise ValueError(f"factors: expected two or more, got only {options.factors[0]}")
    out = require_place(options.out)
    for directory in options.factors:
        Factors.load(require_kind("factors", Path(directory), "a factor directory", "fit"))
    return lambda: _merge(options, out)


def _merge(options: Options, out: Path) -> Result:
    merged = Factors.merge(Factors.load(directory) for directory in options.factors)
    merged.save(out)
    record(options, out)
    return Result(
        f"{out}: {len(merged)} targets from {len(options.factors)} factor directories",
        {"out": out, "targets": list(merged), "merged": options.factors},
    )


MERGE = Verb("merge", "add up factors of disjoint data", _add_flags, _prepare)
