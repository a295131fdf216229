"""The metrics of a report: a value with its interval, and what each one means."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Metric:
    """A measured value and the ends of its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    def __post_init__(self) -> None:
        if not all(math.isfinite(number) for number in (self.value, self.low, self.high)):
            raise ValueError(
                f"metric: expected finite value, low and high, got {self.value}, {self.low}, {self.high}"
            )


@dataclass(frozen=True)
class Measure:
    """How a metric is named and read."""

    label: str
    unit: str  # "share" in [0, 1], or "number"
    better: str  # what the edit aims for: "lower", "higher" or, where it depends, ""
    meaning: str


MEASURES = {
    "strict": Measure(
        "Verbatim recitation",
        "share",
        "lower",
        "passages whose whole suffix is reproduced greedily",
    ),
    "loose": Measure(
        "Near-verbatim recitation",
        "share",
        "lower",
        "passages reproduced with at most a quarter edited",
    ),
    "avg_levenshtein": Measure(
        "Edit distance",
        "number",
        "higher",
        "mean token edits from the true suffix, as a share of its length",
    ),
    "perplexity": Measure(
        "Perplexity", "number", "lower", "exp of the mean token loss on text that should be kept"
    ),
    "ndcg10": Measure(
        "nDCG@10",
        "number",
        "higher",
        "agreement of the top ten next tokens with the unedited model",
    ),
}
FORGOTTEN = ("strict", "loose", "avg_levenshtein")


def measure_of(key: str) -> Measure:
    """The meaning of a metric's key; ``accuracy: <split>`` is the accuracy on a named split."""
    if key.startswith("accuracy: "):
        split = key.removeprefix("accuracy: ")
        return Measure(
            f"Accuracy, {split}",
            "share",
            "",
            f"samples of the split {split!r} classified as labelled",
        )
    return MEASURES[key]


@dataclass(frozen=True)
class Metrics:
    """What was measured of one model; a metric that the suite has no data for is None.

    Source:
        Merullo et al., arXiv:2510.24256, section 5: strict and loose recitation, mean Levenshtein
        share, perplexity, nDCG@10.
    """

    strict: Metric | None = None
    loose: Metric | None = None
    avg_levenshtein: Metric | None = None
    perplexity: Metric | None = None
    ndcg10: Metric | None = None
    accuracy: Mapping[str, Metric] = field(default_factory=dict)

    def items(self) -> Iterator[tuple[str, Metric]]:
        """Those measured, as ``(key, metric)``; splits as ``accuracy: <name>``."""
        for key in MEASURES:
            metric = getattr(self, key)
            if metric is not None:
                yield key, metric
        for split, metric in self.accuracy.items():
            yield f"accuracy: {split}", metric

    def to_json(self) -> dict[str, Any]:
        """The metrics as in ``report.json``: absent ones are left out."""
        document: dict[str, Any] = {
            key: _numbers(metric) for key in MEASURES if (metric := getattr(self, key)) is not None
        }
        if self.accuracy:
            document["accuracy"] = {
                split: _numbers(metric) for split, metric in self.accuracy.items()
            }
        return document

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Metrics":
        """The inverse of :meth:`to_json`."""
        return cls(
            accuracy={
                split: _metric(split, numbers)
                for split, numbers in document.get("accuracy", {}).items()
            },
            **{key: _metric(key, document[key]) for key in MEASURES if key in document},
        )


def _numbers(metric: Metric) -> dict[str, float]:
    return {"value": metric.value, "low": metric.low, "high": metric.high}


def _metric(name: str, numbers: Any) -> Metric:
    if not isinstance(numbers, Mapping) or not {"value", "low", "high"} <= set(numbers):
        raise ValueError(f"report: expected value, low and high of {name!r}, got {numbers!r}")
    return Metric(float(numbers["value"]), float(numbers["low"]), float(numbers["high"]))


def spell(key: str, metric: Metric) -> tuple[str, str]:
    """A metric as text: its value, and its interval in brackets."""
    return number(
        key, metric.value
    ), f"[{number(key, metric.low, bare=True)}, {number(key, metric.high, bare=True)}]"


def number(key: str, value: float, *, bare: bool = False) -> str:
    """One number of a metric as text; shares in per cent."""
    if measure_of(key).unit == "share":
        return f"{100 * value:.1f}" + ("" if bare else " %")
    digits = 3 if key in ("avg_levenshtein", "ndcg10") else 2
    return f"{value:.{digits}f}" if abs(value) < 1e5 else f"{value:.3g}"
