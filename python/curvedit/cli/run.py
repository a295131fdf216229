"""``curvedit run``: all four stages from one configuration file, each into its own directory."""

import argparse
from pathlib import Path

from curvedit.checks import require_new_directory
from curvedit.cli.config import options_from, read_yaml
from curvedit.cli.evaluate import EVALUATE
from curvedit.cli.fit import FIT
from curvedit.cli.project import PROJECT
from curvedit.cli.rank import RANK
from curvedit.cli.verb import Options, Verb

_STAGES = (FIT, RANK, PROJECT, EVALUATE)
_REQUIRED = {"model", "fit", "rank"}


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "stages",
        metavar="CONFIG",
        help="YAML with model and the sections fit, rank, project, evaluate",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="new directory for everything")


def _execute(options: Options) -> None:
    out = require_new_directory("out", Path(options.out))
    stages = _read_stages(options.stages, out)  # all are checked before the first one runs
    for verb, own in stages:
        verb.execute(own)


def _read_stages(path: str, out: Path) -> list[tuple[Verb, Options]]:
    """Every stage to run, with its options."""
    content = read_yaml(path, path)
    known = _REQUIRED | {verb.name for verb in _STAGES}
    if not isinstance(content, dict) or not set(content) >= _REQUIRED or set(content) - known:
        got = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise ValueError(
            f"{path}: expected the keys model, fit and rank, with project and evaluate, got {got}"
        )
    model = content["model"]
    factors, selection, edited = (str(out / name) for name in ("factors", "selection", "model"))
    given = {
        "fit": {"model": model, "out": factors},
        "rank": {"factors": factors, "out": selection},
        "project": {"model": model, "selection": selection, "out": edited},
        "evaluate": {"model": edited, "baseline": model, "out": str(out / "report")},
    }
    stages = []
    for verb in _STAGES:
        if verb is not EVALUATE or "evaluate" in content:
            parser = verb.fill(argparse.ArgumentParser(prog=f"curvedit {verb.name}"))
            section = content.get(verb.name)
            sources = {
                f"{path}: {verb.name}": {} if section is None else section,
                path: given[verb.name],  # wins over the section
            }
            stages.append((verb, options_from(parser, verb.name, sources)))
    return stages


RUN = Verb("run", "run all four stages from one configuration file", _add_flags, _execute)
