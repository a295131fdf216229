"""What each verb of the command line does; flags are in ``cli``, the work is in the stages."""

import argparse
import functools
import json
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml

from curvedit import data, models
from curvedit.bench import MODELS, OPS, cases, draw_roofline, measure, repeat, table
from curvedit.checks import require_new_directory
from curvedit.doctor import examine, examine_facts
from curvedit.evaluation import Passages, Suite, evaluate
from curvedit.factors import Factors
from curvedit.files import new_directory, write_whole
from curvedit.fitting import fit
from curvedit.meter import peak_memory
from curvedit.ops import plan
from curvedit.projection import project, project_each
from curvedit.ranking import rank
from curvedit.report import Report
from curvedit.selection import Selection, load_selection

Options = argparse.Namespace
_NOT_RECORDED = ("run", "config", "traceback")


def say(text: str) -> None:
    """Print a command's result."""
    sys.stdout.write(text + "\n")


def run_fit(options: Options) -> None:
    """Checkpoint directory and data to a factor directory."""
    out = require_new_directory("out", Path(options.out))
    model = models.load_model(options.model, dtype=options.dtype, device=options.device)
    factors = fit(
        model,
        _batches(options.data, options),
        targets=options.targets,
        labels=options.labels,
        seed=options.seed,
        weighted=options.weighted,
        corrected=options.corrected,
        positions=options.positions,
        inputs_on=options.inputs_on,
        progress=options.progress,
    )
    factors.save(out)
    _record(options, out)
    facts = factors.provenance
    say(
        f"{out}: {len(factors)} targets, {facts['coverage']['parameters']:.0%} of the parameters, from "
        f"{facts['positions']:,} positions in {facts['seconds']:.1f} s, "
        f"peak {facts['peak_memory_bytes'] / 2**30:.2f} GiB"
    )


def run_bench(options: Options) -> None:
    """Throughput of the kernels beside their rivals."""
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    tokens = options.tokens or (16384 if device.type == "cuda" else 4096)
    shapes = [(d, d, 0) for d in options.d or []] + [MODELS[name] for name in options.models or []]
    if not shapes:
        shapes = list(MODELS.values()) if device.type == "cuda" else [MODELS["olmo2-1b"]]
    asked = options.ops or OPS
    if options.backend is not None:
        only = (options.backend, getattr(torch, options.dtype))
        case = next(cases(asked[0], shapes, tokens=tokens, device=device, only=only))
        taken = repeat(case, device=device, times=options.repeat)
        say(f"{case.op}, {options.backend}, {options.dtype}, {case.shape}: {taken:.4f} ms a call")
        return
    out = None if options.out is None else require_new_directory("out", Path(options.out))
    every = (case for op in asked for case in cases(op, shapes, tokens=tokens, device=device))
    ceilings, rows = measure(every, device=device, rounds=options.rounds)
    facts = examine_facts()
    rates = ", ".join(
        f"{rate:.3g} TFLOP/s with {name} input" for name, rate in ceilings.tflops.items()
    )
    say(f"ceilings: copy {ceilings.copy_gigabytes_per_second:.1f} GB/s, product {rates}")
    say(table(rows))
    if out is not None:
        with new_directory("out", out) as part:
            content = {
                "machine": facts,
                "ceilings": asdict(ceilings),
                "rows": [asdict(row) for row in rows],
            }
            (part / "bench.json").write_text(json.dumps(content, indent=1))
            where = facts["gpu"] if device.type == "cuda" else facts["cpu kernels"]
            for op in asked:
                drawing = draw_roofline(
                    ceilings, [row for row in rows if row.op == op], f"{op}, {where}"
                )
                (part / f"roofline-{op}.svg").write_text(drawing)


def run_doctor(options: Options) -> None:
    """State of the installation; fails where a kernel's numbers are wrong."""
    found = examine()
    say(json.dumps(asdict(found), indent=1) if options.json else str(found))
    if not found.is_sound:
        wrong = [
            f"{check.op} ({check.backend}, {check.device})"
            for check in found.checks
            if not check.is_sound
        ]
        raise RuntimeError(f"doctor: wrong numbers from {', '.join(wrong)}")


def run_rank(options: Options) -> None:
    """Factor directory to a selection directory, or to one for each share of a sweep."""
    out = require_new_directory("out", Path(options.out))
    shares = [options.keep_mass] if options.sweep is None else parse_sweep(options.sweep)
    factors = Factors.load(options.factors)
    needs_model = options.criterion == "svd" and options.model is not None
    model = (
        models.load_model(options.model, dtype=options.dtype, device="cpu") if needs_model else None
    )
    started = time.perf_counter()
    selections = [
        rank(
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
    say(_decomposition(factors, selections[0], time.perf_counter() - started))
    if options.sweep is None:
        selections[0].save(out)
        say(_selection_table(selections[0]))
    else:
        with new_directory("out", out) as part:
            for share, selection in zip(shares, selections, strict=True):
                selection.save(part / f"keep-{share:g}")
        say(_sweep_table(selections))
    _record(options, out)


def parse_sweep(text: str) -> list[float]:
    """The shares of ``FROM:TO:STEP``, both ends included.

    Raises:
        ValueError: it is not three numbers that make at least one share in (0, 1].
    """
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


def run_project(options: Options) -> None:
    """Checkpoint directory and selection, or sweep of them, to edited checkpoint directories."""
    out, source = Path(options.out), Path(options.selection)
    sweep = [] if (source / "selection.json").is_file() else sorted(source.glob("*/selection.json"))
    if not sweep:
        edit = project(
            options.model, load_selection(source), out=out, removed_scale=options.removed_scale
        )
        _record(options, out)
        say(f"{out}: {len(edit.targets)} targets edited in {edit.seconds:.1f} s")
        return
    require_new_directory("out", out)
    selections = [load_selection(path.parent) for path in sweep]
    places = [out / path.parent.name for path in sweep]
    for edit in project_each(
        options.model, selections, out=places, removed_scale=options.removed_scale
    ):
        say(f"{edit.out}: {len(edit.targets)} targets edited in {edit.seconds:.1f} s")
    _record(options, out)


def run_evaluate(options: Options) -> None:
    """Measure a checkpoint, and the baseline it is compared with, into a report directory."""
    out = require_new_directory("out", Path(options.out))
    suite = _suite(options)
    baseline = None
    if options.baseline is not None:
        baseline = evaluate(
            models.load_model(options.baseline, dtype=options.dtype, device=options.device), suite
        )
    model = models.load_model(options.model, dtype=options.dtype, device=options.device)
    report = evaluate(model, suite, baseline=baseline)
    record = Path(options.model) / "curvedit.json"
    if record.is_file():
        report = report.with_record(json.loads(record.read_text()))
    report.save(out)
    _record(options, out)
    say(report.table())
    say(f"report: {out / 'report.html'}")


def run_demo(options: Options) -> None:
    """The whole workflow on a model trained on the spot."""
    from curvedit.demo.run import run_demo as run

    out = Path(options.out)
    report = run(out, progress=options.progress)
    say(report.table())
    say(f"report: {out / 'report.html'}")


def run_merge(options: Options) -> None:
    """Factor directories of disjoint data to one of their union."""
    merged = Factors.merge(Factors.load(directory) for directory in options.factors)
    merged.save(options.out)
    _record(options, Path(options.out))
    say(f"{options.out}: {len(merged)} targets from {len(options.factors)} factor directories")


def run_inspect(options: Options) -> None:
    """Say what a directory holds."""
    path = Path(options.path)
    if (path / "report.json").is_file():
        say(Report.load(path).table())
    elif (path / "selection.json").is_file():
        say(_selection_table(load_selection(path)))
    else:
        factors = Factors.load(path)
        facts = {key: value for key, value in factors.provenance.items() if key != "warnings"}
        say(yaml.safe_dump(facts, sort_keys=False, allow_unicode=True).rstrip())
        for name, target in factors.targets.items():
            say(f"{name}  {target.shape[0]} x {target.shape[1]}  {target.tokens:,} positions")


def _selection_table(selection: Any) -> str:
    lines = [f"{key}: {selection.recipe[key]}" for key in ("criterion", "keep_mass", "scope")]
    for name, target in selection.items():
        rows, columns = target.shape
        share = target.kept / (rows * columns)
        lines.append(
            f"{name}  {rows} x {columns}  keeps {share:.2%} of its components, mass {target.mass:.4f}"
        )
    return "\n".join(lines)


def _decomposition(factors: Factors, selection: Selection, seconds: float) -> str:
    """Seconds, peak memory, and the worst that the bases' certificates say."""
    certificates = [
        factors.certificate(kind, name) for name in selection for kind in selection.kinds or ()
    ]
    text = f"ranked in {seconds:.1f} s, peak {peak_memory(torch.device('cpu')) / 2**30:.2f} GiB"
    if not certificates:
        return text
    worst = {key: max(each[key] for each in certificates) for key in ("residual", "orthogonality")}
    singular = sum(each["condition"] is None for each in certificates)
    retried = sum(each["retried"] for each in certificates)
    return (
        f"{text}; {len(certificates)} bases: residual at most {worst['residual']:.0e}, orthogonality "
        f"{worst['orthogonality']:.0e}, {singular} singular, {retried} decomposed twice"
    )


def _sweep_table(selections: list[Selection]) -> str:
    """One line per share: what is kept, and how many operations its edit takes."""
    recipe = selections[0].recipe
    lines = [f"{key}: {recipe[key]}" for key in ("criterion", "scope")] + [
        "keep_mass  components  operations of dense"
    ]
    for selection in selections:
        targets = selection.values()
        kept = sum(target.kept for target in targets) / sum(
            target.shape[0] * target.shape[1] for target in targets
        )
        plans = [
            plan(target.limits.numpy(), target.shape[1])
            for target in targets
            if target.limits is not None
        ]
        cost = (
            sum(found.operations for found in plans) / sum(found.dense for found in plans)
            if plans
            else 1.0
        )
        lines.append(f"{selection.recipe['keep_mass']:9g}  {kept:10.2%}  {cost:19.2%}")
    return "\n".join(lines)


def _record(options: Options, out: Path) -> None:
    """Write the ``config.yaml`` that replays this run."""
    settings = {
        key: value
        for key, value in vars(options).items()
        if key not in _NOT_RECORDED and value is not None
    }
    write_whole(
        out / "config.yaml", yaml.safe_dump(settings, sort_keys=False, allow_unicode=True).encode()
    )


def _batches(paths: list[str], options: Options) -> Iterable[Any]:
    if any(path.endswith(".safetensors") for path in paths):
        if len(paths) != 1:
            raise ValueError(f"data: expected one .safetensors file of images, got {paths}")
        return data.image_batches(paths[0], batch_size=options.batch_size)
    source: Any = paths[0] if len(paths) == 1 else [Path(path) for path in paths]
    return data.token_batches(
        source,
        tokenizer=_tokenizer(options),
        window=options.window,
        batch_size=options.batch_size,
        max_tokens=options.max_tokens,
        text_field=options.text_field,
        split=options.split,
        cache=options.cache,
    )


def _tokenizer(options: Options) -> Any:
    return models.load_tokenizer(options.tokenizer or options.model)


def _suite(options: Options) -> Suite:
    splits = {}
    for entry in options.splits or []:
        name, separator, path = entry.partition("=")
        if not separator:
            raise ValueError(f"splits: expected NAME=FILE, got {entry!r}")
        splits[name] = data.image_batches(path, batch_size=options.batch_size)
    return Suite(
        passages=None if options.passages is None else _passages(options),
        text=None if options.text is None else _batches(options.text, options),
        splits=splits,
        batch_size=options.batch_size,
    )


def _passages(options: Options) -> Passages:
    @functools.cache
    def tokenizer() -> Any:
        found = _tokenizer(options)
        if found is None:
            raise ValueError(
                f"tokenizer: expected one for the text of {options.passages}; give --tokenizer"
            )
        return found

    return Passages.read(
        options.passages,
        encode=lambda text: tokenizer()(text, add_special_tokens=False)["input_ids"],
        prefix=options.prefix_length,
        suffix=options.suffix_length,
        text_field=options.text_field,
    )
