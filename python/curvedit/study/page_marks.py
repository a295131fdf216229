"""The marks of the study's page: a colour for each criterion, a shape for each kind of edit."""

from collections.abc import Iterable
from html import escape

from curvedit.report import svg
from curvedit.study.reading import CRITERIA, TARGETED, colour_of


def mark(criterion: str) -> str:
    """A criterion's mark beside its name: criteria filled, controls hollow, targeted a diamond."""
    colour = colour_of(criterion)
    if criterion in CRITERIA or criterion == "before":
        look = f"background:{colour}"
    elif criterion == TARGETED:
        look = f"background:{colour};border-radius:1px;transform:rotate(45deg)"
    else:
        look = f"border:2px solid {colour}"
    return f'<span class="swatch" style="{look}"></span>'


def drawn(x: float, y: float, criterion: str, radius: float, name: str) -> str:
    """The same mark in a drawing; ``name`` shows where the pointer rests on it."""
    colour = colour_of(criterion)
    if criterion == TARGETED:
        side = radius * 1.2
        corners = [(x, y - side), (x + side, y), (x, y + side), (x - side, y)]
        shape = svg.area(corners, colour)
    elif criterion in CRITERIA or criterion == "before":
        shape = svg.dot(x, y, colour, radius)
    else:
        shape = (
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" fill="#fff" stroke="{colour}" '
            'stroke-width="2"/>'
        )
    return f"<g><title>{escape(name)}</title>{shape}</g>"


def legend(entries: Iterable[tuple[str, str]]) -> str:
    """Marks or lines with their names; each entry is HTML and a name."""
    parts = "".join(f"<span>{sign}{escape(name)}</span>" for sign, name in entries)
    return f'<p class="legend">{parts}</p>'


def stroke(colour: str, dash: str = "") -> str:
    """A piece of line for a legend."""
    drawn_line = svg.line(0, 5, 22, 5, colour, 2.2, dash)
    return f'<svg class="stroke" viewBox="0 0 22 10" aria-hidden="true">{drawn_line}</svg>'
