"""Small vector drawings: axes, lines and marks as SVG text that loads nothing."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from curvedit.report.style import HAIR


@dataclass(frozen=True)
class Axis:
    """A scale from data to drawing units; ``start`` is where ``low`` lies."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def at(self, value: float) -> float:
        """Where a value lies; values outside the scale lie at the nearer end."""
        value = min(max(value, self.low), self.high)
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.stop - self.start)

    def ticks(self, count: int = 4) -> list[float]:
        """Round values to label, about ``count`` of them."""
        if self.log:
            first, last = (
                math.ceil(math.log10(self.low) - 1e-9),
                math.floor(math.log10(self.high) + 1e-9),
            )
            stride = max(1, math.ceil((last - first) / count))
            return [10.0**exponent for exponent in range(first, last + 1, stride)]
        rough = (self.high - self.low) / count
        scale = 10.0 ** math.floor(math.log10(rough))
        step = next(
            scale * factor for factor in (1, 2, 2.5, 5, 10) if scale * factor >= rough * 0.999
        )
        start = math.ceil(self.low / step - 1e-9)
        return [number * step for number in range(start, math.floor(self.high / step + 1e-9) + 1)]


def spread(
    values: Iterable[float], *, pad: float = 0.08, floor: float | None = None
) -> tuple[float, float]:
    """Ends of a linear axis that shows all values with some room."""
    known = list(values)
    low, high = min(known), max(known)
    room = (high - low or abs(high) or 1.0) * pad
    return (low - room if floor is None else max(floor, low - room)), high + room


def drawing(width: float, height: float, parts: Iterable[str], label: str) -> str:
    """A drawing that scales with its place on the page; screen readers read ``label`` instead."""
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(label)}">'
        + "".join(parts)
        + "</svg>"
    )


def line(
    x1: float, y1: float, x2: float, y2: float, colour: str = HAIR, width: float = 1, dash: str = ""
) -> str:
    """A straight line."""
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" '
        f'stroke-width="{width:g}"{dashes}/>'
    )


def path(
    points: Sequence[tuple[float, float]], colour: str, width: float = 1.6, dash: str = ""
) -> str:
    """A line through points."""
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    spelled = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return (
        f'<path d="M{spelled}" fill="none" stroke="{colour}" stroke-width="{width:g}"{dashes} '
        'stroke-linejoin="round"/>'
    )


def area(points: Sequence[tuple[float, float]], fill: str) -> str:
    """A filled polygon."""
    return f'<path d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y in points)}Z" fill="{fill}"/>'


def box(x: float, y: float, width: float, height: float, fill: str, stroke: str = "none") -> str:
    """A rectangle."""
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" '
        f'fill="{fill}" stroke="{stroke}"/>'
    )


def dot(x: float, y: float, fill: str, radius: float = 4.5) -> str:
    """A round mark with a white rim."""
    return (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" fill="{fill}" '
        'stroke="#fff" stroke-width="1.2"/>'
    )


def text(
    x: float, y: float, content: str, anchor: str = "start", style: str = "", colour: str = ""
) -> str:
    """A label; ``style`` is a class of the style sheet."""
    named = f' class="{style}"' if style else ""
    coloured = f' style="fill:{colour}"' if colour else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{named}{coloured}>'
        f"{escape(content)}</text>"
    )


def power(value: float) -> str:
    """A power of ten as text: 1, 10 and 100 as such, others with an exponent."""
    exponent = round(math.log10(value))
    if 0 <= exponent <= 2:
        return f"{10**exponent}"
    raised = str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"10{raised}"
