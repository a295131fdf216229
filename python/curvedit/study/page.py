"""The study as one self-contained page, rendered from ``study.json`` alone."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from curvedit.evaluation import Metric
from curvedit.report import number, parts
from curvedit.study import page_figures, page_map, page_tables
from curvedit.study.page_audit import audit
from curvedit.study.page_marks import legend, mark, stroke
from curvedit.study.page_style import CSS
from curvedit.study.page_tables import Row, keys_of, matrix
from curvedit.study.reading import (
    HELD_OUT,
    TUNED,
    Arm,
    finite,
    percent,
    read_arms,
    read_metric,
    read_metrics,
    rise,
    spelled,
)
from curvedit.study.words import SIDES, best_targeted, counts, finding, limits, tallied, title_of


def render(document: Mapping[str, Any]) -> str:
    """The page of a ``study.json`` document.

    Args:
        document: The record of a study; parts it lacks are left out.

    Returns:
        A whole HTML document that loads nothing.
    """
    before, arms = read_metrics(document.get("before")), read_arms(document)
    title = title_of(document)
    sections = [
        _header(document, title, before, arms),
        parts.warnings_box(document.get("warnings") or ()),
        _goals(document),
        _edits(document, before, arms),
        _contrasts(document),
        _prices(before, arms),
        _strengths(document, before, arms),
        page_map.section(document["map"]) if document.get("map") else "",
        _tasks(document, arms),
        audit(document.get("audit") or {}, before, arms),
        _domains(before, arms),
        _provenance(document),
        _limits(document),
    ]
    return parts.whole_page(title, sections, document.get("tool") or {}, CSS)


def _header(
    document: Mapping[str, Any], title: str, before: Mapping[str, Metric], arms: Sequence[Arm]
) -> str:
    model, facts = document.get("model") or {}, []
    if model.get("parameters"):
        facts.append(f"{model.get('class') or 'model'}, {model['parameters']:,} parameters")
    if arms:
        places = len({arm.place for arm in arms if arm.place})
        plural = "" if len(arms) == 1 else "s"
        facts.append(f"{len(arms)} edit{plural}" + (f" in {places} places" if places > 1 else ""))
    lost = finite((document.get("settings") or {}).get("lost"))
    if lost is not None and arms:
        facts.append(f"matched at {100 * lost:.1f} % of the tokens lost")
    cards = "".join(
        f'<div class="tile"><div class="name">{escape(name)}</div>'
        f'<div class="big{plain}">{escape(value)}</div><div class="from">{escape(note)}</div></div>'
        for name, value, note, plain in _tiles(document, before, arms)
    )
    lead = finding(document).replace(" %", "\u00a0%")
    return (
        f'<header><div class="kicker">curvedit study</div><h1>{escape(title)}</h1>'
        f'<p class="lead">{escape(lead)}</p><p class="sub">{escape(" · ".join(facts))}</p>'
        f'<div class="tiles">{cards}</div></header>'
    )


def _tiles(
    document: Mapping[str, Any], before: Mapping[str, Metric], arms: Sequence[Arm]
) -> list[tuple[str, str, str, str]]:
    """Name, value, note and style of the numbers at the top."""
    tiles = []
    key = HELD_OUT if HELD_OUT in before else TUNED
    if key in before:
        side = "test" if key == HELD_OUT else "tune"
        note = counts((document.get("passages") or {}).get(side) or {})
        tiles.append(("Tokens right, unedited", number("right", before[key].value), note, " plain"))
    ratios, below, _ = tallied(document.get("contrasts") or ())
    if ratios:
        best = min(
            (each for each in document["contrasts"] if read_metric(each.get("ratio"))),
            key=lambda each: float(each["ratio"]["value"]),
        )
        note = f"{best['arm']}, {best.get('place') or 'one place'}; below 1 in {below} of "
        tiles.append(
            (
                "Lowest cost beside a control",
                f"{best['ratio']['value']:.2f} ×",
                f"{note}{len(ratios)} comparisons",
                "",
            )
        )
    targeted = best_targeted(arms)
    if targeted is not None:
        held = targeted.metrics.get(HELD_OUT)
        note = f"held out: {number('right', held.value)}" if held else targeted.name
        value = number("right", targeted.metrics[TUNED].value)
        tiles.append(("Tokens right, targeted", value, note, ""))
    goals = document.get("goals") or ()
    if goals:
        met = sum(goal.get("met") is True for goal in goals)
        tiles.append(("Goals met", f"{met} of {len(goals)}", "", "" if met else " plain"))
    return tiles


def _goals(document: Mapping[str, Any]) -> str:
    goals = document.get("goals") or ()
    if not goals:
        return ""
    return (
        "<section><h2>Goals</h2>"
        '<p class="sub">What each goal asks for, in its own unit, and by which arm.</p>'
        f"{page_tables.goals(goals)}</section>"
    )


def _edits(document: Mapping[str, Any], before: Mapping[str, Metric], arms: Sequence[Arm]) -> str:
    found = page_tables.edits(before, arms)
    if not found:
        return ""
    missed = [arm.name for arm in arms if arm.missed]
    note = (
        '<p class="note">Not matched in forgetting, and so not comparable in price: '
        f"{escape('; '.join(missed))}.</p>"
        if missed
        else ""
    )
    counts = _counted(document)
    return (
        "<section><h2>Edits</h2>"
        '<p class="sub">Values with 95 % bootstrap intervals; the change of perplexity is paired. '
        "Near: passages with at least 75 % of the tokens right. Weights: distance of the edited "
        f"from the original, relative (Frobenius).{counts}</p>{found}{note}</section>"
    )


def _counted(document: Mapping[str, Any]) -> str:
    sides = document.get("passages") or {}
    said = [
        f"{name.capitalize()}: {counts(sides[side])}"
        for side, name in SIDES.items()
        if side in sides
    ]
    return escape(f" {'. '.join(said)}.") if said else ""


def _contrasts(document: Mapping[str, Any]) -> str:
    found = page_tables.contrasts(document.get("contrasts") or ())
    if not found:
        return ""
    return (
        "<section><h2>Price beside the best control</h2>"
        '<p class="sub">The rise of perplexity over that of the best control which forgets as '
        f"much in the same place; below 1 is better. Logarithmic scale.</p>{found}</section>"
    )


def _prices(before: Mapping[str, Metric], arms: Sequence[Arm]) -> str:
    price = page_figures.price_of(before, arms)
    drawings = page_figures.prices(before, arms, price) if price else {}
    if not price or not drawings:
        return ""
    criteria = dict.fromkeys(arm.criterion for arm in arms)
    sizes = {arm.fit_tokens for arm in arms if arm.fit_tokens}
    less = " Smaller marks: factors from less text." if len(sizes) > 1 else ""
    cards = "".join(_card(place or "all layers", drawn) for place, drawn in drawings.items())
    return (
        "<section><h2>Forgetting against price</h2>"
        '<p class="sub">Lower left is better: more forgotten at less cost. Bars are 95 % '
        f"intervals; prices on a logarithmic scale.{less}</p>"
        f"{legend([(mark(criterion), criterion) for criterion in criteria])}"
        f'<div class="panels">{cards}</div></section>'
    )


def _card(title: str, drawing: str, sign: str = "") -> str:
    return f'<div class="card"><h3>{sign}{escape(title)}</h3>{drawing}</div>'


def _strengths(
    document: Mapping[str, Any], before: Mapping[str, Metric], arms: Sequence[Arm]
) -> str:
    lost = finite((document.get("settings") or {}).get("lost"))
    aim = before[TUNED].value * (1 - lost) if lost is not None and TUNED in before else None
    drawings = page_figures.strengths(arms, aim)
    if not drawings:
        return ""
    tried = [arm for arm in arms if len(arm.tried) > 1]
    sizes = sorted({arm.fit_tokens for arm in tried if arm.fit_tokens}, reverse=True)
    entries = [
        (stroke(colour), place or "all layers")
        for place, colour in page_figures.place_colours(tried).items()
    ]
    if len(sizes) > 1:
        entries += [
            (stroke("#68707c", page_figures.dash_of(size, sizes)), f"{size:,} tokens")
            for size in sizes
        ]
    cards = "".join(_card(name, drawn, mark(name)) for name, drawn in drawings.items())
    return (
        "<section><h2>Strengths tried</h2>"
        '<p class="sub">What each strength left right on the passages tuned on. Large marks: the '
        f'one chosen.</p>{legend(entries)}<div class="panels">{cards}</div></section>'
    )


def _tasks(document: Mapping[str, Any], arms: Sequence[Arm]) -> str:
    criteria = {arm.name: arm.criterion for arm in arms}
    rows: list[Row] = [
        ("unedited" if name == "before" else name, mark(criteria.get(name, name)), metrics)
        for name, found in (document.get("tasks") or {}).items()
        if (metrics := read_metrics(found))
    ]
    keys = keys_of(rows, "task")
    if not keys:
        return ""
    return (
        '<section><h2>Tasks</h2><p class="sub">Items answered right; higher is better.</p>'
        f"{matrix(rows, keys)}</section>"
    )


def _domains(before: Mapping[str, Metric], arms: Sequence[Arm]) -> str:
    rows: list[Row] = [
        ("unedited", mark("before"), before),
        *((arm.name, mark(arm.criterion), arm.metrics) for arm in arms),
    ]
    keys = keys_of(rows, "perplexity")
    if not keys:
        return ""
    by_name = {arm.name: arm for arm in arms}

    def write(key: str, row: Row) -> tuple[str, str] | None:
        if row[0] not in by_name:
            return spelled(key, row[2][key]) if key in row[2] else None
        rose = rise(before, by_name[row[0]], key)
        return percent(rose) if rose else None

    return (
        '<section><h2>Perplexity by domain</h2><p class="sub">Of the unedited model, and below it '
        "how far each edit changes it; paired intervals.</p>"
        f"{matrix(rows, keys, write, dense=True)}</section>"
    )


def _provenance(document: Mapping[str, Any]) -> str:
    seconds = {
        name: f"{taken:,.1f} s"
        for name, value in (document.get("seconds") or {}).items()
        if (taken := finite(value)) is not None
    }
    passages, texts = ((document.get(key) or {}).items() for key in ("passages", "text"))
    blocks = [
        parts.facts("Settings", document.get("settings") or {}),
        parts.facts("Model", document.get("model") or {}),
        parts.facts("Passages", {SIDES.get(side, side): counts(each) for side, each in passages}),
        parts.facts("Text", {name: counts(each) for name, each in texts}),
        parts.facts("Made with", document.get("tool") or {}),
        parts.facts("Time", seconds),
    ]
    return (
        '<section><h2>How it was made</h2><p class="sub">Everything here is also in study.json.</p>'
        f'<div class="columns">{"".join(block for block in blocks if block)}</div></section>'
    )


def _limits(document: Mapping[str, Any]) -> str:
    listed = "".join(f"<li>{escape(point)}</li>" for point in limits(document))
    return f"<section><h2>What this does not show</h2><ul>{listed}</ul></section>"
