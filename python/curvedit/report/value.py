"""The Report value: metrics before and after, controls, and how the edit was made."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from curvedit.files import write_whole
from curvedit.report import html, table
from curvedit.report.metrics import Metrics
from curvedit.report.record import read_document, with_hash
from curvedit.report.reference import FILE, Reference
from curvedit.report.units import UNITS_FILE, save_units, with_units
from curvedit.selection import Edited, Selection, TargetSummary, summarise_selection

FORMAT = "curvedit-report"
VERSION = 1


@dataclass(frozen=True)
class Stage:
    """Seconds and memory that one stage took, and the backends that ran in it."""

    seconds: float
    peak_memory_bytes: int | None = None
    backend: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Control:
    """Another edit of the same model, measured for comparison."""

    name: str
    metrics: Metrics
    differences: Metrics = field(default_factory=Metrics)


@dataclass(frozen=True)
class Report:
    """Metrics of a model before and after an edit, and of control edits, with their provenance.

    ``evaluate`` makes it; the ``with_…`` methods return copies with more in them. ``reference``
    holds the baseline's top tokens for nDCG@10; it is saved beside ``report.json``, not in it, and
    so are the units behind ``before``. ``differences`` are after less before, with paired
    intervals; ``details`` hold what was measured of each unit, by data, then "before" and "after".
    """

    before: Metrics
    after: Metrics | None = None
    controls: tuple[Control, ...] = ()
    title: str = ""
    model: Mapping[str, Any] = field(default_factory=dict)  # class, name_or_path, parameters
    recipe: Mapping[str, Any] = field(default_factory=dict)
    hashes: Mapping[str, str] = field(default_factory=dict)  # SHA-256 of the data measured on
    data: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # counts of the same data
    tool: Mapping[str, str] = field(default_factory=dict)  # versions and device
    stages: Mapping[str, Stage] = field(default_factory=dict)
    targets: tuple[TargetSummary, ...] = ()
    warnings: tuple[str, ...] = ()
    reference: Reference | None = field(default=None, repr=False, compare=False)
    differences: Metrics = field(default_factory=Metrics)
    details: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)

    def with_control(self, name: str, report: "Report") -> "Report":
        """Add a control edit's metrics.

        Args:
            name: The control's name, "svd" for example.
            report: ``evaluate(model, suite, baseline=...)`` of the control, with the same suite
                and baseline.

        Raises:
            ValueError: the name is taken, or the control was not measured on the same data.
        """
        if name in {"before", "after", *(control.name for control in self.controls)}:
            raise ValueError(
                f"name: expected a new name for a control, got {name!r}, which is taken"
            )
        if report.after is None:
            raise ValueError(
                "report: expected a control measured with baseline=..., got one without 'after'"
            )
        require_same_data(self.hashes, report.hashes)
        control = Control(name, report.after, report.differences)
        return replace(self, controls=(*self.controls, control))

    def with_recipe(self, recipe: Mapping[str, Any]) -> "Report":
        """Add to what the report says of how the edit was made."""
        return replace(self, recipe={**self.recipe, **recipe})

    def with_edit(
        self,
        selection: Selection,
        edited: Mapping[str, Edited] | None = None,
        fitted: Mapping[str, Any] | None = None,
    ) -> "Report":
        """Add what was kept of each target, and how the edit was made.

        Args:
            selection: What ``rank`` returned; its recipe is added.
            edited: ``Edit.targets``, what ``project`` did to each target; adds change, backend
                and hash.
            fitted: ``Factors.provenance``; adds the stage "fit" and the fit's warnings.
        """
        report = replace(
            self.with_recipe(selection.recipe), targets=summarise_selection(selection, edited)
        )
        if fitted is None:
            return report
        if "seconds" in fitted:
            report = report.with_stage(
                "fit",
                seconds=fitted["seconds"],
                peak_memory_bytes=fitted.get("peak_memory_bytes"),
                backend=fitted.get("backend"),
            )
        return report.with_warnings(*fitted.get("warnings", ()))

    def with_record(self, record: Mapping[str, Any]) -> "Report":
        """Add what the ``curvedit.json`` of an edited checkpoint records of the edit.

        Raises:
            ValueError: the record is not of that form.
        """
        try:
            targets = tuple(
                TargetSummary.from_json(
                    {"name": name, **target, "weight_sha256": target.get("sha256_before", "")}
                )
                for name, target in record["targets"].items()
            )
            return replace(self.with_recipe(record["recipe"]), targets=targets)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"record: expected the content of a curvedit.json, got another ({error!r})"
            ) from error

    def with_stage(
        self,
        name: str,
        *,
        seconds: float,
        peak_memory_bytes: int | None = None,
        backend: Mapping[str, Any] | None = None,
    ) -> "Report":
        """Add what a stage took; stages are listed as train, fit, rank, project, evaluate."""
        stages = {**self.stages, name: Stage(seconds, peak_memory_bytes, backend or {})}
        order = ("train", "fit", "rank", "project")
        first = {key: stages[key] for key in order if key in stages}
        return replace(self, stages={**first, **stages})

    def with_warnings(self, *warnings: str) -> "Report":
        """Add warnings for the reader."""
        return replace(self, warnings=(*self.warnings, *warnings))

    def with_title(self, title: str) -> "Report":
        """Set the heading of the page."""
        return replace(self, title=title)

    def table(self) -> str:
        """The metrics as aligned text: one row each, with intervals, before, after and controls."""
        return table.render(self._columns(), self.differences)

    def html(self) -> str:
        """The report as one self-contained page."""
        return html.render(self.to_json())

    def save(self, directory: str | Path) -> Path:
        """Write ``report.json``, ``report.html`` and the nDCG@10 reference.

        Args:
            directory: Created if missing; a report in it is replaced.

        Returns:
            The path of ``report.json``.
        """
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        document = self.to_json()
        path = folder / "report.json"
        write_whole(folder / "report.html", html.render(document).encode())
        if self.reference is not None:
            self.reference.save(folder / FILE)
        save_units(self.before, folder / UNITS_FILE)
        # Last, because it is what shows that a directory holds a report.
        text = json.dumps(with_hash(document), indent=1, allow_nan=False) + "\n"
        write_whole(path, text.encode())
        return path

    @classmethod
    def load(cls, path: str | Path) -> "Report":
        """Read what :meth:`save` wrote.

        Args:
            path: The directory, or its ``report.json``.

        Raises:
            FileNotFoundError: there is none.
            ValueError: the file is not a report of this format, or was changed.
        """
        source = Path(path)
        source = source / "report.json" if source.is_dir() else source
        document = read_document("report", source, "measure again with evaluate")
        try:
            report = cls.from_json(document)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"report: {source} cannot be read ({error})") from error
        units = source.with_name(UNITS_FILE)
        if units.is_file():
            report = replace(report, before=with_units(report.before, units))
        beside = source.with_name(FILE)
        return replace(report, reference=Reference.load(beside)) if beside.is_file() else report

    def to_json(self) -> dict[str, Any]:
        """The document of ``report.json``; shares are fractions, not per cent."""
        document: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "title": self.title,
            "before": self.before.to_json(),
            "after": None if self.after is None else self.after.to_json(),
            "controls": [
                {"name": control.name, **control.metrics.to_json()} for control in self.controls
            ],
            "model": dict(self.model),
            "recipe": _plain(self.recipe),
            "hashes": dict(self.hashes),
            "data": {key: dict(counts) for key, counts in self.data.items()},
            "tool": dict(self.tool),
            "stages": {name: _plain(asdict(stage)) for name, stage in self.stages.items()},
            "targets": [_plain(target.to_json()) for target in self.targets],
            "warnings": list(self.warnings),
        }
        changes = [("after", self.differences), *((c.name, c.differences) for c in self.controls)]
        differences = {name: metrics.to_json() for name, metrics in changes if metrics}
        document |= {"differences": differences} if differences else {}
        return document | ({"details": _plain(self.details)} if self.details else {})

    @classmethod
    def from_json(cls, document: Any) -> "Report":
        """The inverse of :meth:`to_json`.

        Raises:
            ValueError: the document is not a report of this format and version.
        """
        if not isinstance(document, Mapping) or document.get("format") != FORMAT:
            raise ValueError(
                f"report: expected a document with format {FORMAT!r}, got {_kind(document)}"
            )
        if document.get("version") != VERSION:
            raise ValueError(f"report: expected version {VERSION}, got {document.get('version')!r}")
        after, changes = document.get("after"), document.get("differences", {})
        return cls(
            before=Metrics.from_json(document.get("before", {})),
            after=None if after is None else Metrics.from_json(after),
            controls=tuple(
                Control(
                    each["name"],
                    Metrics.from_json(each),
                    Metrics.from_json(changes.get(each["name"], {})),
                )
                for each in document.get("controls", [])
            ),
            title=document.get("title", ""),
            stages={name: Stage(**stage) for name, stage in document.get("stages", {}).items()},
            targets=tuple(
                TargetSummary.from_json(target) for target in document.get("targets", [])
            ),
            warnings=tuple(document.get("warnings", [])),
            differences=Metrics.from_json(changes.get("after", {})),
            details=document.get("details", {}),
            **{key: document.get(key, {}) for key in ("model", "recipe", "hashes", "data", "tool")},
        )

    def _columns(self) -> list[tuple[str, Metrics]]:
        after = [] if self.after is None else [("after", self.after)]
        return [
            ("before", self.before),
            *after,
            *((control.name, control.metrics) for control in self.controls),
        ]


def require_same_data(expected: Mapping[str, str], got: Mapping[str, str]) -> None:
    """Refuse measurements on data other than the baseline's.

    Raises:
        ValueError: names the first part of the suite that differs.
    """
    for key, value in got.items():
        if key not in expected:
            raise ValueError(
                f"baseline: expected one measured on the suite's {key!r}, "
                f"got one on {sorted(expected)}"
            )
        if expected[key] != value:
            raise ValueError(
                f"baseline: expected one measured on the suite's {key!r} "
                f"(SHA-256 {value[:12]}…), got one on other data ({expected[key][:12]}…); "
                "measure the baseline again on this suite"
            )


def _kind(document: Any) -> str:
    if isinstance(document, Mapping):
        return f"format {document.get('format')!r}"
    return type(document).__name__


def _plain(value: Any) -> Any:
    """The value in JSON's own types; NaN and infinities become text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)
