"""The map of the study's page: where in the model the passages are stored, as heat maps."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from curvedit.report import style, svg
from curvedit.study.reading import finite

Grid = list[list[float | None]]  # by layer, then by kind
_WIDTH, _LEFT, _TOP, _SIDE = 318, 40, 22, 248
_LOW, _HIGH = (0xF3, 0xF1, 0xEB), (0x0F, 0x76, 0x6E)
_NAMES = {"label_free": "Label-free edit", "targeted": "Targeted edit"}


def section(found: Mapping[str, Any]) -> str:
    """The measured maps, then the predictors with their rank correlations and maps."""
    layers, kinds = list(found["layers"]), [str(kind) for kind in found["kinds"]]
    proposed = set(found.get("proposed") or ())
    cards = []
    for key, name in _NAMES.items():
        if found.get(key):
            grid = worth(found[key]["forgotten"], found[key]["kl"])
            label = "loss gained on recited suffixes, per root of a nat of KL" + _unit(grid)
            cards.append(
                _card(name, label, heat(grid, layers, kinds, proposed, f"{name}: {label}"))
            )
    predictors = found.get("predictors") or {}
    for name, facts in predictors.items():
        grid = [[finite(value) for value in row] for row in facts["values"]]
        said = "predictor" + _unit(grid)
        cards.append(_card(name, said, heat(grid, layers, kinds, proposed, name)))
    if not cards:
        return ""
    marked = ", ".join(str(layer) for layer in layers if layer in proposed)
    note = f" Layers proposed for an edit, marked on the right: {marked}." if marked else ""
    return (
        "<section><h2>Where it is stored</h2>"
        '<p class="sub">One weight matrix edited at a time, layers downwards. The darker, the more '
        f"an edit there forgets for what it disturbs.{escape(note)}</p>"
        f'<div class="panels">{"".join(cards)}</div>{_correlations(predictors)}</section>'
    )


def _card(title: str, sub: str, drawing: str) -> str:
    return (
        f'<div class="card"><h3>{escape(title)}</h3>'
        f'<p class="sub" style="margin-top:0">{escape(sub)}</p>{drawing}</div>'
    )


def worth(forgotten: Sequence[Sequence[Any]], nats: Sequence[Sequence[Any]]) -> Grid:
    """Forgotten over the root of the KL, by cell; None where one is unknown or the KL is not > 0.

    A change forgets in proportion to its length and costs in proportion to the square.
    """
    return [
        [
            None
            if (lost := finite(one)) is None or (cost := finite(other)) is None or cost <= 0
            else lost / cost**0.5
            for one, other in zip(row, costs, strict=True)
        ]
        for row, costs in zip(forgotten, nats, strict=True)
    ]


def heat(
    grid: Grid, layers: Sequence[int], kinds: Sequence[str], proposed: set[int], label: str
) -> str:
    """A drawing of one value per layer and kind of matrix.

    Values at the upper end share one colour, so that a single cell that costs next to nothing does
    not bleach all others.
    """
    row = min(20.0, max(7.0, 420 / max(len(layers), 1)))
    column = _SIDE / max(len(kinds), 1)
    ordered = sorted(value for cells in grid for value in cells if value is not None)
    low = min([0.0, *ordered])
    high = _upper(grid)
    unit = _power(high)
    spans = column >= 44 and row >= 13
    every = max(1, round(11 / row + 0.49))
    parts = [
        svg.text(_LEFT + column * (place + 0.5), _TOP - 7, name, "middle")
        for place, name in enumerate(_shortened(kinds))
    ]
    for place, (layer, cells) in enumerate(zip(layers, grid, strict=True)):
        y = _TOP + row * place
        if place % every == 0:
            parts.append(svg.text(_LEFT - 8, y + row / 2 + 4, str(layer), "end"))
        for number, value in enumerate(cells):
            x = _LEFT + column * number
            if value is None:
                parts.append(svg.box(x, y, column - 1, row - 1, "#fff", style.HAIR))
                continue
            share = min(1.0, max(0.0, (value - low) / (high - low))) if high > low else 0.0
            parts.append(svg.box(x, y, column - 1, row - 1, shade(share)))
            if spans:
                ink = "#fff" if share > 0.6 else style.INK
                parts.append(
                    svg.text(
                        x + column / 2,
                        y + row / 2 + 3.5,
                        _short(value / unit),
                        "middle",
                        colour=ink,
                    )
                )
        if layer in proposed:
            parts.append(svg.box(_LEFT + _SIDE + 5, y, 4, row, style.CUT))
    bottom = _TOP + row * len(layers) + 12
    if not spans and ordered:
        parts += _scale(low / unit, high / unit, bottom, capped=ordered[-1] > high)
        bottom += 26
    return svg.drawing(_WIDTH, bottom, parts, label)


def _scale(low: float, high: float, y: float, *, capped: bool) -> list[str]:
    parts = [
        svg.box(_LEFT + 62 + 12 * step, y, 12.2, 9, shade((step + 0.5) / 10)) for step in range(10)
    ]
    parts.append(svg.text(_LEFT + 56, y + 9, _short(low), "end"))
    above = "≥ " if capped else ""
    parts.append(svg.text(_LEFT + 188, y + 9, above + _short(high)))
    return parts


def shade(share: float) -> str:
    """A colour between paper and full, by a share from 0 to 1."""
    mixed = (round(a + share * (b - a)) for a, b in zip(_LOW, _HIGH, strict=True))
    return "#" + "".join(f"{channel:02x}" for channel in mixed)


def _shortened(kinds: Sequence[str]) -> list[str]:
    """Without an ending that all share, such as ``_proj``."""
    endings = {kind.rpartition("_")[2] for kind in kinds}
    if len(endings) == 1 and len(kinds) > 1 and all("_" in kind for kind in kinds):
        return [kind.rpartition("_")[0] for kind in kinds]
    return list(kinds)


def _upper(grid: Grid) -> float:
    """The value from which on all cells are equally dark."""
    ordered = sorted(value for cells in grid for value in cells if value is not None)
    return ordered[round(0.97 * (len(ordered) - 1))] if ordered else 1.0


def _power(value: float) -> float:
    """What values are written in: 1, or a power of ten where they are tiny or huge."""
    if value <= 0 or 0.01 <= value < 1e4:
        return 1.0
    return float(10.0 ** math.floor(math.log10(value)))


def _unit(grid: Grid) -> str:
    unit = _power(_upper(grid))
    return "" if unit == 1 else f", in units of {svg.power(unit)}"


def _short(value: float) -> str:
    digits = 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return f"{value:.{digits}f}" if abs(value) < 1e5 else f"{value:.1g}"


def _correlations(predictors: Mapping[str, Any]) -> str:
    if not predictors:
        return ""
    known = [
        key
        for key in _NAMES
        if any(key in (facts.get("spearman") or {}) for facts in predictors.values())
    ]
    if not known:
        return ""
    head = "".join(f'<th class="number">with the {_NAMES[key].lower()}</th>' for key in known)
    rows = []
    for name, facts in predictors.items():
        cells = []
        for key in known:
            rank = finite((facts.get("spearman") or {}).get(key))
            spelled = "–" if rank is None else f"{rank:+.2f}"
            cells.append(f'<td class="number"><span class="value">{spelled}</span></td>')
        rows.append(f'<tr><td class="predictor">{escape(name)}</td>{"".join(cells)}</tr>')
    return (
        '<p class="note">Rank correlation (Spearman) of each predictor with the measured maps, '
        'over all matrices.</p><div class="sheet" style="margin-top:8px"><table><thead><tr>'
        f"<th>Predictor</th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )
