"""Metrics as a table of text for the terminal."""

from curvedit.report.metrics import Metrics, meaning_of, spell


def render(columns: list[tuple[str, Metrics]]) -> str:
    """One row per metric, one column per model; each cell is a value and its 95 % interval."""
    rows = [["", *(name for name, _ in columns)]]
    for key in dict.fromkeys(key for _, metrics in columns for key in metrics):
        meaning = meaning_of(key)
        aim = f" ({meaning.aim})" if meaning.aim else ""
        cells = [" ".join(spell(key, each[key])) if key in each else "-" for _, each in columns]
        rows.append([meaning.label + aim, *cells])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    rule = "  ".join("-" * width for width in widths)
    return "\n".join([lines[0], rule, *lines[1:], "95 % bootstrap intervals in brackets"])
