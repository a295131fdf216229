"""The curves of the study's page: forgetting against price, strengths tried, and relearning."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from curvedit.evaluation import Metric
from curvedit.report import style, svg
from curvedit.study.page_marks import drawn
from curvedit.study.reading import HELD_OUT, Arm, colour_of, finite, places_of, rise

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 330, 262, 44, 318, 22, 214
_DECADES = 4  # shown below the largest price
_LINES = ("#0f766e", "#c2740c", "#7c5cbf", "#2f6fb0", "#b4446c", "#71803a")
DASHES = ("", "6 3", "2 3", "9 3 2 3")


@dataclass(frozen=True)
class Price:
    """What the edits cost on one scale: each arm's rise of perplexity, or its KL divergence."""

    of: Mapping[str, Metric]  # by the arm's name
    label: str
    percent: bool


def price_of(before: Mapping[str, Metric], arms: Sequence[Arm]) -> Price | None:
    """The rise of perplexity where all of them are positive, else KL, which always is."""
    rises = {arm.name: rose for arm in arms if (rose := rise(before, arm)) is not None}
    nats = {arm.name: arm.metrics["kl"] for arm in arms if "kl" in arm.metrics}
    smooth = len(rises) >= len(nats) and all(rose.value > 0 for rose in rises.values())
    found = rises if smooth else nats
    if not any(metric.value > 0 for metric in found.values()):
        return None
    return Price(found, "rise of perplexity" if smooth else "KL divergence, nats", smooth)


def prices(before: Mapping[str, Metric], arms: Sequence[Arm], price: Price) -> dict[str, str]:
    """One drawing per place, all on the same axes: forgetting upwards, price to the right."""
    shown = [arm for arm in arms if arm.name in price.of and HELD_OUT in arm.metrics]
    if not shown:
        return {}
    costs = [price.of[arm.name] for arm in shown]
    largest = max(cost.high for cost in costs)
    lows = [end for cost in costs for end in (cost.low, cost.value) if end > 0]
    low = max(min(lows), largest * 10.0**-_DECADES) / 1.25
    across = svg.Axis(low, max(largest, low * 2) * 1.25, _LEFT, _RIGHT, log=True)
    models = [before, *(arm.metrics for arm in shown)]
    highest = max(found[HELD_OUT].high for found in models if HELD_OUT in found)
    up = svg.Axis(0.0, min(1.0, (highest or 1.0) * 1.08), _BOTTOM, _TOP)
    return {
        place: _price(members, before, price, across, up)
        for place, members in places_of(shown).items()
    }


def _price(
    arms: Sequence[Arm],
    before: Mapping[str, Metric],
    price: Price,
    across: svg.Axis,
    up: svg.Axis,
) -> str:
    parts = _grid(across, up, price.label, "tokens right, held out")
    parts += _log_ticks(across, percent=price.percent)
    if HELD_OUT in before:
        parts += _level(up, before[HELD_OUT].value, "unedited", style.BEFORE)
    sizes = sorted({arm.fit_tokens for arm in arms if arm.fit_tokens})
    marks = []
    for arm in arms:
        cost, right = price.of[arm.name], arm.metrics[HELD_OUT]
        x, y = _at(across, cost.value), up.at(right.value)
        parts.append(svg.line(_at(across, cost.low), y, _at(across, cost.high), y, arm.colour, 1.2))
        parts.append(svg.line(x, up.at(right.low), x, up.at(right.high), arm.colour, 1.2))
        small = arm.fit_tokens in sizes[:-1]
        marks.append(drawn(x, y, arm.criterion, 3.6 if small else 5.4, arm.name))
    return svg.drawing(
        _WIDTH, _HEIGHT, parts + marks, f"tokens right on held-out sources against {price.label}"
    )


def strengths(arms: Sequence[Arm], aim: float | None) -> dict[str, str]:
    """By criterion, the drawing of what each strength tried left right.

    Args:
        arms: All arms; those without tried strengths are left out.
        aim: The share of tokens right that was aimed for, if known.
    """
    tried = [arm for arm in arms if len(arm.tried) > 1]
    colours = place_colours(tried)
    highest = max((right for arm in tried for _, right in arm.tried), default=1.0)
    up = svg.Axis(0.0, min(1.0, max(highest, aim or 0.0, 0.05) * 1.08), _BOTTOM, _TOP)
    found = {}
    for criterion in dict.fromkeys(arm.criterion for arm in tried):
        members = [arm for arm in tried if arm.criterion == criterion]
        what = next((arm.what for arm in members if arm.what), "strength")
        found[criterion] = _strengths(members, colours, up, aim, what)
    return found


def place_colours(arms: Sequence[Arm]) -> dict[str, str]:
    """A colour for each place."""
    return {
        place: _LINES[number % len(_LINES)] for number, place in enumerate(places_of(arms).keys())
    }


def dash_of(tokens: int | None, sizes: Sequence[int]) -> str:
    """Full for the factors of most text, dashed for those of less."""
    order = sorted(sizes, reverse=True)
    return DASHES[order.index(tokens) % len(DASHES)] if tokens in order else ""


def _strengths(
    arms: Sequence[Arm], colours: Mapping[str, str], up: svg.Axis, aim: float | None, what: str
) -> str:
    values = [strength for arm in arms for strength, _ in arm.tried]
    log = min(values) > 0 and max(values) > 3 * min(values)
    if log:
        across = svg.Axis(min(values) / 1.15, max(values) * 1.15, _LEFT, _RIGHT, log=True)
    else:
        across = svg.Axis(*svg.spread(values), _LEFT, _RIGHT)
    parts = _grid(across, up, what, "tokens right, tuned on")
    parts += _log_ticks(across) if log else _ticks(across)
    if aim is not None:
        parts += _level(up, aim, "aim", style.CUT)
    sizes = [arm.fit_tokens for arm in arms if arm.fit_tokens]
    for arm in arms:
        points = [(across.at(strength), up.at(right)) for strength, right in sorted(arm.tried)]
        colour = colours[arm.place]
        parts.append(svg.path(points, colour, 1.7, dash_of(arm.fit_tokens, sizes)))
        parts += [svg.dot(x, y, colour, 2.8) for x, y in points]
        if arm.strength is not None:
            chosen = min(arm.tried, key=lambda each: abs(each[0] - (arm.strength or 0.0)))
            parts.append(svg.dot(across.at(chosen[0]), up.at(chosen[1]), colour, 5))
    return svg.drawing(_WIDTH, _HEIGHT, parts, f"tokens right by {what}")


def relearning(curves: Sequence[Mapping[str, Any]], looks: Mapping[str, tuple[str, str]]) -> str:
    """Tokens right by steps of training; ``looks`` holds colour and dash by the model's name."""
    lines = {
        str(curve["arm"]): [
            (step, right)
            for step, right in zip(curve["steps"], curve["right"], strict=False)
            if finite(step) is not None and finite(right) is not None
        ]
        for curve in curves
    }
    values = [point for points in lines.values() for point in points]
    if not values:
        return ""
    across = svg.Axis(
        min(step for step, _ in values),
        max(max(step for step, _ in values), min(step for step, _ in values) + 1),
        _LEFT + 6,
        _RIGHT - 6,
    )
    highest = max(right for _, right in values)
    up = svg.Axis(0.0, min(1.0, max(highest, 0.05) * 1.08), _BOTTOM, _TOP)
    steps = sorted({step for step, _ in values})
    parts = _grid(across, up, "steps of training", "tokens right")
    parts += _ticks(across, steps if len(steps) <= 6 else None)
    for name, points in lines.items():
        colour, dash = looks[name]
        placed = [(across.at(step), up.at(right)) for step, right in points]
        parts.append(svg.path(placed, colour, 1.8, dash))
        parts += [svg.dot(x, y, colour, 3.2) for x, y in placed]
    return svg.drawing(_WIDTH, _HEIGHT, parts, "tokens right by steps of training")


def looks_of(names: Sequence[str], arms: Sequence[Arm]) -> dict[str, tuple[str, str]]:
    """A colour by the arm's criterion, and a dash where several arms share one."""
    criteria = {arm.name: arm.criterion for arm in arms}
    taken: dict[str, int] = {}
    found = {}
    for name in dict.fromkeys(names):
        colour = colour_of(criteria.get(name, name))
        found[name] = (colour, DASHES[taken.get(colour, 0) % len(DASHES)])
        taken[colour] = taken.get(colour, 0) + 1
    return found


def _grid(across: svg.Axis, up: svg.Axis, below: str, above: str) -> list[str]:
    """Level lines with their shares, and what the axes show."""
    parts = []
    for tick in up.ticks(4):
        parts.append(svg.line(_LEFT, up.at(tick), _RIGHT, up.at(tick)))
        parts.append(svg.text(_LEFT - 7, up.at(tick) + 4, f"{100 * tick:.4g} %", "end"))
    parts.append(svg.text((across.start + across.stop) / 2, _HEIGHT - 10, below, "middle"))
    parts.append(svg.text(4, 11, above))
    return parts


def _level(up: svg.Axis, value: float, name: str, colour: str) -> list[str]:
    y = up.at(value)
    return [
        svg.line(_LEFT, y, _RIGHT, y, colour, 1.4, "4 3"),
        svg.text(_RIGHT, y - 5, name, "end", colour=colour),
    ]


def _ticks(across: svg.Axis, values: Sequence[float] | None = None) -> list[str]:
    return [
        svg.text(across.at(tick), _BOTTOM + 17, f"{tick:.4g}", "middle")
        for tick in values or across.ticks(4)
    ]


def _log_ticks(across: svg.Axis, *, percent: bool = False) -> list[str]:
    """Round values at most as dense as their labels allow."""
    parts = []
    for tick in round_values(across.low, across.high):
        name = f"{100 * tick:.4g} %" if percent else f"{tick:.4g}"
        parts.append(svg.line(across.at(tick), _BOTTOM, across.at(tick), _BOTTOM + 4))
        parts.append(svg.text(across.at(tick), _BOTTOM + 17, name, "middle"))
    return parts


def round_values(low: float, high: float, most: int = 5) -> list[float]:
    """At most about five of 1, 2 and 5, or of 1 and 3, or of 1 alone, times powers of ten."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found: list[float] = []
    for factors in ((1, 1.5, 2, 3, 4, 5, 7), (1, 2, 5), (1, 3), (1,)):
        found = [
            factor * 10.0**exponent
            for exponent in exponents
            for factor in factors
            if low <= factor * 10.0**exponent <= high
        ]
        if len(found) <= most:
            return found
    stride = math.ceil(len(found) / most)
    return [one for one, _ in pairwise([*found[::stride], math.inf])]


def _at(axis: svg.Axis, value: float) -> float:
    """Where a value lies on a logarithmic axis; those of zero and below at its left end."""
    return axis.at(max(value, axis.low))
