"""A study as a table of text for the terminal."""

import textwrap
from collections.abc import Mapping
from typing import Any

from curvedit.evaluation import Metric
from curvedit.study.reading import (
    HELD_OUT,
    RELATED,
    TUNED,
    Arm,
    finite,
    percent,
    read_arms,
    read_metrics,
    rise,
    spelled,
)
from curvedit.study.words import finding, title_of

_WIDTH = 120


def render(document: Mapping[str, Any]) -> str:
    """What a ``study.json`` document found, its goals, and one row per edit.

    Args:
        document: The record of a study.

    Returns:
        Lines of at most 120 columns.
    """
    blocks = ["\n".join(_wrapped(title_of(document))), "\n".join(_wrapped(finding(document)))]
    blocks += ["\n".join(lines) for lines in (_goals(document), _rows(document)) if lines]
    warnings = [line for text in document.get("warnings") or () for line in _wrapped(f"! {text}")]
    return "\n\n".join([*blocks, *(["\n".join(warnings)] if warnings else [])])


def _wrapped(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(text, _WIDTH, subsequent_indent=indent) or [""]


def _goals(document: Mapping[str, Any]) -> list[str]:
    lines = []
    for goal in document.get("goals") or ():
        figure = finite(goal.get("figure"))
        met = goal.get("met")
        mark = "open  " if met is None else "met   " if met else "missed"
        arm = f" ({goal['arm']})" if goal.get("arm") else ""
        said = f"{goal['goal']}: {'not measured' if figure is None else f'{figure:.3g}'}{arm}"
        lines += _wrapped(f"{mark}  {said}", indent=" " * 8)
    return lines


def _rows(document: Mapping[str, Any]) -> list[str]:
    """The edits, aligned; names are cut where the numbers leave too little room."""
    before, arms = read_metrics(document.get("before")), read_arms(document)
    models = [before, *(arm.metrics for arm in arms)]
    shown = [
        ["right,", "tuned on", *(_metric(TUNED, metrics) for metrics in models)],
        ["right,", "same sources", *(_metric(RELATED, metrics) for metrics in models)],
        ["right,", "held out", *(_metric(HELD_OUT, metrics, ends=True) for metrics in models)],
        ["near,", "held out", *(_metric("near: test", metrics) for metrics in models)],
        ["KL,", "nats", *(_metric("kl", metrics) for metrics in models)],
        ["perplexity,", "change in %", _base(before), *(_rise(before, arm) for arm in arms)],
        ["weights'", "change", "-", *(_change(arm) for arm in arms)],
    ]
    columns = [column for column in shown if any(cell != "-" for cell in column[2:])]
    if not columns:
        return []
    widths = [max(map(len, column)) for column in columns]
    names = ["", "", "unedited", *(arm.name + (" *" if arm.missed else "") for arm in arms)]
    room = max(12, _WIDTH - sum(widths) - 2 * len(widths))
    first = min(room, max(map(len, names)))
    lines = [
        "  ".join(
            [
                _cut(name, first).ljust(first),
                *(each.rjust(width) for each, width in zip(cells, widths, strict=True)),
            ]
        ).rstrip()
        for name, *cells in zip(names, *columns, strict=True)
    ]
    rule = "-" * (first + sum(widths) + 2 * len(widths))
    notes = "95 % bootstrap intervals in brackets; perplexity's change is paired"
    if any(arm.missed for arm in arms):
        notes += "; * did not lose the share asked for"
    return [*lines[:2], rule, *lines[2:], notes]


def _metric(key: str, metrics: Mapping[str, Metric], *, ends: bool = False) -> str:
    if key not in metrics:
        return "-"
    value, interval = spelled(key, metrics[key])
    return f"{value} {interval}" if ends else value


def _base(before: Mapping[str, Metric]) -> str:
    found = _metric("perplexity", before)
    return found if found == "-" else f"from {found}"


def _rise(before: Mapping[str, Metric], arm: Arm) -> str:
    rose = rise(before, arm)
    return "-" if rose is None else " ".join(percent(rose)).replace(" %", "")


def _change(arm: Arm) -> str:
    return "-" if arm.change is None else f"{100 * arm.change:.1f} %"


def _cut(name: str, length: int) -> str:
    """The name in so many columns; a star at its end stays."""
    if len(name) <= length:
        return name
    star = " *" if name.endswith(" *") else ""
    return name[: length - 1 - len(star)] + "…" + star
