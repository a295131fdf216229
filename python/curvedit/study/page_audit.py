"""The audit of the study's page: does forgetting last under rounding, training, other prompts?"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from curvedit.evaluation import Metric
from curvedit.report import meaning_of
from curvedit.study.page_figures import looks_of, relearning
from curvedit.study.page_marks import legend, mark, stroke
from curvedit.study.page_tables import Row, keys_of, matrix
from curvedit.study.reading import HELD_OUT, TUNED, Arm, read_metric, read_metrics


def audit(found: Mapping[str, Any], before: Mapping[str, Metric], arms: Sequence[Arm]) -> str:
    """What of the forgetting lasts, as far as it was tried."""
    blocks = [
        _rounding(found.get("rounding") or (), before, arms),
        _relearning(found.get("relearning") or (), arms),
        _prompts(found.get("prompts") or {}, arms),
    ]
    if not any(blocks):
        return ""
    return (
        '<section><h2>Does it last?</h2><p class="sub">Whether tokens come back where the edited '
        f"weights are rounded, trained on, or asked in other ways.</p>{''.join(blocks)}</section>"
    )


def _rounding(
    found: Sequence[Mapping[str, Any]], before: Mapping[str, Metric], arms: Sequence[Arm]
) -> str:
    """Models down; the sides, each unrounded and at every number of bits, across."""
    models = {"before": before} | {arm.name: arm.metrics for arm in arms}
    by_name: dict[str, dict[str, Metric]] = {}
    sides = ((TUNED, "tuned on"), (HELD_OUT, "held out"))
    bits = sorted({int(each["bits"]) for each in found}, reverse=True)
    for each in found:
        row = by_name.setdefault(str(each["arm"]), {})
        for key, side in sides:
            if (metric := read_metric(each.get(key))) is not None:
                row[f"right: {side}, {each['bits']} bits"] = metric
            if key in models.get(str(each["arm"]), {}):
                row[f"right: {side}, as is"] = models[str(each["arm"])][key]
    rows = _rows(by_name, arms)
    columns = [
        f"right: {side}, {how}"
        for _, side in sides
        for how in ("as is", *(f"{count} bits" for count in bits))
    ]
    keys = [key for key in columns if any(key in metrics for _, _, metrics in rows)]
    if not keys:
        return ""
    return f'<h3 class="part">Rounded weights: tokens right</h3>{matrix(rows, keys)}'


def _relearning(found: Sequence[Mapping[str, Any]], arms: Sequence[Arm]) -> str:
    looks = looks_of([str(curve["arm"]) for curve in found], arms)
    by_text: dict[str, list[Mapping[str, Any]]] = {}
    for curve in found:
        by_text.setdefault(str(curve.get("on") or ""), []).append(curve)
    drawings = {text: relearning(curves, looks) for text, curves in by_text.items()}
    cards = "".join(
        f'<div class="card"><h3>{escape(f"on {text}" if text else "training")}</h3>{drawn}</div>'
        for text, drawn in drawings.items()
        if drawn
    )
    if not cards:
        return ""
    entries = [(stroke(*look), _called(name)) for name, look in looks.items()]
    return (
        f'<h3 class="part">Relearning: tokens right after training</h3>{legend(entries)}'
        f'<div class="panels">{cards}</div>'
    )


def _prompts(found: Mapping[str, Any], arms: Sequence[Arm]) -> str:
    rows = _rows({name: read_metrics(metrics) for name, metrics in found.items()}, arms)
    families = dict.fromkeys(key.partition(": ")[0] for _, _, each in rows for key in each)
    parts = []
    for family in families:
        keys = keys_of(rows, family)
        if keys:
            label = meaning_of(f"{family}: \0").label.removesuffix(", \0").lower()
            parts.append(
                f'<h3 class="part">Other prompts: {escape(label)}</h3>{matrix(rows, keys)}'
            )
    return "".join(parts)


def _rows(found: Mapping[str, Mapping[str, Metric]], arms: Sequence[Arm]) -> list[Row]:
    criteria = {arm.name: arm.criterion for arm in arms}
    return [
        (_called(name), mark(criteria.get(name, name)), metrics)
        for name, metrics in found.items()
        if metrics
    ]


def _called(name: str) -> str:
    return "unedited" if name == "before" else name
