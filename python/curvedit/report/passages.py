"""What the report's page shows of single passages: what was said before the edit, and after."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

_SHOWN = 12
_PREFIX = 160  # characters of a prefix's end
Rows = Mapping[str, Sequence[Any]]  # by column

CSS = """
.passage { padding: 12px 18px 14px; margin-top: 12px; }
.passage p { max-width: none; white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; }
.passage dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 5px 16px;
  margin: 8px 0 0; font-size: 13.5px; }
.passage dt { color: #68707c; }
.passage dd { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; }
.passage dd span { color: #68707c; }
.passage mark { background: #d7e8e5; color: inherit; border-radius: 2px; }
@media (max-width: 560px) {
  .passage dl { grid-template-columns: 1fr; gap: 2px; }
  .passage dt { margin-top: 6px; }
}
"""


def section(details: Mapping[str, Mapping[str, Rows]]) -> str:
    """At most twelve passages, spread evenly, with their continuations; nothing without text."""
    sides = details.get("passages", {})
    before, after = sides.get("before", {}), sides.get("after")
    columns = [before.get(key, ()) for key in ("prefix", "true", "said")]
    count = len(columns[0])
    if not count or any(len(each) != count for each in columns):
        return ""
    last = count - 1
    shown = (
        range(count)
        if count <= _SHOWN
        else [round(place * last / (_SHOWN - 1)) for place in range(_SHOWN)]
    )
    cards = "".join(_card(number, before, after) for number in shown)
    of = f"All {count}" if len(shown) == count else f"{len(shown)} of {count}"
    return (
        "<section><h2>Passages</h2>"
        f'<p class="sub">{of}: the end of the prefix that the model was given, how the passage '
        "goes on, and what the model said, greedily. Marked is what agrees from the first "
        f"character on; all passages are in report.json.</p>{cards}</section>"
    )


def _card(number: int, before: Rows, after: Rows | None) -> str:
    prefix, true = str(before["prefix"][number]), str(before["true"][number])
    source = before.get("source", ())
    where = str(source[number]) if number < len(source) and source[number] else ""
    rows = [("prefix", f"<span>{escape(_end(prefix))}</span>"), ("passage", escape(true))]
    sides = [("before", before)] if after is None else [("before", before), ("after", after)]
    rows += [(name, _said(true, side, number)) for name, side in sides]
    listed = "".join(f"<dt>{name}</dt><dd>{content}</dd>" for name, content in rows)
    title = f"Passage {number + 1}" + (f", {where}" if where else "")
    return f'<div class="card passage"><h3>{escape(title)}</h3><dl>{listed}</dl></div>'


def _said(true: str, side: Rows, number: int) -> str:
    """A continuation, its part that agrees with the passage marked, and its edit distance."""
    words = side.get("said", ())
    if number >= len(words):
        return "–"
    said = str(words[number])
    agreed = next(
        (at for at, (one, other) in enumerate(zip(said, true, strict=False)) if one != other),
        min(len(said), len(true)),
    )
    marked = f"<mark>{escape(said[:agreed])}</mark>" if agreed else ""
    distance = side.get("distance", ())
    edits = f" <span>({distance[number]} edits)</span>" if number < len(distance) else ""
    return f"{marked}{escape(said[agreed:])}{edits}"


def _end(prefix: str) -> str:
    return prefix if len(prefix) <= _PREFIX else f"…{prefix[-_PREFIX:]}"
