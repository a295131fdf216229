"""``curvedit run``: all four stages from one configuration file, each into its own directory.

The directory of the whole begins with ``config.yaml``, what each stage is made by. A stage's own
directory is written whole or not at all, so a run that was stopped goes on after the stages that
it finds there, if the configuration still asks for the same.
"""

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from curvedit import models, ranking
from curvedit.cli.config import options_from, record, settings_of
from curvedit.cli.evaluate import EVALUATE
from curvedit.cli.fit import FIT
from curvedit.cli.places import kind_of, members, require_place, require_room, size_of
from curvedit.cli.project import PROJECT
from curvedit.cli.rank import RANK, shares_of
from curvedit.cli.skeleton import read_skeleton, require_untied
from curvedit.cli.verb import Job, Options, Result, Verb
from curvedit.cli.yaml_files import ConfigError, read_yaml
from curvedit.files import write_whole
from curvedit.meter import span

_REQUIRED = {"model", "fit", "rank"}
_CONFIG = "config.yaml"


@dataclass(frozen=True)
class _Stage:
    """One stage: its verb, where it writes, the file that shows it is done, and what it makes."""

    verb: Verb
    folder: str
    shown_by: str
    makes: str = ""  # the option of later stages that names its directory


_STAGES = (
    _Stage(FIT, "factors", "manifest.json", "factors"),
    _Stage(RANK, "selection", "selection.json", "selection"),
    _Stage(PROJECT, "model", "curvedit.json", "model"),
    _Stage(EVALUATE, "report", "report.json"),
)
_NOT_OF_THE_RESULT = {
    *("out", "factors", "selection", "baseline"),
    *("progress", "snapshot_minutes", "graph_memory", "sums_on", "verb"),
}


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "stages",
        metavar="CONFIG",
        help="YAML with model and the sections fit, rank, project, evaluate",
    )
    parser.add_argument(
        "--out",
        required=True,
        metavar="DIR",
        help="new directory for everything, or that of the same run, to go on with it",
    )


def _prepare(options: Options) -> Job:
    out = Path(options.out)
    stages = _read_stages(options.stages, out)  # all are checked before the first one runs
    model = str(stages[0][1].model)
    if not Path(model).is_dir():
        raise FileNotFoundError(
            f"model: expected a checkpoint directory, of which project writes a copy, got {model}"
            f"{models.conversion_hint(model)}"
        )
    earlier = _earlier(out)
    if earlier is None:
        require_place(options.out, outside=model)
    found = _finished(stages, earlier or {}, out, options.stages)
    if not found:
        _require_consistent(stages[0][1], stages[1][1])
    jobs: list[tuple[_Stage, Options, Job]] = []
    made: set[str] = set()
    for stage, own in stages[len(found) :]:
        prepare = stage.verb.prepare
        with span(stage.verb.name, shown=own.progress):
            job = prepare(own, made=frozenset(made)) if made else prepare(own)
        jobs.append((stage, own, job))
        made.add(stage.makes)
    if "model" in made:
        require_room(out, len(shares_of(stages[1][1])) * size_of(model))
    return lambda: _run(options, out, stages, found, jobs)


def _run(
    options: Options,
    out: Path,
    stages: list[tuple[_Stage, Options]],
    found: list[_Stage],
    jobs: list[tuple[_Stage, Options, Job]],
) -> Result:
    stream = sys.stderr if options.json else sys.stdout
    facts: dict[str, Any] = {}
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / _CONFIG, _spelled(stages).encode())
    for stage, own in stages[: len(found)]:
        place = out / stage.folder
        if not (place / _CONFIG).is_file():  # stopped between the result and its record
            record(own, place)
        stream.write(f"{place}: {stage.verb.name} is done, kept\n")
        facts[stage.verb.name] = {"out": place, "kept": True}
    for stage, own, job in jobs:
        with span(stage.verb.name, shown=own.progress):
            result = job()
        stream.write(f"{result.text}\n")
        stream.flush()
        facts[stage.verb.name] = result.facts
    return Result("", {"out": out, "stages": facts})


def _read_stages(path: str | Path, out: Path) -> list[tuple[_Stage, Options]]:
    """Every stage to run, with its options.

    Raises:
        ConfigError: the file cannot be used.
    """
    content = read_yaml(path, str(path))
    known = _REQUIRED | {stage.verb.name for stage in _STAGES}
    if not isinstance(content, dict) or not set(content) >= _REQUIRED or set(content) - known:
        got = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise ConfigError(
            f"{path}: expected the keys model, fit and rank, with project and evaluate, got {got}"
        )
    model = content["model"]
    factors, selection, edited, report = (str(out / stage.folder) for stage in _STAGES)
    given = {
        "fit": {"model": model, "out": factors},
        "rank": {"model": model, "factors": factors, "out": selection},
        "project": {"model": model, "selection": selection, "out": edited},
        "evaluate": {"model": edited, "baseline": model, "out": report},
    }
    stages = []
    for stage in _STAGES:
        name = stage.verb.name
        if stage.verb is not EVALUATE or "evaluate" in content:
            parser = stage.verb.fill(argparse.ArgumentParser(prog=f"curvedit {name}"))
            section = {} if content.get(name) is None else content[name]
            _require_own_keys(f"{path}: {name}", section, given[name])
            sources = {f"{path}: {name}": section, str(path): given[name]}
            stages.append((stage, options_from(parser, name, sources)))
    return stages


def _require_consistent(fit: Options, rank: Options) -> None:
    """Refuse a fit that does not give what the later stages need.

    Raises:
        ValueError: the criterion needs other factors, a pattern of rank matches no target, or a
            target cannot be edited.
    """
    if rank.criterion == "ekfac" and fit.corrected is None:
        raise ValueError(
            "rank: criterion: expected 'corrected: sequence' in fit for 'ekfac', got none"
        )
    if rank.criterion == "weighted" and not fit.weighted:
        raise ValueError("rank: criterion: expected 'weighted: true' in fit for 'weighted'")
    modules = read_skeleton("model", fit.model, modules=True).modules
    if modules is not None:
        names = list(models.find_targets(modules, fit.targets))
        require_untied(modules, ranking.choose_targets(names, rank.targets, rank.skip))


def _require_own_keys(source: str, section: Any, given: Mapping[str, Any]) -> None:
    """Refuse what ``run`` decides itself, since it would be passed over."""
    own = sorted(set(given) & set(section)) if isinstance(section, dict) else []
    if own:
        raise ConfigError(
            f"{source}: expected no {', '.join(own)}, which the run gives, got {section[own[0]]!r}"
        )


def _earlier(out: Path) -> dict[_Stage, Options] | None:
    """What an earlier run into ``out`` was made by; None if there was none."""
    try:
        return dict(_read_stages(out / _CONFIG, out))
    except ConfigError:
        return None


def _finished(
    stages: list[tuple[_Stage, Options]],
    earlier: Mapping[_Stage, Options],
    out: Path,
    source: str,
) -> list[_Stage]:
    """The stages that an earlier run of the same configuration has finished.

    Raises:
        FileExistsError: a finished stage was made by other options, or from what is gone.
    """
    found: list[_Stage] = []
    for number, (stage, own) in enumerate(stages):
        place = out / stage.folder
        if not _is_whole(place, stage.shown_by):
            continue
        if stage not in earlier or len(found) < number:
            raise FileExistsError(
                f"out: expected {place} to follow from the stages before it, which are missing; "
                "remove it, or give another --out"
            )
        before, now = (_made_by(stage, each) for each in (earlier[stage], own))
        for key in sorted({*before, *now}):
            if before.get(key) != now.get(key):
                raise FileExistsError(
                    f"{stage.verb.name}: {key}: expected {before.get(key)!r}, by which {place} "
                    f"was made, got {now.get(key)!r} in {source}; remove {place} and what "
                    "follows from it, or give another --out"
                )
        found.append(stage)
    return found


def _is_whole(place: Path, shown_by: str) -> bool:
    return kind_of(place) not in ("nothing that exists", "a file") and bool(
        (place / shown_by).is_file() or members(place, shown_by)
    )


def _made_by(stage: _Stage, options: Options) -> dict[str, Any]:
    """The options that decide a stage's result; the model, for all, is named by the first."""
    left_out = _NOT_OF_THE_RESULT if stage.verb is FIT else _NOT_OF_THE_RESULT | {"model"}
    return {key: value for key, value in settings_of(options).items() if key not in left_out}


def _spelled(stages: list[tuple[_Stage, Options]]) -> str:
    """The configuration that replays the run, with every option."""
    content: dict[str, Any] = {"model": stages[0][1].model}
    for stage, own in stages:
        settings = {key: value for key, value in _made_by(stage, own).items() if key != "model"}
        content[stage.verb.name] = {**settings, "progress": own.progress}
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


RUN = Verb("run", "run all four stages from one configuration file", _add_flags, _prepare)
