"""``curvedit evaluate``: measure a checkpoint, and its baseline, into a report directory."""

import argparse
from pathlib import Path
from typing import Any

from curvedit import evaluation
from curvedit.cli.config import record
from curvedit.cli.inputs import (
    add_data_flags,
    add_loading_flags,
    add_suite_flags,
    load_model,
    suite,
)
from curvedit.cli.places import RECORD, members, read_record, require_device, require_place
from curvedit.cli.skeleton import read_skeleton, require_suite_fits
from curvedit.cli.verb import Job, Options, Result, Verb, add_progress_flag
from curvedit.evaluation import Suite
from curvedit.files import new_directory
from curvedit.report import Report


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        required=True,
        metavar="DIR",
        help="the edited checkpoint, or those of a sweep; or a .gguf file",
    )
    parser.add_argument("--baseline", metavar="DIR", help="the unedited checkpoint")
    parser.add_argument("--out", required=True, metavar="DIR", help="new report directory")
    add_suite_flags(parser)
    add_loading_flags(parser)
    add_data_flags(parser)
    add_progress_flag(parser)


def _prepare(options: Options, made: frozenset[str] = frozenset()) -> Job:
    require_device("device", options.device)
    out = require_place(options.out)
    known = [] if options.baseline is None else [("baseline", options.baseline)]
    if "model" not in made:
        known += [("model", str(place)) for place in _models(options.model)]
    skeletons = [read_skeleton(name, path) for name, path in known]
    for _, path in known:
        read_record(Path(path))
    measured_on = suite(argparse.Namespace(**{**vars(options), "model": known[-1][1]}))
    for skeleton in skeletons:
        require_suite_fits(skeleton, measured_on)
    return lambda: _evaluate(options, out, measured_on)


def _models(path: str) -> list[Path]:
    """A checkpoint, or those of a sweep."""
    place = Path(path)
    return [place] if (place / "config.json").is_file() else members(place, RECORD) or [place]


def _evaluate(options: Options, out: Path, measured_on: Suite) -> Result:
    """Measure the baseline once, then each model, into a report or one for each."""
    baseline = None
    if options.baseline is not None:
        unedited = load_model(options.baseline, options, quantised=True)
        baseline = evaluation.evaluate(unedited, measured_on, progress=options.progress)
        del unedited  # two models at a time may not fit
    measured = _models(options.model)
    is_sweep = measured != [Path(options.model)]
    lines, facts = [], []
    with new_directory("out", out) as part:
        for place in measured:
            model = load_model(str(place), options, quantised=True)
            report = evaluation.evaluate(
                model, measured_on, baseline=baseline, progress=options.progress
            )
            edit = read_record(place)
            report = report if edit is None else report.with_record(edit)
            name = place.name if is_sweep else ""
            report.save(part / name)
            lines += [f"{place}:"] if is_sweep else []
            lines += [report.table(), f"report: {out / name / 'report.html'}"]
            facts.append({"model": place, "out": out / name, **_told(report)})
        record(options, part)
    return Result("\n".join(lines), {"out": out, "reports": facts})


def _told(report: Report) -> dict[str, Any]:
    document = report.to_json()
    return {key: document[key] for key in ("before", "after", "data", "hashes", "stages")}


EVALUATE = Verb("evaluate", "measure a checkpoint beside its baseline", _add_flags, _prepare)
