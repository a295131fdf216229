"""``curvedit fit``: checkpoint directory and data to a factor directory."""

import argparse
from pathlib import Path

from curvedit import fitting
from curvedit.checks import require_new_directory
from curvedit.cli.config import record
from curvedit.cli.inputs import add_data_flags, add_loading_flags, batches, load_model
from curvedit.cli.verb import Options, Verb, add_progress_flag, say


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", required=True, metavar="DIR", help="checkpoint directory or hub name"
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
    add_loading_flags(parser)
    add_data_flags(parser)
    add_progress_flag(parser)


def _execute(options: Options) -> None:
    out = require_new_directory("out", Path(options.out))
    model = load_model(options.model, options)
    factors = fitting.fit(
        model,
        batches(options.data, options),
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
    record(options, out)
    facts = factors.provenance
    say(
        f"{out}: {len(factors)} targets, "
        f"{facts['coverage']['parameters']:.0%} of the parameters, "
        f"from {facts['positions']:,} positions in {facts['seconds']:.1f} s, "
        f"peak {facts['peak_memory_bytes'] / 2**30:.2f} GiB"
    )


FIT = Verb(
    "fit", "accumulate the factors of a checkpoint's linear maps over data", _add_flags, _execute
)
