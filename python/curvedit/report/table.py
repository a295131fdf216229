"""Metrics as a table of text for the terminal."""

from collections.abc import Mapping

from curvedit.report.metrics import Metric, Metrics, meaning_of, spell


def render(columns: list[tuple[str, Metrics]], differences: Mapping[str, Metric]) -> str:
    """One row per metric, one column per model; each cell is a value and its 95 % interval.

    Differences, after less before, are a last column where there are any.
    """
    rows = [["", *(name for name, _ in columns), *(["after less before"] if differences else [])]]
    for key in dict.fromkeys(key for _, metrics in columns for key in metrics):
        meaning = meaning_of(key)
        aim = f" ({meaning.aim})" if meaning.aim else ""
        cells = [" ".join(spell(key, each[key])) if key in each else "-" for _, each in columns]
        if differences:
            found = differences.get(key)
            cells.append("-" if found is None else " ".join(spell(key, found, signed=True)))
        rows.append([meaning.label + aim, *cells])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    rule = "  ".join("-" * width for width in widths)
    return "\n".join([lines[0], rule, *lines[1:], _note(differences)])


def _note(differences: Mapping[str, Metric]) -> str:
    return "95 % bootstrap intervals in brackets" + ("; differences paired" if differences else "")
