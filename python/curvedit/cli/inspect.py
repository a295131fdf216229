"""``curvedit inspect``: what a directory that curvedit wrote holds."""

import argparse
from collections.abc import Callable
from pathlib import Path

import yaml

from curvedit.cli.places import RECORD, kind_of, read_record
from curvedit.cli.tables import (
    coverage_table,
    edit_table,
    factors_table,
    selection_facts,
    selection_table,
)
from curvedit.cli.verb import Job, Options, Result, Verb
from curvedit.factors import Factors
from curvedit.report import Report
from curvedit.selection import load_selection

_UNDERSTOOD = (
    "a factor directory (manifest.json), a selection (selection.json), an edited checkpoint "
    f"({RECORD}), a report (report.json), or a directory of these, such as a sweep or a run"
)


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path",
        metavar="DIR",
        help="factor directory, selection, edited checkpoint, report, or a directory of these",
    )


def _prepare(options: Options) -> Job:
    path = Path(options.path)
    if path.is_file() and path.name in ("report.json", "selection.json", RECORD, "manifest.json"):
        path = path.parent
    if kind_of(path) in _SHOWN:
        return lambda: _SHOWN[kind_of(path)](path)
    parts = []
    if path.is_dir():
        parts = sorted(each for each in path.iterdir() if kind_of(each) in _SHOWN)
        nested = sorted(path.glob("*/*/"))
        parts = sorted([*parts, *(each for each in nested if kind_of(each) in _SHOWN)])
    if not parts:
        raise FileNotFoundError(
            f"path: expected {_UNDERSTOOD}, got {path}, which is {kind_of(path)}"
        )
    return lambda: _several(path, parts)


def _several(path: Path, parts: list[Path]) -> Result:
    results = {str(part.relative_to(path)): _SHOWN[kind_of(part)](part) for part in parts}
    return Result(
        "\n\n".join(
            f"{name}: {kind_of(path / name)}\n{each.text}" for name, each in results.items()
        ),
        {"path": path, "parts": {name: each.facts for name, each in results.items()}},
    )


def _report(path: Path) -> Result:
    report = Report.load(path)
    return Result(report.table(), {"path": path, "kind": "report", **report.to_json()})


def _selection(path: Path) -> Result:
    selection = load_selection(path)
    facts = {"path": path, "kind": "selection", **selection_facts(selection)}
    return Result(selection_table(selection), facts)


def _edited(path: Path) -> Result:
    record = read_record(path) or {}
    return Result(edit_table(record), {"path": path, "kind": "edited checkpoint", **record})


def _factors(path: Path) -> Result:
    factors = Factors.load(path)
    facts = {key: value for key, value in factors.provenance.items() if key != "warnings"}
    table = facts.get("coverage", {}).get("table")
    if table is not None:
        facts["coverage"] = {
            key: facts["coverage"][key] for key in facts["coverage"] if key != "table"
        }
    text = yaml.safe_dump(facts, sort_keys=False, allow_unicode=True)
    text += "" if table is None else coverage_table({"table": table}) + "\n"
    targets = {
        name: {"shape": target.shape, "positions": target.tokens}
        for name, target in factors.targets.items()
    }
    told = {"path": path, "kind": "factors", **factors.provenance, "targets": targets}
    return Result(text + factors_table(factors), told)


_SHOWN: dict[str, Callable[[Path], Result]] = {
    "a report": _report,
    "a selection": _selection,
    "an edited checkpoint": _edited,
    "a factor directory": _factors,
}
INSPECT = Verb("inspect", "show what a directory that curvedit wrote holds", _add_flags, _prepare)
