"""What each verb of the command line does; parsing is in ``cli``, the work in the stages."""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from curvedit import data, models
from curvedit.check import require_new_directory
from curvedit.evaluation import Passages, Suite, evaluate
from curvedit.factors import Factors
from curvedit.files import write_whole
from curvedit.fitting import fit
from curvedit.projection import project
from curvedit.ranking import rank
from curvedit.report import Report
from curvedit.store import load_selection, save_selection

Options = argparse.Namespace


def say(text: str) -> None:
    """Print one line of a command's result."""
    sys.stdout.write(text + "\n")


def run_fit(options: Options) -> None:
    """Checkpoint directory and data to a factor directory."""
    out = require_new_directory("out", Path(options.out))
    model = models.load_model(options.model, dtype=options.dtype, device=options.device)
    factors = fit(
        model,
        _batches(options),
        targets=options.targets,
        labels=options.labels,
        seed=options.seed,
        weighted=options.weighted,
        positions=options.positions,
        inputs_on=options.inputs_on,
        progress=options.progress,
    )
    factors.save(out)
    _record(options, out)
    facts = factors.provenance
    say(
        f"{out}: {len(factors)} targets from {facts['positions']:,} positions in {facts['seconds']:.1f} s, "
        f"{facts['coverage']['parameters']:.0%} of the parameters, peak {facts['peak_memory_bytes'] / 2**30:.2f} GiB"
    )


def run_rank(options: Options) -> None:
    """Factor directory to a selection directory."""
    out = require_new_directory("out", Path(options.out))
    factors = Factors.load(options.factors)
    model = None
    if options.criterion == "svd":
        if options.model is None:
            raise ValueError("model: the criterion 'svd' reads the weights; give the checkpoint with --model")
        model = models.load_model(options.model, dtype=options.dtype, device="cpu")
    selection = rank(
        factors,
        keep_mass=options.keep_mass,
        criterion=options.criterion,
        scope=options.scope,
        targets=options.targets,
        model=model,
        seed=options.seed,
    )
    save_selection(selection, out, factors)
    _record(options, out)
    for name, target in selection.items():
        rows, columns = target.shape
        say(f"{name}  {rows} x {columns}  kept {target.kept / (rows * columns):.2%} of components, mass {target.mass:.4f}")


def run_project(options: Options) -> None:
    """Checkpoint directory and selection to an edited checkpoint directory."""
    edit = project(
        options.model, load_selection(options.selection), out=options.out, removed_scale=options.removed_scale
    )
    _record(options, Path(options.out))
    say(f"{options.out}: {len(edit.targets)} targets edited in {edit.seconds:.1f} s")


def run_evaluate(options: Options) -> None:
    """Measure a checkpoint, and the baseline it is compared with, into a report directory."""
    out = require_new_directory("out", Path(options.out))
    suite = _suite(options)
    baseline = None
    if options.baseline is not None:
        baseline = evaluate(models.load_model(options.baseline, dtype=options.dtype, device=options.device), suite)
    model = models.load_model(options.model, dtype=options.dtype, device=options.device)
    report = evaluate(model, suite, baseline=baseline)
    recipe = Path(options.model) / "curvedit.json"
    if recipe.is_file():
        report = report.with_recipe(json.loads(recipe.read_text()))
    report.save(out)
    _record(options, out)
    say(report.table())
    say(f"report: {out / 'report.html'}")


def run_all(options: Options) -> None:
    """All four stages from one configuration file, into one directory."""
    out = require_new_directory("out", Path(options.out))
    raise NotImplementedError(out)
