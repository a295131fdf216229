"""The report in words: heading, summary sentence, key numbers and caveats."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from curvedit.report.metrics import Metric, meaning_of, number

_FIRST = ("strict", "loose", "perplexity", "ndcg10")  # of the tiles, in this order
_TILES = 4


@dataclass(frozen=True)
class Tile:
    """One of the numbers at the top of the page."""

    name: str
    value: str
    note: str
    edited: bool


def headline(document: Mapping[str, Any]) -> str:
    """The given title, or one made from the model's name."""
    if document["title"]:
        return str(document["title"])
    path = str(document["model"].get("name_or_path") or "").rstrip("/")
    name = path.rsplit("/", maxsplit=1)[-1] or document["model"].get("class") or "the model"
    return (
        f"{name}: baseline"
        if document["after"] is None
        else f"{name}: what the edit forgot and what it kept"
    )


def sentence(
    before: Mapping[str, Metric],
    after: Mapping[str, Metric] | None,
    data: Mapping[str, Mapping[str, int]],
    differences: Mapping[str, Metric],
) -> str:
    """What happened, in one or two sentences; ``differences`` are after less before, paired."""
    if after is None:
        return "Measurements of the unedited model; no edit has been measured against it yet."
    parts = []
    both = [key for key in after if key in before]
    if "strict" in both:
        count = data.get("passages", {}).get("passages")
        of = f" of {count:,} passages" if count else ""
        moved = _moved("strict", before["strict"], after["strict"], differences)
        parts.append(f"Verbatim recitation {moved}{of}")
    if "perplexity" in both:
        change = after["perplexity"].value / before["perplexity"].value - 1
        moved = _moved("perplexity", before["perplexity"], after["perplexity"], differences)
        parts.append(f"perplexity {moved} ({100 * change:+.1f} %)")
    parts += [
        f"{_lowered(meaning_of(key).label)} {_moved(key, before[key], after[key], differences)}"
        for key in both
        if meaning_of(key).headline and key not in _FIRST
    ]
    text = "; ".join(parts) + "." if parts else "See the measurements below."
    return text[0].upper() + text[1:]


def tiles(before: Mapping[str, Metric], after: Mapping[str, Metric] | None) -> list[Tile]:
    """At most four numbers, of the edited model where there is one."""
    shown = before if after is None else after
    keys = [key for key in _FIRST if key in shown]
    others = [key for key in shown if meaning_of(key).headline and key not in _FIRST]
    if others:
        keys = [key for key in keys if key != "loose"] + others
    return [
        Tile(
            meaning_of(key).label,
            number(key, shown[key].value),
            "unedited"
            if after is None or key not in before
            else f"before: {number(key, before[key].value)}",
            after is not None,
        )
        for key in keys[:_TILES]
    ]


def caveats(
    columns: Sequence[tuple[str, str, Mapping[str, Metric]]], data: Mapping[str, Mapping[str, int]]
) -> list[str]:
    """What the intervals hide: shares of exactly 0 or 1, whose bootstrap interval is a point."""
    points: dict[int, list[str]] = {}
    for name, _, metrics in columns:
        for key, metric in metrics.items():
            meaning = meaning_of(key)
            count = next(iter(data.get(meaning.units, {}).values()), 0)
            if meaning.unit == "share" and metric.low == metric.high and count:
                points.setdefault(count, []).append(f"{_lowered(meaning.label)} ({name})")
    return [
        f"All {count:,} alike: {', '.join(names)}. The bootstrap then sees no spread; by the rule "
        f"of three the true share may still be {min(100.0, 300 / count):.2g} points off."
        for count, names in points.items()
    ]


def _moved(key: str, before: Metric, after: Metric, differences: Mapping[str, Metric]) -> str:
    """``fell from … to …``, and whether the intervals leave that open."""
    first, second = number(key, before.value), number(key, after.value)
    if first == second:
        return f"stayed at {second}"
    verb, doubt = "fell" if after.value < before.value else "rose", ""
    if key in differences:
        if differences[key].low <= 0 <= differences[key].high:
            doubt = " (the interval of the difference includes 0)"
    elif after.low <= before.high and before.low <= after.high:
        doubt = " (their intervals overlap)"
    return f"{verb} from {first} to {second}{doubt}"


def _lowered(label: str) -> str:
    """The label within a sentence: lower case, but for abbreviations."""
    return label if label[:2].isupper() else label[:1].lower() + label[1:]
