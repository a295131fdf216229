"""A study's record as its page and table read it: arms, metrics, and how numbers are written."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from curvedit.evaluation import Metric  # whose import also makes the measures' keys known
from curvedit.report import meaning_of, spell, style

TUNED, RELATED, HELD_OUT = "right: tune", "right: related", "right: test"
CRITERIA = ("curvature", "weighted")
TARGETED = "targeted"
_COLOURS = {
    "before": style.BEFORE,
    "curvature": style.AFTER,
    "weighted": "#2f6fb0",
    "random": "#c2740c",
    "svd": "#7c5cbf",
    "noise": "#71803a",
    "targeted": "#b4446c",
}


@dataclass(frozen=True)
class Arm:
    """One edit of a study and what was measured of it."""

    name: str
    criterion: str
    place: str
    fit_tokens: int | None
    strength: float | None
    what: str  # what the strength is a share of
    change: float | None
    tried: Sequence[tuple[float, float]]  # strength, tokens right on the passages tuned on
    matched: bool
    note: str
    metrics: Mapping[str, Metric]
    differences: Mapping[str, Metric]

    @property
    def label(self) -> str:
        """The name within its place."""
        parts = [part for part in self.name.split(", ") if part != self.place]
        return ", ".join(parts) or self.name

    @property
    def missed(self) -> bool:
        """Whether it lost another share than was asked for; the targeted mode is asked for none."""
        return not self.matched and self.criterion != TARGETED

    @property
    def colour(self) -> str:
        """The colour of its criterion."""
        return colour_of(self.criterion)

    @property
    def role(self) -> str:
        """``criterion``, ``targeted`` or ``control``: marks differ by it in shape."""
        if self.criterion in CRITERIA:
            return "criterion"
        return "targeted" if self.criterion == TARGETED else "control"


def colour_of(criterion: str) -> str:
    """The colour of a criterion; one that is not known has the unedited model's."""
    return _COLOURS.get(criterion, style.BEFORE)


def read_arms(document: Mapping[str, Any]) -> list[Arm]:
    """The arms of a record, in its order."""
    return [
        Arm(
            name=str(arm["name"]),
            criterion=str(arm["criterion"]),
            place=str(arm.get("place") or ""),
            fit_tokens=arm.get("fit_tokens"),
            strength=finite(arm.get("strength")),
            what=str(arm.get("what") or ""),
            change=finite(arm.get("change")),
            tried=[
                (strength, right)
                for strength, right in arm.get("tried") or ()
                if finite(strength) is not None and finite(right) is not None
            ],
            matched=bool(arm.get("matched", True)),
            note=str(arm.get("note") or ""),
            metrics=read_metrics(arm.get("metrics")),
            differences=read_metrics(arm.get("differences")),
        )
        for arm in document.get("arms") or ()
    ]


def places_of(arms: Sequence[Arm]) -> dict[str, list[Arm]]:
    """The arms by place, both in the record's order."""
    found: dict[str, list[Arm]] = {}
    for arm in arms:
        found.setdefault(arm.place, []).append(arm)
    return found


def read_metrics(found: Mapping[str, Any] | None) -> dict[str, Metric]:
    """Metrics by key; those that are absent or not finite are left out."""
    metrics = {key: read_metric(numbers) for key, numbers in (found or {}).items()}
    return {key: metric for key, metric in metrics.items() if metric is not None}


def read_metric(numbers: Any) -> Metric | None:
    """A metric, or None where it is absent or not finite."""
    if not isinstance(numbers, Mapping):
        return None
    ends = [finite(numbers.get(name)) for name in ("value", "low", "high")]
    value, low, high = ends
    if value is None or low is None or high is None:
        return None
    return Metric(value, low, high)


def finite(number: Any) -> float | None:
    """The number, or None where it is none or not finite."""
    if isinstance(number, (int, float)) and math.isfinite(number):
        return float(number)
    return None


def rise(before: Mapping[str, Metric], arm: Arm, key: str = "perplexity") -> Metric | None:
    """How far a metric rose, as a share of the unedited model's value.

    The interval is the paired one where the record has it, and else the arm's own.
    """
    if key not in before or key not in arm.metrics or before[key].value == 0:
        return None
    base = before[key].value
    change = arm.differences.get(key)
    if change is None:
        own = arm.metrics[key]
        change = Metric(own.value - base, own.low - base, own.high - base)
    return Metric(change.value / base, change.low / base, change.high / base)


def known(key: str) -> str:
    """The key under which the meaning of a metric is registered: its own or its family's."""
    return key.partition(": ")[0] if meaning_of(key).label == key else key


def spelled(key: str, metric: Metric) -> tuple[str, str]:
    """A metric as text: its value, and its interval in brackets."""
    return spell(known(key), metric)


def percent(metric: Metric) -> tuple[str, str]:
    """A relative change as text, signed and in per cent: its value, and its interval."""
    return f"{_signed(metric.value)} %", f"[{_signed(metric.low)}, {_signed(metric.high)}]"


def _signed(value: float) -> str:
    value *= 100
    if abs(value) < 1e3:
        return f"{value:+.1f}"
    return f"{value:+,.0f}" if abs(value) < 1e6 else f"{value:+.2g}"
