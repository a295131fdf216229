"""The tables of the study's page: edits, contrasts, goals, and whatever goes by model and key."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any

from curvedit.evaluation import Metric
from curvedit.report import style, svg
from curvedit.study.page_marks import mark
from curvedit.study.reading import (
    HELD_OUT,
    RELATED,
    TUNED,
    Arm,
    finite,
    percent,
    places_of,
    read_metric,
    rise,
    spelled,
)

Row = tuple[str, str, Mapping[str, Metric]]  # name, mark, metrics by key
_NONE = '<td class="number">–</td>'
_GROUPS = (  # heading, the columns below it with their keys
    ("Tokens right", (("tuned on", TUNED), ("same sources", RELATED), ("held out", HELD_OUT))),
    ("Near passages", (("tuned on", "near: tune"), ("held out", "near: test"))),
    ("KL divergence", (("nats per token", "kl"),)),
    ("Top-1", (("agreement", "top1"),)),
)


def edits(before: Mapping[str, Metric], arms: Sequence[Arm]) -> str:
    """The main table: the unedited model, then the arms by place."""
    models = [before, *(arm.metrics for arm in arms)]
    groups = [
        (head, [(name, key) for name, key in columns if any(key in found for found in models)])
        for head, columns in _GROUPS
    ]
    groups = [(head, columns) for head, columns in groups if columns]
    keys = [key for _, columns in groups for _, key in columns]
    extra = [
        *([("Perplexity", "change")] if "perplexity" in before else []),
        *([("Weights", "change")] if any(arm.change is not None for arm in arms) else []),
    ]
    if not keys and not extra:
        return ""
    heads = [(head, len(columns)) for head, columns in groups] + [(head, 1) for head, _ in extra]
    names = [name for _, columns in groups for name, _ in columns] + [name for _, name in extra]
    top = "".join(
        f'<th class="number{" span" if wide > 1 else ""}" colspan="{wide}">{head}</th>'
        for head, wide in heads
    )
    below = "".join(f'<th class="number">{name}</th>' for name in names)
    rows = [
        f'<tr class="unedited"><td class="name">{mark("before")}unedited</td>'
        + "".join(_cell(key, before.get(key)) for key in keys)
        + "".join(
            _cell("perplexity", before["perplexity"]) if head == "Perplexity" else _NONE
            for head, _ in extra
        )
        + "</tr>"
    ]
    for place, members in places_of(arms).items():
        if place:
            rows.append(
                f'<tr class="place"><td colspan="{1 + len(names)}"><span>{escape(place)}</span>'
                "</td></tr>"
            )
        for arm in members:
            rose = rise(before, arm)
            rows.append(
                f'<tr><td class="name">{mark(arm.criterion)}{escape(arm.label)}{_how(arm)}</td>'
                + "".join(_cell(key, arm.metrics.get(key)) for key in keys)
                + "".join(
                    _spelled(percent(rose) if rose else None)
                    if head == "Perplexity"
                    else _share(arm.change)
                    for head, _ in extra
                )
                + "</tr>"
            )
    return (
        '<div class="sheet"><table class="wide"><thead>'
        f"<tr><th></th>{top}</tr><tr><th>Edit</th>{below}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _how(arm: Arm) -> str:
    parts = []
    if arm.strength is not None:
        parts.append(f"{arm.what or 'strength'}: {arm.strength:.3g}")
    if arm.missed:
        parts.append("did not lose the share asked for")
    if arm.note:
        parts.append(arm.note)
    return f'<span class="what">{escape("; ".join(parts))}</span>' if parts else ""


def _cell(key: str, metric: Metric | None) -> str:
    return _spelled(spelled(key, metric) if metric is not None else None)


def _spelled(pair: tuple[str, str] | None) -> str:
    if pair is None:
        return _NONE
    value, interval = pair
    return (
        f'<td class="number"><span class="value">{value}</span>'
        f'<span class="interval">{interval}</span></td>'
    )


def _share(share: float | None) -> str:
    return _NONE if share is None else f'<td class="number">{100 * share:.1f} %</td>'


def goals(found: Sequence[Mapping[str, Any]]) -> str:
    """Each goal, whether it was met, and by which arm."""
    rows = []
    for goal in found:
        met = goal.get("met")
        word = "open" if met is None else "met" if met else "missed"
        figure = finite(goal.get("figure"))
        reached = "–" if figure is None else f"{figure:.3g}"
        rows.append(
            f'<tr><td class="verdict"><span class="pill {word}">{word}</span></td>'
            f'<td class="goal">{escape(str(goal["goal"]))}</td>'
            f'<td class="number"><span class="value">{reached}</span></td>'
            f"<td>{escape(str(goal.get('arm') or ''))}</td></tr>"
        )
    return (
        '<div class="sheet"><table><thead><tr><th></th><th>Goal</th><th class="number">Reached</th>'
        f"<th>By</th></tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def contrasts(found: Sequence[Mapping[str, Any]]) -> str:
    """What each criterion costs beside the best control, with the intervals on one scale."""
    known = [(each, ratio) for each in found if (ratio := read_metric(each.get("ratio")))]
    ends = [end for _, ratio in known for end in (ratio.low, ratio.high) if end > 0]
    if not ends:
        return ""
    scale = svg.Axis(min(*ends, 0.5) / 1.1, max(*ends, 2.0) * 1.1, 4, 216, log=True)
    rows = []
    for each, ratio in known:
        tokens = each.get("fit_tokens")
        rows.append(
            f'<tr><td class="name">{mark(str(each["arm"]))}{escape(str(each["arm"]))}</td>'
            f"<td>{escape(str(each.get('place') or ''))}</td>"
            f'<td class="number">{f"{tokens:,}" if isinstance(tokens, int) else "–"}</td>'
            f"<td>{mark(str(each['control']))}{escape(str(each['control']))}</td>"
            f'<td class="number ratio"><span class="value">{ratio.value:.2f}</span>'
            f' <span class="beside">[{ratio.low:.2f}, {ratio.high:.2f}]</span></td>'
            f'<td class="strip">{_strip(ratio, scale, each)}</td></tr>'
        )
    return (
        '<div class="sheet"><table class="wide"><thead><tr><th>Criterion</th><th>Place</th>'
        '<th class="number">Tokens of the fit</th><th>Best control</th>'
        '<th class="number">Cost ratio</th><th class="strip">cheaper ← 1 → dearer</th>'
        f"</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _strip(ratio: Metric, scale: svg.Axis, each: Mapping[str, Any]) -> str:
    colour = style.CUT if ratio.low > 1 else style.AFTER if ratio.high < 1 else style.BEFORE
    low, value, high = (scale.at(max(x, scale.low)) for x in (ratio.low, ratio.value, ratio.high))
    parts = [
        svg.line(4, 11, 216, 11),
        svg.line(scale.at(1), 0, scale.at(1), 22, style.INK, 1, "3 3"),
        svg.line(low, 11, high, 11, colour, 2.4),
        *(svg.line(x, 7, x, 15, colour, 1.5) for x in (low, high)),
        svg.dot(value, 11, colour, 5),
    ]
    return svg.drawing(220, 22, parts, f"{each['arm']} over {each['control']}: {ratio.value:.2f}")


def matrix(
    rows: Sequence[Row],
    keys: Sequence[str],
    write: Callable[[str, Row], tuple[str, str] | None] | None = None,
    *,
    dense: bool = False,
) -> str:
    """One row per model and one column per key, headed by what follows the key's family.

    Args:
        rows: The models.
        keys: The columns.
        write: How a cell is written; by default as the metric itself.
        dense: Set intervals beside their values, not below them.
    """

    def plain(key: str, row: Row) -> tuple[str, str] | None:
        return spelled(key, row[2][key]) if key in row[2] else None

    style = "wide dense" if dense else "wide"
    head = "".join(
        f'<th class="number">{escape(key.partition(": ")[2] or key)}</th>' for key in keys
    )
    body = "".join(
        f'<tr><td class="name">{sign}{escape(name)}</td>'
        + "".join(_spelled((write or plain)(key, (name, sign, found))) for key in keys)
        + "</tr>"
        for name, sign, found in rows
    )
    return (
        f'<div class="sheet"><table class="{style}"><thead><tr><th>Model</th>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def keys_of(rows: Iterable[Row], family: str) -> list[str]:
    """The keys of a family that any of the models has, in their order."""
    found = (key for _, _, metrics in rows for key in metrics if key.startswith(f"{family}: "))
    return list(dict.fromkeys(found))
