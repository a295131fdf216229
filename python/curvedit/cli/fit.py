"""``curvedit fit``: checkpoint directory and data to a factor directory."""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch.distributed import ProcessGroup

from curvedit import fitting, models
from curvedit.cli.config import record
from curvedit.cli.inputs import add_data_flags, add_loading_flags, batches, load_model
from curvedit.cli.places import require_device, require_place, require_room
from curvedit.cli.processes import joined, number_and_count
from curvedit.cli.skeleton import read_skeleton, require_data_fits
from curvedit.cli.tables import coverage_table
from curvedit.cli.verb import Job, Options, Result, Verb, add_progress_flag, require_at_least


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", required=True, metavar="DIR", help="checkpoint directory, hub name or .gguf file"
    )
    parser.add_argument(
        "--data",
        required=True,
        nargs="+",
        metavar="PATH",
        help=".txt or .jsonl files, a directory of them, hf:NAME[:CONFIG], "
        "or one .safetensors file of images",
    )
    parser.add_argument(
        "--targets",
        required=True,
        nargs="+",
        metavar="PATTERN",
        help="names of linear maps, such as '*.mlp.{gate,up}_proj' or 'h.{3..5}.*'",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="new factor directory")
    parser.add_argument(
        "--labels",
        default="sampled",
        choices=["sampled", "data"],
        help="draw labels from the model, or take the data's own (sampled)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seeds the label draws (0)")
    parser.add_argument(
        "--positions",
        default="all",
        choices=["all", "first"],
        help="positions of a classifier that count: all, or only the first, CLS (all)",
    )
    parser.add_argument(
        "--no-weighted", dest="weighted", action="store_false", help="skip norm-weighted factors"
    )
    parser.add_argument(
        "--corrected",
        choices=fitting.PER,
        help="also measure the components' own curvature, for rank --criterion ekfac",
    )
    parser.add_argument(
        "--inputs-on",
        metavar="DEVICE",
        help="where block inputs wait for the backward pass, for example cpu",
    )
    parser.add_argument(
        "--sums-on",
        metavar="DEVICE",
        help="where the sums are kept between batches: cpu, if the GPU has no room for them",
    )
    parser.add_argument(
        "--graph-memory",
        type=float,
        default=0.0,
        metavar="GIB",
        help="keep so much of the blocks' graphs, besides the last block's, rather than build them "
        "again, which takes about a fifth of the time (0)",
    )
    parser.add_argument(
        "--min-coverage",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="fail unless the targets hold this share of the parameters, from 0 to 1 (0)",
    )
    parser.add_argument(
        "--snapshot-minutes",
        type=float,
        default=10.0,
        metavar="M",
        help="keep what is done so far in OUT.unfinished, from which the same command goes on "
        "after a stop, every M minutes (10; 0 for never)",
    )
    add_loading_flags(parser)
    add_data_flags(parser)
    add_progress_flag(parser)


def _prepare(options: Options) -> Job:
    require_at_least(options, seed=0, snapshot_minutes=0, graph_memory=0)
    require_device("device", options.device)
    require_device("inputs_on", options.inputs_on)
    require_device("sums_on", options.sums_on)
    out = require_place(options.out)
    skeleton = read_skeleton("model", options.model, modules=True)
    if skeleton.modules is not None:
        chosen = models.find_targets(skeleton.modules, options.targets)
        shapes = {name: models.shape_of(module) for name, module in chosen.items()}
        extra = {"weighted": options.weighted, "corrected": options.corrected is not None}
        require_room(out, fitting.least_bytes(shapes, **extra))
        fitting.require_coverage(skeleton.modules, chosen, options.min_coverage)
    data = batches(options.data, options)
    require_data_fits("data", skeleton, data)
    return lambda: _fit(options, out, data)


def _fit(options: Options, out: Path, data: Iterable[Any]) -> Result:
    with joined() as group:
        return _fit_with(group, options, out, data)


def _fit_with(
    group: ProcessGroup | None, options: Options, out: Path, data: Iterable[Any]
) -> Result:
    minutes = options.snapshot_minutes
    snapshots = out.with_name(f"{out.name}.unfinished")
    model = load_model(options.model, options, quantised=True)
    factors = fitting.fit(
        model,
        data,
        targets=options.targets,
        labels=options.labels,
        seed=options.seed,
        weighted=options.weighted,
        corrected=options.corrected,
        positions=options.positions,
        min_coverage=options.min_coverage,
        inputs_on=options.inputs_on,
        sums_on=options.sums_on,
        graph_bytes=int(options.graph_memory * 2**30),
        snapshots=snapshots if minutes else None,
        snapshot_every=60 * minutes,
        group=group,
        progress=options.progress,
    )
    if number_and_count()[0]:
        return Result("")
    factors.save(out)
    record(options, out)
    fitting.discard(snapshots)
    facts = factors.provenance
    text = coverage_table(facts["coverage"]) + (
        f"\n{out}: {len(factors)} targets, "
        f"{facts['coverage']['parameters']:.0%} of the parameters, "
        f"from {facts['positions']:,} positions in {facts['seconds']:.1f} s, "
        f"peak {facts['peak_memory_bytes'] / 2**30:.2f} GiB"
    )
    told = ("coverage", "samples", "positions", "seconds", "peak_memory_bytes", "warnings")
    return Result(
        text, {"out": out, "targets": list(factors), **{key: facts.get(key) for key in told}}
    )


FIT = Verb(
    "fit", "accumulate the factors of a checkpoint's linear maps over data", _add_flags, _prepare
)
