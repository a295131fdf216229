"""The roofline of a measurement, drawn: rate against operations per byte, both logarithmic."""

import math
from collections.abc import Iterator, Sequence

from curvedit.bench.timing import Ceilings, Row
from curvedit.report import style, svg

_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 860, 440, 64, 372


def draw_roofline(ceilings: Ceilings, rows: Sequence[Row], title: str) -> str:
    """Draw a self-contained SVG file.

    Args:
        ceilings: The device's rates, drawn as lines.
        rows: The measurements: a point each, a colour per candidate.
        title: The headline.

    Returns:
        The file's content.
    """
    names = sorted({row.candidate for row in rows}, key=lambda name: (_is_rival(name), name))
    palette = dict(
        zip(names, (style.AFTER, *style.CONTROLS, style.BEFORE, style.INK), strict=False)
    )
    rates = {
        name: rate for name, rate in ceilings.tflops.items() if name in {row.dtype for row in rows}
    }
    top, bandwidth = max(rates.values()), ceilings.copy_gigabytes_per_second
    x_axis = _axis([*map(_intensity, rows), 1e3 * top / bandwidth], _LEFT, _WIDTH - 20)
    y_axis = _axis([*(row.tflops for row in rows), top], _BOTTOM, 52)
    parts = [
        f"<style>{style.CSS} text {{ font: 12px sans-serif; fill: #68707c; }}</style>",
        svg.text(_LEFT, 20, title, colour=style.INK),
        *_grid(x_axis, y_axis),
        *_ceilings(rates, bandwidth, x_axis, y_axis),
    ]
    for row in rows:
        x, y = x_axis.at(_intensity(row)), y_axis.at(row.tflops)
        parts.append(svg.dot(x, y, palette.get(row.candidate, style.INK)))
    for place, name in enumerate(names):
        x, y = _LEFT + place % 4 * 196, _BOTTOM + 40 + place // 4 * 18
        parts += [svg.dot(x, y - 4, palette.get(name, style.INK)), svg.text(x + 10, y, name)]
    drawn = svg.drawing(_WIDTH, _HEIGHT, parts, title)
    return drawn.replace(
        "<svg ", '<svg xmlns="http://www.w3.org/2000/svg" style="background:#fff" ', 1
    )


def _is_rival(name: str) -> bool:
    return not name.startswith("curvedit")


def _intensity(row: Row) -> float:
    """Operations per byte."""
    return 1e3 * row.tflops / row.gigabytes_per_second


def _grid(x_axis: svg.Axis, y_axis: svg.Axis) -> Iterator[str]:
    """Lines and numbers at the ticks, and the axes' labels."""
    for tick in _ticks(x_axis):
        yield svg.line(x_axis.at(tick), 52, x_axis.at(tick), _BOTTOM)
        yield svg.text(x_axis.at(tick), _BOTTOM + 18, f"{tick:g}", "middle")
    for tick in _ticks(y_axis):
        yield svg.line(_LEFT, y_axis.at(tick), _WIDTH - 20, y_axis.at(tick))
        yield svg.text(_LEFT - 8, y_axis.at(tick) + 4, f"{tick:g}", "end")
    yield svg.text(_WIDTH - 20, _BOTTOM + 40, "operations per byte", "end")
    yield svg.text(_LEFT, 42, "TFLOP/s")


def _ceilings(
    rates: dict[str, float], bandwidth: float, x_axis: svg.Axis, y_axis: svg.Axis
) -> Iterator[str]:
    """One roof per rate: along the bandwidth up to its corner, then flat."""
    for rate in sorted(set(rates.values())):
        of = " and ".join(name for name, each in rates.items() if each == rate)
        corner = 1e3 * rate / bandwidth
        if corner > x_axis.low:
            points = [(x_axis.low, x_axis.low * rate / corner), (corner, rate)]
        else:
            points = [(x_axis.low, rate)]
        points.append((x_axis.high, rate))
        yield svg.path([(x_axis.at(x), y_axis.at(y)) for x, y in points], style.INK)
        label = f"measured product, {of}: {rate:.3g} TFLOP/s"
        yield svg.text(_WIDTH - 24, y_axis.at(rate) - 7, label, "end")


def _axis(values: Sequence[float], start: float, stop: float) -> svg.Axis:
    return svg.Axis(min(values) / 1.7, max(values) * 1.7, start, stop, log=True)


def _ticks(axis: svg.Axis) -> list[float]:
    """1, 2 and 5 times the powers of ten; on a long axis, the powers alone."""
    first, last = math.floor(math.log10(axis.low)), math.ceil(math.log10(axis.high))
    steps = (1, 2, 5) if last - first < 5 else (1,)
    values = [step * 10.0**exponent for exponent in range(first, last + 1) for step in steps]
    return [value for value in values if axis.low <= value <= axis.high]
