"""Plots of a report as inline SVG."""

import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from curvedit.report import METRICS, Report, title

MOST = 12  # targets drawn
_COLOURS = ["#8b95a3", "#0b6e99", "#d99a26", "#b5524a", "#6f9a5a", "#7a64a8"]
_INK, _SOFT, _LINE = "#1c2430", "#5d6878", "#dfe4ea"
_STYLE = {
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": _INK,
    "axes.edgecolor": _LINE,
    "axes.labelcolor": _SOFT,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _SOFT,
    "ytick.color": _SOFT,
    "svg.hashsalt": "curvedit",
    "axes.unicode_minus": True,
}


def metrics(report: Report) -> str:
    """One small bar chart per metric: every model's value with its interval."""
    keys = list(report.before)
    rows = report.rows()
    figure, axes = _grid(len(keys), columns=min(len(keys), 5), width=2.05 if len(keys) > 3 else 3, height=2.6)
    for axis, key in zip(axes, keys, strict=False):
        percent = key not in METRICS or "%" in METRICS[key][1]
        scale = 100 if percent else 1
        for place, (_, values) in enumerate(rows):
            estimate = values[key]
            error = [[scale * (estimate.value - estimate.low)], [scale * (estimate.high - estimate.value)]]
            axis.bar(place, scale * estimate.value, width=0.72, color=_COLOURS[place % len(_COLOURS)])
            axis.errorbar(place, scale * estimate.value, yerr=error, color=_INK, capsize=2.5, linewidth=1)
        axis.set_title(title(key) + (", %" if percent else ""), loc="left")
        axis.set_xticks([])
        if key == "perplexity":
            axis.set_ylim(0.9 * min(values[key].low for _, values in rows))
    handles = [axes[0].patches[place] for place in range(len(rows))]
    figure.legend(handles, [name for name, _ in rows], loc="lower center", ncols=min(6, len(rows)), frameon=False)
    figure.tight_layout(rect=(0, 0.1, 1, 1))
    return _svg(figure)


def spectra(targets: Sequence[Mapping[str, Any]]) -> str:
    """Eigenvalues of both factors, and how far along each axis the cut reaches."""
    shown = targets[:MOST]
    figure, axes = _grid(len(shown), columns=min(4, len(shown)), width=2.7, height=2.5)
    for axis, target in zip(axes, shown, strict=False):
        series = (("values_out", "output (G)", _COLOURS[1]), ("values_in", "input (A)", _COLOURS[2]))
        for key, name, colour in series:
            points = [(i + 1, v) for i, v in target[key] if v > 0]
            top = points[0][1]
            axis.loglog([i for i, _ in points], [v / top for _, v in points], color=colour, label=name, linewidth=1.6)
        level = target["threshold"] / (target["values_out"][0][1] * target["values_in"][0][1])
        if math.isfinite(level) and level > 0:
            axis.axhline(level, color=_COLOURS[3], linestyle="--", linewidth=1.2, label="cut")
        axis.set_ylim(bottom=1e-9)
        axis.set_title(_short(target["name"]), loc="left")
        axis.set_xlabel("rank")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="lower center", ncols=3, frameon=False)
    figure.tight_layout(rect=(0, 0.12 if len(shown) <= 4 else 0.06, 1, 1))
    return _svg(figure)


def staircases(targets: Sequence[Mapping[str, Any]]) -> str:
    """The kept part of every target's component table."""
    shown = targets[:MOST]
    figure, axes = _grid(len(shown), columns=min(6, len(shown)), width=2.1, height=2.2)
    for axis, target in zip(axes, shown, strict=False):
        rows, columns = target["shape"]
        index = [i for i, _ in target["limits"]] + [rows]
        limits = [v for _, v in target["limits"]] + [target["limits"][-1][1]]
        axis.fill_betweenx(index, 0, limits, step="post", color=_COLOURS[1], linewidth=0)
        axis.set_xlim(0, columns)
        axis.set_ylim(rows, 0)
        axis.set_facecolor("#edf1f4")
        axis.set_title(f"{_short(target['name'])}\n{target['components_kept'] / (rows * columns):.1%} kept", loc="left")
        axis.set_xticks([0, columns])
        axis.set_yticks([0, rows])
    figure.tight_layout()
    return _svg(figure)


def _grid(number: int, *, columns: int, width: float, height: float) -> tuple[Any, list[Any]]:
    """A figure with ``number`` axes in rows of ``columns``; sizes of one in inches."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    rows = -(-number // columns)
    with rc_context(_STYLE):
        figure = Figure(figsize=(width * columns, height * rows + 0.4))
        axes = [figure.add_subplot(rows, columns, place + 1) for place in range(number)]
    return figure, axes


def _short(name: str) -> str:
    """The block's number and the map's own name."""
    numbers = re.findall(r"\.(\d+)\.", name)
    last = name.rsplit(".", 1)[-1]
    return f"{numbers[0]} {last}" if numbers else last


def _svg(figure: Any) -> str:
    from matplotlib import rc_context

    stream = io.StringIO()
    with rc_context(_STYLE):
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    text = stream.getvalue()
    return text[text.index("<svg") :]
