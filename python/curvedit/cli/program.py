"""The command line: the package's verbs, with every flag also readable from a YAML file.

A flag ``--batch-size 8`` is the key ``batch_size: 8`` of the file given with ``--config``; flags on
the command line win. Each run writes, beside its output, the ``config.yaml`` that replays it.
"""

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from curvedit.bench import MODELS, OPS
from curvedit.checks import require_new_directory
from curvedit.cli import commands
from curvedit.fitting import PER
from curvedit.ranking import CRITERIA, SCOPES


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb.

    Args:
        argv: The words after the program's name; None takes the process's own.

    Returns:
        0 done, 1 refused or failed (the reason is on standard error), 2 wrong usage.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser()
    try:
        options = parser.parse_args(_with_config(words))
        if options.traceback:
            options.run(options)
            return 0
        try:
            options.run(options)
        except (ValueError, TypeError, KeyError, RuntimeError, OSError, ImportError) as error:
            message = error.args[0] if isinstance(error, KeyError) and error.args else error
            sys.stderr.write(f"curvedit {options.verb}: error: {message}\n")
            return 1
    except _ConfigError as error:
        parser.error(str(error))
    return 0


def build_parser() -> argparse.ArgumentParser:
    """All verbs and their flags."""
    parser = argparse.ArgumentParser(
        prog="curvedit", description="Edit trained networks by the curvature of their loss."
    )
    parser.add_argument("--version", action="version", version=f"curvedit {version('curvedit')}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    _fit(_verb(verbs, "fit", commands.run_fit, "checkpoint and data to factors"))
    _rank(_verb(verbs, "rank", commands.run_rank, "factors to a selection of components"))
    _project(
        _verb(
            verbs,
            "project",
            commands.run_project,
            "checkpoint and selection to an edited checkpoint",
        )
    )
    _evaluate(
        _verb(verbs, "evaluate", commands.run_evaluate, "measure a checkpoint beside its baseline")
    )
    whole = _verb(verbs, "run", _run_all, "all four from one configuration file")
    whole.add_argument(
        "stages",
        metavar="CONFIG",
        help="YAML with model and the sections fit, rank, project, evaluate",
    )
    whole.add_argument("--out", required=True, metavar="DIR", help="new directory for everything")
    demo = _verb(verbs, "demo", commands.run_demo, "train a small model that recites, and edit it")
    demo.add_argument(
        "--out",
        default="demo",
        metavar="DIR",
        help="where to work; its trained model is used again",
    )
    _quiet(demo)
    merge = _verb(verbs, "merge", commands.run_merge, "add up factors of disjoint data")
    merge.add_argument("--factors", nargs="+", required=True, metavar="DIR")
    merge.add_argument("--out", required=True, metavar="DIR", help="new directory")
    inspect = _verb(
        verbs,
        "inspect",
        commands.run_inspect,
        "say what a factor directory, selection or report holds",
    )
    inspect.add_argument("path", metavar="DIR")
    bench = _verb(verbs, "bench", commands.run_bench, "time the kernels beside their rivals")
    bench.add_argument(
        "--ops", nargs="+", choices=OPS, metavar="OP", help=f"{', '.join(OPS)} (all)"
    )
    shapes = f"{', '.join(MODELS)} (all on a GPU, the first on a CPU)"
    bench.add_argument("--models", nargs="+", choices=MODELS, metavar="NAME", help=shapes)
    bench.add_argument(
        "--d", nargs="+", type=int, metavar="N", help="these widths instead, of square maps"
    )
    bench.add_argument(
        "--tokens", type=int, metavar="N", help="rows of the input (16384 on a GPU, 4096 on a CPU)"
    )
    bench.add_argument(
        "--rounds", type=int, default=7, metavar="N", help="turns of each candidate (7)"
    )
    bench.add_argument(
        "--device", metavar="NAME", help="cpu or cuda; by default CUDA where there is one"
    )
    bench.add_argument(
        "--out", metavar="DIR", help="new directory for bench.json and roofline plots"
    )
    bench.add_argument(
        "--backend", metavar="NAME", help="only run this backend, for a profiler to attach to"
    )
    bench.add_argument("--repeat", type=int, default=10, metavar="N", help="so many times (10)")
    bench.add_argument(
        "--dtype",
        default="bfloat16",
        choices=["float32", "bfloat16", "float16"],
        help="of its input",
    )
    doctor = _verb(
        verbs,
        "doctor",
        commands.run_doctor,
        "say what is installed, and test every kernel's numbers",
    )
    doctor.add_argument("--json", action="store_true", help="as JSON")
    return parser


def _verb(verbs: Any, name: str, run: Any, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = verbs.add_parser(
        name, help=text, description=text.capitalize() + "."
    )
    parser.set_defaults(run=run)
    parser.add_argument("--config", metavar="FILE", help="YAML with any of these flags")
    parser.add_argument("--traceback", action="store_true", help="show where an error was raised")
    return parser


def _loading(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"]
    )
    parser.add_argument(
        "--device", metavar="NAME", help="cpu, cuda, …; by default CUDA where there is one"
    )


def _data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tokenizer", metavar="DIR", help="by default the model's own")
    parser.add_argument("--window", type=int, default=512, help="tokens per window (512)")
    parser.add_argument(
        "--batch-size", type=int, default=8, help="windows, passages or images at a time (8)"
    )
    parser.add_argument("--max-tokens", type=int, metavar="N", help="stop after so many tokens")
    parser.add_argument(
        "--text-field", default="text", metavar="NAME", help="of .jsonl rows (text)"
    )
    parser.add_argument(
        "--split", default="train", metavar="NAME", help="of an hf:NAME dataset (train)"
    )
    parser.add_argument(
        "--cache", metavar="DIR", help="keep tokens here, under a hash of the files"
    )


def _quiet(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--no-progress", dest="progress", action="store_false", help="no progress bars"
    )


def _fit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", required=True, metavar="DIR", help="checkpoint directory or hub name"
    )
    parser.add_argument(
        "--data",
        required=True,
        nargs="+",
        metavar="PATH",
        help=".txt, .jsonl, a directory, hf:NAME[:CONFIG]; .safetensors of images",
    )
    parser.add_argument(
        "--targets",
        required=True,
        nargs="+",
        metavar="PATTERN",
        help="'*.mlp.{gate,up}_proj', 'h.{3..5}.*'",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="new factor directory")
    parser.add_argument("--labels", default="sampled", choices=["sampled", "data"])
    parser.add_argument("--seed", type=int, default=0, help="of the label draws (0)")
    parser.add_argument(
        "--positions", default="all", choices=["all", "first"], help="of a classifier (all)"
    )
    parser.add_argument(
        "--no-weighted", dest="weighted", action="store_false", help="no norm-weighted factors"
    )
    parser.add_argument(
        "--corrected",
        choices=PER,
        help="measure the components' own curvature too, for rank --criterion ekfac",
    )
    parser.add_argument(
        "--inputs-on", metavar="DEVICE", help="where block inputs wait, for example cpu"
    )
    _loading(parser)
    _data(parser)
    _quiet(parser)


def _rank(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--factors", required=True, metavar="DIR")
    share = parser.add_mutually_exclusive_group(required=True)
    share.add_argument("--keep-mass", type=float, metavar="RHO", help="share to keep, in (0, 1]")
    share.add_argument(
        "--sweep",
        metavar="FROM:TO:STEP",
        help="several shares, each in a directory of its own in --out",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="new selection directory")
    parser.add_argument("--criterion", default="curvature", choices=CRITERIA)
    parser.add_argument("--scope", default="target", choices=SCOPES)
    parser.add_argument("--targets", nargs="+", metavar="PATTERN", help="of the fitted ones (all)")
    parser.add_argument("--model", metavar="DIR", help="for --criterion svd")
    parser.add_argument("--seed", type=int, default=0, help="of --criterion random (0)")
    parser.add_argument(
        "--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"]
    )
    _quiet(parser)


def _project(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", required=True, metavar="DIR", help="checkpoint directory with safetensors"
    )
    parser.add_argument(
        "--selection", required=True, metavar="DIR", help="what rank wrote, also of a sweep"
    )
    parser.add_argument(
        "--out",
        required=True,
        metavar="DIR",
        help="new checkpoint directory; of a sweep, of several",
    )
    parser.add_argument(
        "--removed-scale",
        type=float,
        default=0.0,
        metavar="ALPHA",
        help="keep so much of the rest (0)",
    )


def _evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="DIR", help="the edited checkpoint")
    parser.add_argument("--baseline", metavar="DIR", help="the unedited checkpoint")
    parser.add_argument("--out", required=True, metavar="DIR", help="new report directory")
    parser.add_argument(
        "--passages", metavar="FILE", help=".jsonl rows: prefix_ids and suffix_ids, or text"
    )
    parser.add_argument(
        "--prefix-length",
        type=int,
        default=64,
        metavar="N",
        help="tokens given of a text passage (64)",
    )
    parser.add_argument(
        "--suffix-length", type=int, default=48, metavar="N", help="tokens to recite of it (48)"
    )
    parser.add_argument("--text", nargs="+", metavar="PATH", help="held-out text, as --data of fit")
    parser.add_argument(
        "--splits", nargs="+", metavar="NAME=FILE", help="labelled images, .safetensors"
    )
    _loading(parser)
    _data(parser)


def _run_all(options: argparse.Namespace) -> None:
    """All four stages from one configuration file, each into its own directory under ``out``."""
    out = require_new_directory("out", Path(options.out))
    content = yaml.safe_load(Path(options.stages).read_text())
    known = {"model", "fit", "rank", "project", "evaluate"}
    if not isinstance(content, dict) or not {"model", "fit", "rank"} <= set(content) <= known:
        got = sorted(content) if isinstance(content, dict) else type(content).__name__
        raise ValueError(
            f"{options.stages}: expected the keys model, fit and rank, with project and evaluate, got {got}"
        )
    model = content["model"]
    places = {
        "fit": {"model": model, "out": out / "factors"},
        "rank": {"factors": out / "factors", "out": out / "selection"},
        "project": {"model": model, "selection": out / "selection", "out": out / "model"},
        "evaluate": {"model": out / "model", "baseline": model, "out": out / "report"},
    }
    for verb, given in places.items():
        if verb != "evaluate" or verb in content:
            stage = build_parser().parse_args(
                [verb, *as_flags({**(content.get(verb) or {}), **given})]
            )
            stage.run(stage)


class _ConfigError(Exception):
    pass


def _with_config(words: list[str]) -> list[str]:
    """Put the flags of a ``--config`` file right after the verb, so that those given by hand win."""
    if "--config" not in words[1:]:
        return words
    place = words.index("--config")
    if place + 1 >= len(words):
        return words
    path = Path(words[place + 1])
    try:
        content = yaml.safe_load(path.read_text()) or {}
    except (OSError, yaml.YAMLError) as error:
        raise _ConfigError(f"--config {path}: {error}") from error
    if not isinstance(content, dict):
        raise _ConfigError(
            f"--config {path}: expected keys and values, got {type(content).__name__}"
        )
    return [words[0], *as_flags(content), *words[1:]]


def as_flags(settings: dict[str, Any]) -> list[str]:
    """Settings as words of the command line; a false ``progress`` is ``--no-progress``."""
    words: list[str] = []
    for key, value in settings.items():
        flag = "--" + key.replace("_", "-")
        if key == "verb" or value is None or value is True:
            continue
        if value is False:
            words.append("--no-" + key.replace("_", "-"))
        elif isinstance(value, list):
            words += [flag, *map(str, value)]
        else:
            words += [flag, str(value)]
    return words
