"""Metrics as a table of text for the terminal."""

from curvedit.report.metrics import Metrics, measure_of, spell

_ARROWS = {"lower": " (lower is better)", "higher": " (higher is better)", "": ""}


def render(columns: list[tuple[str, Metrics]]) -> str:
    """One row per metric, one column per model; each cell a value and its 95 % interval."""
    keys = list(dict.fromkeys(key for _, metrics in columns for key, _ in metrics.items()))
    rows = [["", *(name for name, _ in columns)]]
    for key in keys:
        cells = []
        for _, metrics in columns:
            metric = dict(metrics.items()).get(key)
            cells.append("-" if metric is None else " ".join(spell(key, metric)))
        measure = measure_of(key)
        rows.append([measure.label + _ARROWS[measure.better], *cells])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    rule = "  ".join("-" * width for width in widths)
    return "\n".join([lines[0], rule, *lines[1:], "95 % bootstrap intervals in brackets"])
