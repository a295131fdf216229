"""The metrics of a report: values with their intervals, and what the key of each one means."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

_UNITS = ("share", "number")
_BETTER = ("lower", "higher", "")
_RESERVED = "name"  # report.json stores a control's name among its metrics


@dataclass(frozen=True)
class Units:
    """What a metric was averaged from: ``sum(numerator) / sum(denominator)``, exp of it if so."""

    numerator: npt.NDArray[np.float64]  # (n,) one value per passage, window, sample, …
    denominator: npt.NDArray[np.float64]  # (n,)
    exponential: bool = False


@dataclass(frozen=True)
class Metric:
    """A measured value and the ends of its 95 % bootstrap interval.

    ``units`` holds what it was averaged from, so that two models can be compared unit by unit.
    """

    value: float
    low: float
    high: float
    units: Units | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not all(math.isfinite(number) for number in (self.value, self.low, self.high)):
            raise ValueError(
                "metric: expected finite value, low and high, got "
                f"{self.value}, {self.low}, {self.high}"
            )


@dataclass(frozen=True)
class Meaning:
    """What a metric is called, how it is read and how it is shown.

    In the meaning of a family of metrics (see :func:`register`), ``{}`` in ``label``, ``text`` and
    ``units`` stands for the member's name.

    Raises:
        ValueError: ``unit`` or ``better`` is none of the values below.
    """

    label: str
    unit: str  # "share" of a whole, in [0, 1] and shown in per cent, or "number"
    better: str  # what the edit aims for: "lower", "higher", or "" where it depends
    text: str  # one line below the label
    units: str = ""  # the entry of the report's ``data`` whose first count is the sample size
    digits: int = 2  # decimals of a number; shares have one
    headline: bool = True  # whether the summary at the top of the page names it

    def __post_init__(self) -> None:
        for name, allowed in (("unit", _UNITS), ("better", _BETTER)):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name}: expected one of {list(allowed)}, got {getattr(self, name)!r}"
                )

    @property
    def aim(self) -> str:
        """``better`` in words."""
        return f"{self.better} is better" if self.better else ""


# A report read from disk holds keys and numbers only, so the meanings of the keys have to be known
# without the measures at hand. The measures are defined in curvedit.evaluation, which imports this
# folder. Therefore they register here: each class does so once, when it is defined, and `import
# curvedit` defines all that the package has.
_MEANINGS: dict[str, Meaning] = {}
_OWNERS: dict[str, str] = {}


def register(meanings: Mapping[str, Meaning], *, owner: str) -> None:
    """Make the meanings of metric keys known to reports.

    Args:
        meanings: Meaning by metric key. A key ``"FAMILY: {}"`` stands for all keys
            ``"FAMILY: NAME"``; report.json stores these nested, as ``{FAMILY: {NAME: ...}}``.
        owner: Who measures them. Registering again under the same owner replaces the meaning.

    Raises:
        ValueError: a key is reserved or belongs to another owner.
    """
    for key in meanings:
        if key == _RESERVED:
            raise ValueError(
                f"meanings: expected a metric key that report.json does not reserve, got {key!r}"
            )
        if _OWNERS.get(key, owner) != owner:
            raise ValueError(
                f"meanings: expected a new metric key, got {key!r}, which {_OWNERS[key]} measures"
            )
    _MEANINGS.update(meanings)
    _OWNERS.update(dict.fromkeys(meanings, owner))


def meaning_of(key: str) -> Meaning:
    """The meaning of a metric key; for an unknown key, a number with the key as its label."""
    if key in _MEANINGS:
        return _MEANINGS[key]
    family, separator, member = key.partition(": ")
    pattern = _MEANINGS.get(f"{family}: {{}}") if separator else None
    if pattern is None:
        return Meaning(key, "number", "", "", digits=3, headline=False)
    return replace(
        pattern,
        **{name: getattr(pattern, name).format(member) for name in ("label", "text", "units")},
    )


class Metrics(Mapping[str, Metric]):
    """What was measured of one model: a read-only mapping from metric key to :class:`Metric`.

    Metrics are also attributes: ``metrics.strict`` is ``metrics["strict"]``, or None where it was
    not measured, and ``metrics.accuracy`` maps the names of splits to their metrics
    (``metrics.accuracy["val"]`` is ``metrics["accuracy: val"]``).

    Args:
        values: Metrics by key; a mapping of metrics as a value is a family, as in report.json.
        named: The same as keyword arguments.

    Raises:
        ValueError: one key is both a metric and a family.
    """

    __slots__ = ("_values",)

    def __init__(
        self,
        values: Mapping[str, Metric | Mapping[str, Metric]] | None = None,
        /,
        **named: Metric | Mapping[str, Metric] | None,
    ) -> None:
        flat: dict[str, Metric] = {}
        for key, value in {**(values or {}), **named}.items():
            if isinstance(value, Metric):
                flat[key] = value
            elif value is not None:
                flat |= {f"{key}: {member}": metric for member, metric in value.items()}
        both = {key.partition(": ")[0] for key in flat if ": " in key} & set(flat)
        if both:
            raise ValueError(
                f"metrics: expected a metric or a family of metrics, got both as {min(both)!r}"
            )
        self._values = flat

    def __getitem__(self, key: str) -> Metric:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Metrics({self._values!r})"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if name in self._values:  # also where a family is called so
            return self._values[name]
        members = {
            key.removeprefix(f"{name}: "): metric
            for key, metric in self._values.items()
            if key.startswith(f"{name}: ")
        }
        if members or (name not in _MEANINGS and f"{name}: {{}}" in _MEANINGS):
            return members
        if name not in _MEANINGS:
            raise AttributeError(f"metrics: expected one of {list(self)}, got {name!r}")
        return None

    def to_json(self) -> dict[str, Any]:
        """The metrics as in ``report.json``, families nested."""
        document: dict[str, Any] = {}
        for key, metric in self.items():
            numbers = {"value": metric.value, "low": metric.low, "high": metric.high}
            family, separator, member = key.partition(": ")
            if separator:
                document.setdefault(family, {})[member] = numbers
            else:
                document[key] = numbers
        return document

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Metrics":
        """The inverse of :meth:`to_json`; a control's ``name`` is skipped."""
        found: dict[str, Metric | Mapping[str, Metric]] = {}
        for key, value in document.items():
            if key == _RESERVED:
                continue
            parts = list(value.values()) if isinstance(value, Mapping) else []
            if parts and all(isinstance(part, Mapping) for part in parts):
                found[key] = {member: _metric(member, each) for member, each in value.items()}
            else:
                found[key] = _metric(key, value)
        return cls(found)


def _metric(name: str, numbers: Any) -> Metric:
    if not isinstance(numbers, Mapping) or not {"value", "low", "high"} <= set(numbers):
        raise ValueError(f"report: expected value, low and high of {name!r}, got {numbers!r}")
    return Metric(float(numbers["value"]), float(numbers["low"]), float(numbers["high"]))


def spell(key: str, metric: Metric, *, signed: bool = False) -> tuple[str, str]:
    """A metric as text: its value, and its interval in brackets; rises with a plus if signed."""
    low, high = (
        _plus(number(key, end, bare=True), signed=signed) for end in (metric.low, metric.high)
    )
    return _plus(number(key, metric.value), signed=signed), f"[{low}, {high}]"


def _plus(text: str, *, signed: bool) -> str:
    return text if text.startswith("-") or not signed else f"+{text}"


def number(key: str, value: float, *, bare: bool = False) -> str:
    """One number of a metric as text; shares in per cent, without the sign where ``bare``."""
    meaning = meaning_of(key)
    if meaning.unit == "share":
        return f"{100 * value:.1f}" + ("" if bare else " %")
    return f"{value:.{meaning.digits}f}" if abs(value) < 1e5 else f"{value:.3g}"
