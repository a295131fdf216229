"""The report as one HTML page that needs nothing else: tables, plots as inline SVG, provenance."""

import html
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from curvedit import plots
from curvedit.files import write_whole
from curvedit.report import METRICS, Report, spelled, title

_STYLE = """
:root { --ink: #1c2430; --soft: #5d6878; --line: #dfe4ea; --paper: #ffffff; --ground: #f4f6f8; --mark: #0b6e99; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 15px/1.55 system-ui, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 32px 24px 64px; }
h1 { font-size: 28px; line-height: 1.25; margin: 0 0 4px; }
h2 { font-size: 18px; margin: 40px 0 12px; }
p { margin: 6px 0; max-width: 76ch; } .soft { color: var(--soft); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(210px, 1fr)); gap: 14px; margin: 24px 0 8px; }
.card, .sheet { background: var(--paper); border: 1px solid var(--line); border-radius: 10px; }
.card { padding: 14px 18px; } .card b { display: block; font-size: 25px; font-weight: 650; white-space: nowrap; }
.sheet { padding: 6px 18px; overflow-x: auto; }
.sheet svg { display: block; margin: 10px auto; max-width: 100%; height: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 9px 12px 9px 0; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } tr:last-child td { border-bottom: 0; }
th { color: var(--soft); font-weight: 600; font-size: 13px; }
td small { color: var(--soft); display: block; font-size: 12px; } td.after { color: var(--mark); font-weight: 650; }
pre { margin: 8px 0; font: 12.5px/1.5 ui-monospace, Menlo, Consolas, monospace; white-space: pre-wrap; overflow-wrap: anywhere; }
.note { border-left: 4px solid #d99a26; padding: 8px 14px; background: #fdf6e8; margin: 10px 0; border-radius: 0 8px 8px 0; }
"""


def save_report(report: Report, directory: str | Path) -> Path:
    """Write ``report.json`` and ``report.html`` into a directory; each is whole or absent.

    Returns:
        The directory.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    write_whole(directory / "report.json", json.dumps(report.to_json(), indent=2, allow_nan=False).encode())
    write_whole(directory / "report.html", render(report).encode())
    return directory


def render(report: Report) -> str:
    """The page."""
    parts = [_head(report), *(f'<p class="note">{_text(note)}</p>' for note in report.notes), _cards(report)]
    parts += ["<h2>Before and after</h2>", _sheet(_metrics(report)), _sheet(plots.metrics(report))]
    drawn = [target for target in report.targets if "limits" in target and "values_out" in target]
    if drawn:
        parts += ["<h2>Spectrum and cut</h2>", _spectrum_text(), _sheet(plots.spectra(drawn))]
        parts += ["<h2>Kept components</h2>", _staircase_text(len(drawn)), _sheet(plots.staircases(drawn))]
    if report.targets:
        parts += ["<h2>Targets</h2>", _sheet(_targets(report.targets))]
    if report.stages:
        parts += ["<h2>Time and memory</h2>", _sheet(_stages(report.stages))]
    provenance = {"recipe": report.recipe, "measured with": report.provenance}
    parts += ["<h2>Recipe and provenance</h2>", _sheet(f"<pre>{_text(json.dumps(provenance, indent=2, default=str))}</pre>")]
    parts += ["<h2>What this does not claim</h2>", _limits()]
    body = "\n".join(parts)
    name = _text(report.title or "curvedit report")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{name}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head>\n<body><main>\n{body}\n</main></body></html>\n"
    )


def _text(value: object) -> str:
    return html.escape(str(value))


def _sheet(content: str) -> str:
    return f'<div class="sheet">{content}</div>'


def _head(report: Report) -> str:
    recipe = report.recipe
    line = "Measured without an edit."
    if recipe:
        line = (
            f"{len(report.targets)} weight matrices projected onto their sharpest components: criterion "
            f"<b>{_text(recipe.get('criterion'))}</b>, {float(recipe.get('keep_mass', 1)):.1%} of the mass kept."
        )
    return f'<h1>{_text(report.title or "What the edit forgot, and what it kept")}</h1>\n<p class="soft">{line}</p>'


def _cards(report: Report) -> str:
    """The few numbers a reader looks for first."""
    if report.after is None:
        return ""
    cards = []
    if "strict" in report.before:
        before, after = report.before["strict"].value, report.after["strict"].value
        cards.append((f"{before:.0%} → {after:.0%}", "of the passages recited word for word"))
    if "perplexity" in report.before:
        change = report.after["perplexity"].value / report.before["perplexity"].value - 1
        cards.append((f"{change:+.1%}", "perplexity of held-out text"))
    if "ndcg10" in report.before:
        cards.append((f"{report.after['ndcg10'].value:.3f}", "agreement with the original's ten likeliest tokens (nDCG@10)"))
    for key in report.before:
        if key.startswith("accuracy/"):
            change = report.after[key].value - report.before[key].value
            cards.append((f"{report.after[key].value:.1%}", f"{title(key)} ({100 * change:+.1f} points)"))
    if report.targets and all("components_kept" in target for target in report.targets):
        kept = sum(target["components_kept"] for target in report.targets)
        total = sum(target["shape"][0] * target["shape"][1] for target in report.targets)
        cards.append((f"{kept / total:.1%}", "of the components kept in the edited matrices"))
    return '<div class="cards">' + "".join(f'<div class="card"><b>{_text(n)}</b>{_text(t)}</div>' for n, t in cards) + "</div>"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    top = "".join(f"<th>{cell}</th>" for cell in head)
    return f"<table><tr>{top}</tr>" + "".join(f"<tr>{''.join(row)}</tr>" for row in rows) + "</table>"


def _metrics(report: Report) -> str:
    columns = report.rows()
    rows = []
    for key in report.before:
        better = METRICS[key][2] if key in METRICS else "higher"
        hint = f"{better} is {'less recitation' if key in ('strict', 'loose', 'avg_levenshtein') else 'better'}"
        cells = [f"<td>{_text(title(key))}<small>{hint}</small></td>"]
        for name, metrics in columns:
            value, _, interval = spelled(key, metrics[key]).partition(" ")
            style = ' class="after"' if name == "after" else ""
            cells.append(f"<td{style}>{value}<small>{interval}</small></td>")
        rows.append(cells)
    return _table(["", *(_text(name) for name, _ in columns)], rows)


def _spectrum_text() -> str:
    return (
        '<p class="soft">Eigenvalues of both factors over their rank, largest = 1. The dashed line is the cut: '
        "component (i, j) stays while the product of its two eigenvalues is at least the threshold.</p>"
    )


def _staircase_text(number: int) -> str:
    shown = min(number, plots.MOST)
    return (
        f'<p class="soft">Per target, how many input eigenvectors (across) each output eigenvector (down) keeps. '
        f"The filled part is kept, the rest is removed. {shown} of {number} targets.</p>"
    )


def _targets(targets: Iterable[Mapping[str, Any]]) -> str:
    head = ["target", "shape", "components kept", "mass kept", "threshold", "relative change", "backend"]
    rows = []
    for target in targets:
        shape = target.get("shape")
        cells = [
            _text(target["name"]),
            f"{shape[0]} × {shape[1]}" if shape else "–",
            f"{target['kept']:.2%}",
            f"{target['mass']:.4f}",
            f"{target['threshold']:.3g}",
            f"{target['change']:.4f}",
            _text(target["backend"]),
        ]
        rows.append([f"<td>{cell}</td>" for cell in cells])
    return _table(head, rows)


def _stages(stages: Mapping[str, Mapping[str, float]]) -> str:
    rows = [
        [
            f"<td>{_text(name)}</td>",
            f"<td>{stage['seconds']:.1f} s</td>",
            f"<td>{stage['peak_memory_bytes'] / 2**30:.2f} GiB</td>",
        ]
        for name, stage in stages.items()
    ]
    return _table(["stage", "time", "peak memory"], rows)


def _limits() -> str:
    return (
        "<p>Recitation is measured on the passages given, with greedy decoding from one prefix length. A low number "
        "does not prove that the text is gone: other prompts or sampling may bring parts back, and further training "
        "may restore it. Edits of this kind also cost closed-book facts and arithmetic, which perplexity shows "
        "only in part; measure what you care about.</p>"
        "<p class='soft'>Intervals are 95 % percentile bootstraps over passages, windows or samples.</p>"
    )
