"""The report as one self-contained page, rendered from ``report.json`` alone."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from curvedit.report import figures, passages
from curvedit.report.figures import Entry
from curvedit.report.metrics import Metric, Metrics, meaning_of, spell
from curvedit.report.parts import facts, flat, warnings_box, whole_page
from curvedit.report.style import AFTER, BEFORE, CONTROLS
from curvedit.report.verdict import caveats, headline, sentence, tiles
from curvedit.selection import TargetSummary

_SHOWN = 12  # targets with figures
_RECITED = {"strict", "loose", "avg_levenshtein"}
Columns = list[tuple[str, str, Metrics]]  # name, colour, metrics by key


def render(document: Mapping[str, Any]) -> str:
    """The page of a ``report.json`` document."""
    columns = _columns(document)
    targets = [TargetSummary.from_json(target) for target in document["targets"]]
    title = headline(document)
    body = [
        _header(document, columns, title, targets),
        warnings_box(document["warnings"]),
        _metrics(document, columns),
        _panels(columns),
        passages.section(document.get("details", {})),
        _figures(targets),
        _targets(targets),
        _provenance(document),
        _limits(document),
    ]
    return whole_page(title, body, document["tool"], passages.CSS)


def _columns(document: Mapping[str, Any]) -> Columns:
    found: Columns = [("before", BEFORE, Metrics.from_json(document["before"]))]
    if document["after"] is not None:
        found.append(("after", AFTER, Metrics.from_json(document["after"])))
    for place, control in enumerate(document["controls"]):
        colour = CONTROLS[place % len(CONTROLS)]
        found.append((control["name"], colour, Metrics.from_json(control)))
    return found


def _keys(columns: Columns) -> list[str]:
    return list(dict.fromkeys(key for _, _, metrics in columns for key in metrics))


def _entries(columns: Columns, key: str) -> list[Entry]:
    return [
        Entry(name, colour, metrics[key]) for name, colour, metrics in columns if key in metrics
    ]


def _header(
    document: Mapping[str, Any], columns: Columns, title: str, targets: Sequence[TargetSummary]
) -> str:
    before, after = columns[0][2], columns[1][2] if document["after"] is not None else None
    recipe = document["recipe"]
    facts = []
    if document["model"].get("parameters"):
        facts.append(
            f"{document['model']['class']}, {document['model']['parameters']:,} parameters"
        )
    if targets:
        sizes = [
            1 if target.shape is None else target.shape[0] * target.shape[1] for target in targets
        ]
        kept = sum(
            target.kept_share * size for target, size in zip(targets, sizes, strict=True)
        ) / sum(sizes)
        plural = "matrix" if len(targets) == 1 else "matrices"
        how = f", {100 * kept:.3g} % of components kept" if "budget" not in recipe else ""
        facts.append(f"{len(targets)} weight {plural} edited{how}")
    if "budget" in recipe:
        facts.append(f"targeted, within {recipe['budget']:g} nats per position")
    if "criterion" in recipe and "keep_mass" in recipe:
        facts.append(f"criterion {recipe['criterion']}, keep_mass {recipe['keep_mass']:g}")
    cards = "".join(
        f'<div class="tile"><div class="name">{escape(tile.name)}</div>'
        f'<div class="big{"" if tile.edited else " plain"}">{escape(tile.value)}</div>'
        f'<div class="from">{escape(tile.note)}</div></div>'
        for tile in tiles(before, after)
    )
    changes = Metrics.from_json(document.get("differences", {}).get("after", {}))
    lead = sentence(before, after, document["data"], changes).replace(" %", "\u00a0%")
    return (
        f'<header><div class="kicker">curvedit report</div><h1>{escape(title)}</h1>'
        f'<p class="lead">{escape(lead)}</p>'
        f'<p class="sub">{escape(" · ".join(facts))}</p><div class="tiles">{cards}</div></header>'
    )


def _metrics(document: Mapping[str, Any], columns: Columns) -> str:
    head = "".join(
        f'<th class="number"><span class="swatch" style="background:{colour}"></span>'
        f"{escape(name)}</th>"
        for name, colour, _ in columns
    )
    stored = document.get("differences", {})
    changes: Mapping[str, Mapping[str, Metric]] = {
        name: Metrics.from_json(found) for name, found in stored.items()
    }
    rows = []
    for key in _keys(columns):
        meaning = meaning_of(key)
        what = "; ".join(part for part in (meaning.text, meaning.aim) if part)
        cells = "".join(
            _cell(key, name, metrics.get(key), changes.get(name, {}).get(key))
            for name, _, metrics in columns
        )
        rows.append(
            f'<tr><td>{escape(meaning.label)}<span class="what">{escape(what)}</span></td>'
            f"{cells}</tr>"
        )
    notes = [_counts(document["data"]), *caveats(columns, document["data"])]
    return (
        "<section><h2>Measurements</h2>"
        '<p class="sub">Values with 95 % bootstrap intervals; Δ is the difference from before, its '
        "interval paired.</p>"
        f'<div class="sheet"><table><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
        + "".join(f'<p class="note">{escape(note)}</p>' for note in notes if note)
        + "</section>"
    )


def _cell(key: str, name: str, metric: Metric | None, change: Metric | None) -> str:
    if metric is None:
        return '<td class="number">–</td>'
    value, interval = spell(key, metric)
    style = "number after" if name == "after" else "number"
    return (
        f'<td class="{style}"><span class="value">{value}</span>'
        f'<span class="interval">{interval}</span>{_change(key, change)}</td>'
    )


def _change(key: str, change: Metric | None) -> str:
    if change is None:
        return ""
    value, interval = spell(key, change, signed=True)
    return f'<span class="interval">Δ {value} {interval}</span>'


def _counts(data: Mapping[str, Mapping[str, int]]) -> str:
    parts = [
        f"{key.replace('_', ' ')}: "
        + ", ".join(f"{count:,} {unit}" for unit, count in counts.items() if unit != key)
        if set(counts) != {key}
        else f"{counts[key]:,} {key}"
        for key, counts in data.items()
    ]
    return "Measured on " + "; ".join(parts) + "." if parts else ""


def _panels(columns: Columns) -> str:
    cards = [
        f'<div class="card"><h3>{escape(meaning_of(key).label)}</h3>'
        f"{figures.intervals(key, _entries(columns, key))}</div>"
        for key in _keys(columns)
    ]
    both = [
        (name, colour, metrics)
        for name, colour, metrics in columns
        if {"strict", "perplexity"} <= set(metrics)
    ]
    chart = ""
    if len(both) > 1:
        forgotten, kept = _entries(both, "strict"), _entries(both, "perplexity")
        chart = (
            '<div class="card" style="margin-top:14px"><h3>Recitation against perplexity</h3>'
            '<p class="sub" style="margin-top:0">'
            "Towards the lower left: more forgotten at less cost.</p>"
            f"{figures.trade_off(forgotten, kept, ('perplexity', 'strict'))}</div>"
        )
    return (
        "<section><h2>Before and after</h2>"
        '<p class="sub">Each metric on its own scale; bars are the 95 % intervals.</p>'
        f'<div class="panels">{"".join(cards)}</div>{chart}</section>'
    )


def _figures(targets: Sequence[TargetSummary]) -> str:
    targets = [target for target in targets if target.limits or target.values_out]
    if not targets:
        return ""
    shown = _sample(targets)
    cards = "".join(
        f'<div class="card"><h3 class="mono">{escape(target.name)}</h3>'
        f'<p class="sub" style="margin-top:0">{100 * target.kept_share:.3g} % of components kept, '
        f"holding {100 * target.mass:.3g} % of the mass</p>"
        f'<div class="pair">{figures.spectrum(target)}{figures.staircase(target)}</div></div>'
        for target in shown
    )
    count = (
        f"All {len(targets)} targets."
        if len(shown) == len(targets)
        else f"{len(shown)} of {len(targets)} targets."
    )
    return (
        "<section><h2>What was kept</h2>"
        f'<p class="sub">{count} Left: the largest curvature each eigenvector takes part in, by '
        "rank, and the cut; a direction below the line keeps no component. Right: the kept "
        "components (filled) among all, by rank, sharpest in the upper left corner. All axes are "
        f'logarithmic.</p><div class="panels two">{cards}</div></section>'
    )


def _sample(targets: Sequence[TargetSummary]) -> list[TargetSummary]:
    """At most twelve, spread evenly over the order given."""
    if len(targets) <= _SHOWN:
        return list(targets)
    last = len(targets) - 1
    return [targets[round(place * last / (_SHOWN - 1))] for place in range(_SHOWN)]


def _targets(targets: Sequence[TargetSummary]) -> str:
    if not targets:
        return ""
    changed = any(target.change is not None for target in targets)
    names = [
        "Target",
        "Shape",
        "Kept",
        "Mass",
        "Threshold",
        *(["Change"] if changed else []),
        "SHA-256 of the weight",
    ]
    head = "".join(
        f'<th class="{"number" if 0 < i < len(names) - 1 else ""}">{n}</th>'
        for i, n in enumerate(names)
    )
    rows = "".join(f"<tr>{''.join(_target_cells(target, changed))}</tr>" for target in targets)
    extra = (
        " Change is the edited weight's distance from the original, relative (Frobenius)."
        if changed
        else ""
    )
    return (
        "<section><h2>Targets</h2>"
        f'<p class="sub">Kept is the share of components, mass their share of the score.{extra}</p>'
        f'<div class="sheet"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div></section>"
    )


def _target_cells(target: TargetSummary, changed: bool) -> Iterable[str]:
    shape = "–" if target.shape is None else " × ".join(map(str, target.shape))
    threshold = "–" if target.threshold is None else f"{target.threshold:.3g}"
    yield f'<td class="mono">{escape(target.name)}</td>'
    yield f'<td class="number">{shape}</td>'
    yield f'<td class="number">{100 * target.kept_share:.3g} %</td>'
    yield f'<td class="number">{100 * target.mass:.4g} %</td>'
    yield f'<td class="number">{threshold}</td>'
    if changed:
        change = "–" if target.change is None else f"{target.change:.3f}"
        yield f'<td class="number">{change}</td>'
    arrow = f" → {target.sha256_after[:10]}" if target.sha256_after else ""
    yield f'<td class="mono">{escape(target.weight_sha256[:10] + arrow)}</td>'


def _provenance(document: Mapping[str, Any]) -> str:
    blocks = [
        facts("Recipe", document["recipe"]),
        facts("Model", document["model"]),
        facts("Data, SHA-256", document["hashes"]),
        facts("Made with", document["tool"]),
    ]
    return (
        "<section><h2>How it was made</h2>"
        '<p class="sub">Everything here is also in report.json.</p>'
        f'<div class="columns">{"".join(block for block in blocks if block)}</div>'
        f"{_stages(document['stages'])}</section>"
    )


def _stages(stages: Mapping[str, Mapping[str, Any]]) -> str:
    if not stages:
        return ""
    longest = max(stage["seconds"] for stage in stages.values()) or 1.0
    rows = []
    for name, stage in stages.items():
        share = 100 * stage["seconds"] / longest
        peak = stage.get("peak_memory_bytes")
        memory = "–" if peak is None else f"{peak / 2**30:.2f} GiB"
        backend = ", ".join(f"{key}: {value}" for key, value in flat(stage.get("backend") or {}))
        rows.append(
            f'<tr><td>{escape(name)}</td><td class="number">{stage["seconds"]:,.1f} s</td>'
            f'<td style="width:34%"><div class="bar" style="width:{share:.1f}%"></div></td>'
            f'<td class="number">{memory}</td><td class="text">{escape(backend)}</td></tr>'
        )
    return (
        '<div class="sheet" style="margin-top:14px"><table><thead><tr><th>Stage</th>'
        '<th class="number">Time</th><th></th><th class="number">Peak memory</th>'
        "<th>Backend</th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _limits(document: Mapping[str, Any]) -> str:
    keys = set(document["before"])
    points = []
    if keys & _RECITED:
        points += [
            "No guarantee of complete removal. Recitation is measured by greedy decoding from "
            "these prefixes; other prompts, sampling or beam search may still bring a passage out.",
            "What was forgotten may resurface after fine-tuning, even on unrelated data.",
        ]
    if "perplexity" in keys:
        points.append(
            "Perplexity and nDCG are averages over text. In the published results, arithmetic and "
            "facts recalled without context suffered more than these averages show "
            "(arXiv:2510.24256, table 8): measure the tasks you need."
        )
    points.append(
        "The intervals cover the draw of passages, windows and samples, not the choice of data, "
        "the seed of the fit or the choice of layers. Settings that were tuned on the data "
        "measured here look better than they are."
    )
    listed = "".join(f"<li>{point}</li>" for point in points)
    return f"<section><h2>What this does not claim</h2><ul>{listed}</ul></section>"
