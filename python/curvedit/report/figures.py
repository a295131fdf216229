"""The figures of the page: intervals, the trade-off, and each target's spectrum and staircase."""

from collections.abc import Sequence
from dataclasses import dataclass

from curvedit.report.metrics import Metric, meaning_of, number
from curvedit.report.style import AFTER, CUT, INK
from curvedit.report.svg import Axis, area, box, dot, drawing, line, path, power, spread, text
from curvedit.selection import TargetSummary

_DECADES = 9  # shown below the largest value on a logarithmic axis


@dataclass(frozen=True)
class Entry:
    """One model's value of one metric, and its colour on the page."""

    name: str
    colour: str
    metric: Metric


def intervals(key: str, entries: Sequence[Entry]) -> str:
    """Values with their intervals, one row per model, on the metric's own scale."""
    names = [_short(entry.name, 22) for entry in entries]
    row, left, right = 26, 22 + 5.8 * max(map(len, names)), 310
    height = row * len(entries) + 26
    share = meaning_of(key).unit == "share"
    ends = [
        end
        for entry in entries
        for end in (entry.metric.low, entry.metric.high, entry.metric.value)
    ]
    low, high = (0.0, 1.0) if share else spread(ends, floor=0.0 if min(ends) >= 0 else None)
    axis = Axis(low, high, left, right - 16)
    parts = []
    for tick in axis.ticks(4):
        parts.append(line(axis.at(tick), 4, axis.at(tick), height - 20))
        parts.append(
            text(
                axis.at(tick), height - 6, f"{100 * tick:g} %" if share else f"{tick:.4g}", "middle"
            )
        )
    for place, entry in enumerate(entries):
        y = row * place + 17
        start, stop = axis.at(entry.metric.low), axis.at(entry.metric.high)
        parts.append(text(left - 12, y + 4, names[place], "end"))
        parts.append(line(start, y, stop, y, entry.colour, 2))
        parts += [line(x, y - 5, x, y + 5, entry.colour, 1.5) for x in (start, stop)]
        parts.append(dot(axis.at(entry.metric.value), y, entry.colour))
    spelled = ", ".join(f"{entry.name} {number(key, entry.metric.value)}" for entry in entries)
    return drawing(right, height, parts, f"{meaning_of(key).label}: {spelled}")


def trade_off(forgotten: Sequence[Entry], kept: Sequence[Entry], keys: tuple[str, str]) -> str:
    """What was forgotten against what was kept, one point per model; lower left is better."""
    width, height, left, bottom = 1010, 300, 56, 250
    across, up = keys
    x_axis = Axis(
        *spread([end for entry in kept for end in (entry.metric.low, entry.metric.high)], pad=0.15),
        left,
        980,
    )
    y_axis = Axis(0.0, 1.0, bottom, 34)
    parts = []
    for tick in y_axis.ticks(4):
        parts.append(line(left, y_axis.at(tick), 980, y_axis.at(tick)))
        parts.append(text(left - 10, y_axis.at(tick) + 4, f"{100 * tick:g} %", "end"))
    parts += [
        text(x_axis.at(tick), bottom + 18, f"{tick:.4g}", "middle") for tick in x_axis.ticks(8)
    ]
    parts.append(text((left + 980) / 2, height - 8, meaning_of(across).label.lower(), "middle"))
    parts.append(text(left - 46, 14, meaning_of(up).label.lower()))
    taken: list[tuple[float, float, float]] = []
    for one, other in zip(forgotten, kept, strict=True):
        x, y = x_axis.at(other.metric.value), y_axis.at(one.metric.value)
        parts.append(
            line(x_axis.at(other.metric.low), y, x_axis.at(other.metric.high), y, one.colour, 1.5)
        )
        parts.append(
            line(x, y_axis.at(one.metric.low), x, y_axis.at(one.metric.high), one.colour, 1.5)
        )
        parts.append(dot(x, y, one.colour, 5))
        parts.append(_label(x, y_axis.at(one.metric.high), one, taken))
    return drawing(
        width, height, parts, f"{meaning_of(up).label} against {meaning_of(across).label}"
    )


def _label(x: float, y: float, entry: Entry, taken: list[tuple[float, float, float]]) -> str:
    """A point's name, raised until it covers none of those already placed."""
    half, level = 3.4 * len(entry.name) + 4, y - 8
    while any(
        abs(x - other) < half + wide and abs(level - height) < 13 for other, height, wide in taken
    ):
        level -= 14
    taken.append((x, level, half))
    return text(x, level, entry.name, "middle", "strong", entry.colour)


def spectrum(target: TargetSummary) -> str:
    """The sharpest curvature each eigenvector takes part in, and the threshold; logarithmic axes.

    An output eigenvector is drawn at its eigenvalue times the largest eigenvalue of A, an input
    eigenvector at its eigenvalue times the largest of G. A direction below the line has no kept
    component at all.
    """
    width, height, left, bottom = 250, 176, 40, 140
    largest = (
        target.values_out[0][1] * target.values_in[0][1]
        if target.values_out and target.values_in
        else 0.0
    )
    if largest <= 0.0:
        return drawing(
            width, height, [text(width / 2, 76, "spectrum not recorded", "middle")], "no spectrum"
        )
    curves: list[tuple[str, str, list[tuple[int, float]]]] = [
        ("output", INK, [(i, value * target.values_in[0][1]) for i, value in target.values_out]),
        (
            "input",
            "#4a7db5",
            [(j, value * target.values_out[0][1]) for j, value in target.values_in],
        ),
    ]
    positive = [value for _, _, points in curves for _, value in points if value > 0]
    floor = max(min([*positive, target.threshold or largest]), largest * 10.0**-_DECADES)
    x_axis = Axis(1, max(*(target.shape or (2, 2)), 2), left, width - 8, log=True)
    y_axis = Axis(floor / 2 if floor < largest else largest / 10, largest * 2, bottom, 10, log=True)
    parts = []
    for tick in y_axis.ticks(4):
        parts.append(line(left, y_axis.at(tick), width - 8, y_axis.at(tick)))
        parts.append(text(left - 6, y_axis.at(tick) + 4, power(tick), "end"))
    parts += [text(x_axis.at(tick), bottom + 15, power(tick), "middle") for tick in x_axis.ticks(4)]
    for _, colour, points in curves:
        shown = [
            (x_axis.at(index + 1), y_axis.at(value))
            for index, value in points
            if value >= y_axis.low
        ]
        parts.append(
            path(shown, colour)
            if len(shown) > 1
            else dot(left, y_axis.at(points[0][1]), colour, 2.5)
        )
    if target.threshold:
        cut = y_axis.at(target.threshold)
        parts.append(line(left, cut, width - 8, cut, CUT, 1.4, "4 3"))
        parts.append(text(left + 5, cut - 5, "cut", colour=CUT))
    for place, (name, colour, _) in enumerate(curves):
        x = left + 4 + 92 * place
        parts.append(line(x, height - 8, x + 14, height - 8, colour, 2))
        parts.append(text(x + 19, height - 4, f"{name} side"))
    return drawing(width, height, parts, f"{target.name}: curvature by rank of eigenvector")


def staircase(target: TargetSummary) -> str:
    """The kept components by rank of input (across) and output eigenvector (down); logarithmic."""
    width, height, left, top, side_x, side_y = 200, 176, 34, 22, 158, 118
    rows, columns = target.shape or (1, 1)
    x_axis, y_axis = (
        Axis(1, columns + 1, left, left + side_x, log=True),
        Axis(1, rows + 1, top, top + side_y, log=True),
    )
    parts = [box(left, top, side_x, side_y, "#f1efe9")]
    if target.limits:
        points: list[tuple[float, float]] = [(left, top)]
        ends = [row for row, _ in target.limits[1:]] + [rows]
        for (row, limit), end in zip(target.limits, ends, strict=True):
            points += [
                (x_axis.at(limit + 1), y_axis.at(row + 1)),
                (x_axis.at(limit + 1), y_axis.at(end + 1)),
            ]
        parts.append(area([*points, (left, top + side_y)], AFTER))
    else:
        parts.append(
            text(left + side_x / 2, top + side_y / 2 + 4, "scattered: no staircase", "middle")
        )
    parts += [text(x_axis.at(tick), top - 6, power(tick), "middle") for tick in x_axis.ticks(4)]
    parts += [text(left - 6, y_axis.at(tick) + 4, power(tick), "end") for tick in y_axis.ticks(4)]
    parts.append(text(left + side_x / 2, height - 20, f"{columns:,} inputs across", "middle"))
    parts.append(text(left + side_x / 2, height - 5, f"{rows:,} outputs down", "middle"))
    return drawing(
        width, height, parts, f"{target.name}: {100 * target.kept_share:.2g} % of components kept"
    )


def _short(name: str, length: int) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"
