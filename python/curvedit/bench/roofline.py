"""The roofline of a measurement as a drawing: rate against operations per byte, both logarithmic."""

import math
from collections.abc import Sequence

from curvedit.bench.timing import Ceilings, Row
from curvedit.report.style import AFTER, BEFORE, CONTROLS, CSS, INK
from curvedit.report.svg import Axis, dot, drawing, line, path, text

_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 860, 440, 64, 372


def draw_roofline(ceilings: Ceilings, rows: Sequence[Row], title: str) -> str:
    """A self-contained SVG file: a point per row, a colour per candidate, the ceilings as lines."""
    names = sorted(
        {row.candidate for row in rows}, key=lambda name: (not name.startswith("curvedit"), name)
    )
    palette = dict(zip(names, (AFTER, *CONTROLS, BEFORE, INK), strict=False))
    intensity = {id(row): 1e3 * row.tflops / row.gigabytes_per_second for row in rows}
    rates = {
        name: rate for name, rate in ceilings.tflops.items() if name in {row.dtype for row in rows}
    }
    top = max(rates.values())
    ridge = 1e3 * top / ceilings.copy_gigabytes_per_second
    x_axis = _axis([*intensity.values(), ridge], _LEFT, _WIDTH - 20)
    y_axis = _axis([*(row.tflops for row in rows), top], _BOTTOM, 52)
    parts = [
        f"<style>{CSS} text {{ font: 12px sans-serif; fill: #68707c; }}</style>",
        text(_LEFT, 20, title, colour=INK),
    ]
    for tick in _ticks(x_axis):
        parts.append(line(x_axis.at(tick), 52, x_axis.at(tick), _BOTTOM))
        parts.append(text(x_axis.at(tick), _BOTTOM + 18, f"{tick:g}", "middle"))
    for tick in _ticks(y_axis):
        parts.append(line(_LEFT, y_axis.at(tick), _WIDTH - 20, y_axis.at(tick)))
        parts.append(text(_LEFT - 8, y_axis.at(tick) + 4, f"{tick:g}", "end"))
    for rate in sorted(set(rates.values())):
        of = " and ".join(name for name, its in rates.items() if its == rate)
        corner = 1e3 * rate / ceilings.copy_gigabytes_per_second
        slope = (
            [(x_axis.low, x_axis.low * rate / corner), (corner, rate)]
            if corner > x_axis.low
            else []
        )
        points = [*(slope or [(x_axis.low, rate)]), (x_axis.high, rate)]
        parts.append(path([(x_axis.at(x), y_axis.at(y)) for x, y in points], INK))
        parts.append(
            text(
                _WIDTH - 24,
                y_axis.at(rate) - 7,
                f"measured product, {of}: {rate:.3g} TFLOP/s",
                "end",
            )
        )
    for row in rows:
        parts.append(
            dot(
                x_axis.at(intensity[id(row)]),
                y_axis.at(row.tflops),
                palette.get(row.candidate, INK),
            )
        )
    for place, name in enumerate(names):
        x, y = _LEFT + place % 4 * 196, _BOTTOM + 40 + place // 4 * 18
        parts += [dot(x, y - 4, palette.get(name, INK)), text(x + 10, y, name)]
    parts.append(text(_WIDTH - 20, _BOTTOM + 40, "operations per byte", "end"))
    parts.append(text(_LEFT, 42, "TFLOP/s"))
    drawn = drawing(_WIDTH, _HEIGHT, parts, title)
    return drawn.replace(
        "<svg ", '<svg xmlns="http://www.w3.org/2000/svg" style="background:#fff" ', 1
    )


def _axis(values: Sequence[float], start: float, stop: float) -> Axis:
    return Axis(min(values) / 1.7, max(values) * 1.7, start, stop, log=True)


def _ticks(axis: Axis) -> list[float]:
    """1, 2 and 5 times powers of ten, or the powers alone on a long axis."""
    first, last = math.floor(math.log10(axis.low)), math.ceil(math.log10(axis.high))
    steps = (1, 2, 5) if last - first < 5 else (1,)
    values = [step * 10.0**exponent for exponent in range(first, last + 1) for step in steps]
    return [value for value in values if axis.low <= value <= axis.high]
