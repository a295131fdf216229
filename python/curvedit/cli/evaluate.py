"""``curvedit evaluate``: measure a checkpoint, and its baseline, into a report directory."""

import argparse
import json
from pathlib import Path

from curvedit import evaluation
from curvedit.checks import require_new_directory
from curvedit.cli.config import record
from curvedit.cli.inputs import (
    add_data_flags,
    add_loading_flags,
    add_suite_flags,
    load_model,
    suite,
)
from curvedit.cli.verb import Options, Verb, say


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="DIR", help="the edited checkpoint")
    parser.add_argument("--baseline", metavar="DIR", help="the unedited checkpoint")
    parser.add_argument("--out", required=True, metavar="DIR", help="new report directory")
    add_suite_flags(parser)
    add_loading_flags(parser)
    add_data_flags(parser)


def _execute(options: Options) -> None:
    out = require_new_directory("out", Path(options.out))
    measured_on = suite(options)
    baseline = None
    if options.baseline is not None:
        baseline = evaluation.evaluate(load_model(options.baseline, options), measured_on)
    model = load_model(options.model, options)
    report = evaluation.evaluate(model, measured_on, baseline=baseline)
    edit = Path(options.model) / "curvedit.json"
    if edit.is_file():
        report = report.with_record(json.loads(edit.read_text()))
    report.save(out)
    record(options, out)
    say(report.table())
    say(f"report: {out / 'report.html'}")


EVALUATE = Verb("evaluate", "measure a checkpoint beside its baseline", _add_flags, _execute)
