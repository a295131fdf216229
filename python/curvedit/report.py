"""The value that ``evaluate`` returns: what was measured before, after and for controls."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from curvedit.selection import Selection, TargetSelection

FORMAT = 1
METRICS = {  # name: (title, format, better)
    "strict": ("strict recitation", "{:.1%}", "lower"),
    "loose": ("loose recitation", "{:.1%}", "lower"),
    "avg_levenshtein": ("mean edit distance", "{:.3f}", "higher"),
    "perplexity": ("perplexity", "{:.3f}", "lower"),
    "ndcg10": ("nDCG@10", "{:.3f}", "higher"),
}


@dataclass(frozen=True)
class Estimate:
    """A measured value and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


Metrics = Mapping[str, Estimate]  # keys of METRICS, and "accuracy/<split>" for classifiers


@dataclass(frozen=True)
class Reference:
    """The baseline's ten likeliest tokens per position, which nDCG@10 compares with."""

    data: str  # SHA-256 of the windows
    tokens: Tensor  # (positions, 10) int32


@dataclass(frozen=True)
class Report:
    """Measurements of a baseline, of the edited model and of controls, with their provenance.

    ``before`` is the baseline; ``after`` is None while only that was measured.
    """

    before: Metrics
    after: Metrics | None = None
    controls: tuple[tuple[str, Metrics], ...] = ()
    recipe: Mapping[str, Any] = field(default_factory=dict)
    targets: tuple[Mapping[str, Any], ...] = ()
    stages: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # seconds, peak_memory_bytes
    provenance: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    title: str = ""
    reference: Reference | None = field(default=None, repr=False, compare=False)

    def with_control(self, name: str, measured: "Report") -> "Report":
        """This report with what another edit measured against the same baseline as a control.

        Raises:
            ValueError: the other has no ``after``, or another baseline.
        """
        if measured.after is None or dict(measured.before) != dict(self.before):
            raise ValueError(f"control {name!r}: expected a report with 'after' against the same baseline")
        return replace(self, controls=(*self.controls, (name, measured.after)))

    def with_edit(
        self, selection: Selection, edits: Mapping[str, Mapping[str, Any]], fitted: Mapping[str, Any]
    ) -> "Report":
        """This report with what was edited: selection, what happened per target, and the fit's provenance."""
        targets = tuple(_summary(selection[name], edit) for name, edit in edits.items())
        notes = (*self.notes, *fitted.get("warnings", ()))
        return replace(self, recipe=dict(selection.recipe), targets=targets, notes=notes)

    def with_record(self, record: Mapping[str, Any]) -> "Report":
        """This report with the recipe that ``curvedit.json`` of an edited checkpoint records."""
        targets = tuple({"name": name, **target} for name, target in record["targets"].items())
        return replace(self, recipe=record["recipe"], targets=targets)

    def rows(self) -> list[tuple[str, Metrics]]:
        """Name and metrics of everything measured, baseline first."""
        after = [] if self.after is None else [("after", self.after)]
        return [("before", self.before), *after, *self.controls]

    def table(self) -> str:
        """The measurements as aligned text: value and interval per metric and model."""
        rows = self.rows()
        lines = [["", *(name for name, _ in rows)]]
        for key in self.before:
            cells = [spelled(key, metrics[key]) if key in metrics else "–" for _, metrics in rows]
            lines.append([title(key), *cells])
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join(
                cell.ljust(width) if not i else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        )

    def to_json(self) -> dict[str, Any]:
        """The content of ``report.json``."""
        return {
            "format": FORMAT,
            "before": _plain(self.before),
            "after": None if self.after is None else _plain(self.after),
            "controls": [{"name": name, **_plain(metrics)} for name, metrics in self.controls],
            "recipe": dict(self.recipe),
            "stages": {name: dict(stage) for name, stage in self.stages.items()},
            "provenance": dict(self.provenance),
            "notes": list(self.notes),
            "title": self.title,
            "targets": [dict(target) for target in self.targets],
        }

    @classmethod
    def load(cls, path: str | Path) -> "Report":
        """Read ``report.json``, or a directory that holds it.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is damaged or of another format.
        """
        path = Path(path)
        path = path / "report.json" if path.is_dir() else path
        if not path.is_file():
            raise FileNotFoundError(f"report: expected report.json, got {path}")
        try:
            content = json.loads(path.read_text())
            if content["format"] != FORMAT:
                raise ValueError(f"report: expected format {FORMAT}, got {content['format']} in {path}")
            controls = [dict(control) for control in content["controls"]]
            return cls(
                before=_metrics(content["before"]),
                after=None if content["after"] is None else _metrics(content["after"]),
                controls=tuple((control.pop("name"), _metrics(control)) for control in controls),
                recipe=content["recipe"],
                targets=tuple(content["targets"]),
                stages=content["stages"],
                provenance=content["provenance"],
                notes=tuple(content["notes"]),
                title=content["title"],
            )
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"report: {path} is damaged ({error!r})") from error


def _summary(target: TargetSelection, edit: Mapping[str, Any]) -> dict[str, Any]:
    """One target's entry in ``report.json``, with series short enough to plot."""
    series = {"limits": target.limits, "values_out": target.values_out, "values_in": target.values_in}
    return {
        "name": target.name,
        "shape": list(target.shape),
        "components_kept": target.kept,
        "mass": target.mass,
        "threshold": target.threshold,
        **edit,
        **{key: down_sampled(values) for key, values in series.items() if values is not None},
    }


def title(key: str) -> str:
    """A metric's name for readers."""
    return METRICS[key][0] if key in METRICS else f"accuracy, {key.removeprefix('accuracy/')}"


def spelled(key: str, estimate: Estimate) -> str:
    """A value and its interval for readers."""
    form = METRICS[key][1] if key in METRICS else "{:.1%}"
    return f"{form.format(estimate.value)} [{form.format(estimate.low)}, {form.format(estimate.high)}]"


def _plain(metrics: Metrics) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for key, estimate in metrics.items():
        head, _, split = key.partition("/")
        if split:
            plain.setdefault(head, {})[split] = asdict(estimate)
        else:
            plain[key] = asdict(estimate)
    return plain


def _metrics(plain: Mapping[str, Any]) -> dict[str, Estimate]:
    metrics: dict[str, Estimate] = {}
    for key, entry in plain.items():
        if "value" in entry:
            metrics[key] = Estimate(**entry)
        else:
            metrics |= {f"{key}/{split}": Estimate(**part) for split, part in entry.items()}
    return metrics


def down_sampled(values: Tensor, most: int = 256) -> list[list[float]]:
    """At most ``most`` points ``[index, value]`` of a series, denser at its head: for plots."""
    count = values.shape[0]
    if count <= most:
        index = torch.arange(count)
    else:
        index = torch.logspace(0, torch.log10(torch.tensor(float(count))).item(), most).long().clamp(1, count).unique() - 1
    return [[int(i), float(values[i])] for i in index]
