"""``curvedit merge`` adds up factor directories; ``curvedit inspect`` says what one holds."""

import argparse
from pathlib import Path

import yaml

from curvedit.cli.config import record
from curvedit.cli.tables import selection_table
from curvedit.cli.verb import Options, Verb, say
from curvedit.factors import Factors
from curvedit.report import Report
from curvedit.selection import load_selection


def _add_merge_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--factors", nargs="+", required=True, metavar="DIR", help="what fit wrote, twice or more"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="new factor directory")


def _merge(options: Options) -> None:
    merged = Factors.merge(Factors.load(directory) for directory in options.factors)
    merged.save(options.out)
    record(options, Path(options.out))
    say(f"{options.out}: {len(merged)} targets from {len(options.factors)} factor directories")


def _add_inspect_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="DIR", help="factor directory, selection or report")


def _inspect(options: Options) -> None:
    path = Path(options.path)
    if (path / "report.json").is_file():
        say(Report.load(path).table())
    elif (path / "selection.json").is_file():
        say(selection_table(load_selection(path)))
    else:
        factors = Factors.load(path)
        facts = {key: value for key, value in factors.provenance.items() if key != "warnings"}
        say(yaml.safe_dump(facts, sort_keys=False, allow_unicode=True).rstrip())
        for name, target in factors.targets.items():
            say(f"{name}  {target.shape[0]} x {target.shape[1]}  {target.tokens:,} positions")


MERGE = Verb("merge", "add up factors of disjoint data", _add_merge_flags, _merge)
INSPECT = Verb(
    "inspect",
    "show what a factor directory, selection or report holds",
    _add_inspect_flags,
    _inspect,
)
