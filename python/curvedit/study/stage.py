"""A study: every criterion, control and the targeted mode on one model, at matched forgetting."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from curvedit import meter
from curvedit.data import Passages
from curvedit.evaluation import Suite, Tasks, evaluate
from curvedit.models import block_maps, find_targets, identity_of, match_names
from curvedit.report import Report
from curvedit.study.arms import CONTROLS, TARGETED, Arm, Editor, arms_of, file_of
from curvedit.study.auditing import UNRELATED, audit
from curvedit.study.comparison import Comparison, fitted
from curvedit.study.goals import goals_of
from curvedit.study.material import REQUIRED, Material, counts_of, recited, some, some_rows
from curvedit.study.measuring import Yardstick, sides_of
from curvedit.study.page import render
from curvedit.study.price_map import measure_map
from curvedit.study.records import Records, plain, save
from curvedit.study.settings import Settings


def study(
    model: nn.Module,
    material: Material,
    settings: Settings,
    out: str | Path,
    *,
    tokenizer: Any = None,
    title: str = "",
    progress: bool = True,
) -> dict[str, Any]:
    """Compare edits of one model on passages that it recites and on text that it should keep.

    Criteria and controls are brought to the same loss of recitation on the tuned side of the
    passages, the targeted mode forgets that side by name within its budget, and everything is
    measured on both sides, on a fifth of the tuned side that is set apart, and on held-out text of
    several domains. What is done is kept in ``out``, where an interrupted study of the same
    settings goes on.

    Args:
        model: A causal language model; it is unchanged in the end.
        material: Passages, as ``mine`` writes them, and text.
        settings: What to do.
        out: New directory, or that of a study that was interrupted.
        tokenizer: A Hugging Face tokenizer, for the tasks; None leaves them out.
        title: Heading of the page.
        progress: Show progress bars.

    Returns:
        The document of ``study.json``; ``study.html`` shows it.

    Raises:
        FileExistsError: there is something else, or a finished study, in ``out``.
        ValueError: the model recites too little of the passages, a side has none, a pattern matches
            nothing, there is too little text, or ``out`` is of a study of other settings.
    """
    comparison = _begin(model, material, settings, Path(out), progress)
    records, yardstick = comparison.records, comparison.yardstick
    arms = arms_of(list(settings.places), settings.fit_tokens, settings.kinds)
    entries = []
    with meter.progress(len(arms), unit="arm", what="study", shown=progress) as bar:
        for arm in arms:
            entries.append(comparison.entry(arm))
            bar.update()
    document: dict[str, Any] = {
        "format": "curvedit-study",
        "version": 1,
        "title": title or f"{identity_of(model)['class']}: what forgetting costs",
        "model": identity_of(model),
        "tool": dict(comparison.baseline.tool),
        "settings": asdict(settings),
        "passages": counts_of(yardstick.passages),
        "text": {
            name: {"windows": len(rows), "tokens": sum(len(row) - 1 for row in rows)}
            for name, rows in yardstick.text.items()
        },
        "before": plain(comparison.before),
        "arms": [{key: each[key] for key in each if key != "units"} for each in entries],
        "contrasts": comparison.contrasts(entries),
        "warnings": records.notes,
    }
    details = _Details(comparison, tokenizer)
    if settings.mapped:
        document["map"] = records.part("map", details.map, stage="map")
    document |= details.of(_chosen(entries))
    document["goals"] = goals_of(document)
    document["seconds"] = {**records.seconds, "total": sum(records.seconds.values())}
    records.finish(document, render(document))
    return document


def _begin(
    model: nn.Module, material: Material, settings: Settings, out: Path, shown: bool
) -> Comparison:
    """Check everything, fit the factors and measure the unedited model."""
    known = list(find_targets(model, "*"))
    places = {name: match_names(each, known) for name, each in settings.places.items()}
    for side in REQUIRED:
        material.passages.of_split(side)
    material.require_text(settings.checked)
    records = Records(
        out,
        {
            **asdict(settings),
            "model": identity_of(model),
            "passages": material.passages.sha256(),
            "text": {name: len(rows) for name, rows in material.text.items()},
            "fitted_on": {str(n): each.identity for n, each in material.fitted_on.items()},
        },
    )
    passages = recited(model, material.passages, settings, records)
    kinds = {_kind(name) for names in places.values() for name in names}
    mapped = [name for name in block_maps(model) if _kind(name) in kinds] if settings.mapped else []
    factors = fitted(model, material.fitted_on, places, mapped, settings, records, shown=shown)
    yardstick = Yardstick(
        passages,
        {name: rows[settings.checked :] for name, rows in material.text.items()},
        batch_size=settings.batch_size,
        seed=settings.seed,
        shows_progress=shown,
    )
    editor = Editor(
        model,
        factors,
        places,
        passages.of_split("tune"),
        settings.damping,
        [row for rows in material.text.values() for row in rows[: settings.checked]],
        settings.seed,
        settings.batch_size,
        shown,
    )
    # Here, since later the model may be an edited one.
    measured = records.folder(
        "baseline", lambda place: save(yardstick.baseline(model), place), stage="compare"
    )
    return Comparison(settings, records, yardstick, editor, Report.load(measured), shown)


@dataclass(frozen=True)
class _Details:
    """What a study looks at beside the comparison."""

    comparison: Comparison
    tokenizer: Any

    def of(self, arms: Sequence[Arm]) -> dict[str, Any]:
        """Tasks and audit of the unedited model and of some arms."""
        settings, records = self.comparison.settings, self.comparison.records
        named: list[tuple[str, Arm | None]] = [("before", None), *((a.name, a) for a in arms)]
        found: dict[str, Any] = {}
        if settings.tasks and self.tokenizer is not None:
            found["tasks"] = {
                name: records.part(
                    f"tasks-{file_of(name)}", partial(self.tasks, arm), stage="tasks"
                )
                for name, arm in named
            }
        if settings.audited:
            parts = [
                records.part(
                    f"audit-{file_of(name)}", partial(self.audit, name, arm), stage="audit"
                )
                for name, arm in named
            ]
            found["audit"] = {
                "rounding": [row for part in parts for row in part["rounding"]],
                "relearning": [row for part in parts for row in part["relearning"]],
                "prompts": {name: each for part in parts for name, each in part["prompts"].items()},
            }
        return found

    def map(self) -> dict[str, Any]:
        """The map of blocks and kinds."""
        settings, editor = self.comparison.settings, self.comparison.editor
        return measure_map(
            editor.model,
            editor.factors[min(editor.factors)],
            some(editor.passages, settings.mapped),
            some_rows(editor.checked_on, 4),
            every=settings.map_every,
            batch_size=settings.batch_size,
            progress=editor.shows_progress,
        ).to_json()

    def tasks(self, arm: Arm | None) -> dict[str, Any]:
        """What the model can do, edited by an arm or unedited."""
        settings, shown = self.comparison.settings, self.comparison.shown
        tasks = Tasks(self.tokenizer, items=settings.tasks, seed=settings.seed)
        suite = Suite([tasks], batch_size=settings.batch_size)
        model = self.comparison.model
        before = self.comparison.records.folder(
            "tasks-baseline",
            lambda place: save(evaluate(model, suite, progress=shown), place),
            stage="tasks",
        )
        baseline = Report.load(before)
        if arm is None:
            return plain(baseline.before)
        with self.comparison.applied(arm):
            report = evaluate(model, suite, baseline=baseline, progress=shown)
        scores = {} if report.after is None else plain(report.after)
        return {**scores, "differences": plain(report.differences)}

    def audit(self, name: str, arm: Arm | None) -> dict[str, Any]:
        """The audit of an arm, or of the unedited model."""
        passages = self.comparison.yardstick.passages
        sides = {side: passages.of_split(side) for side in sides_of(passages)}
        training = {UNRELATED: list(self.comparison.editor.checked_on)}
        if arm is not None:
            training["other recited texts"] = _whole(sides["test"])
            training["a tenth of the forgotten"] = _whole(sides["tune"])[::10]
        settings = self.comparison.settings
        options: dict[str, Any] = {"batch_size": settings.batch_size, "seed": settings.seed}
        options["progress"] = self.comparison.shown
        model = self.comparison.model
        if arm is None:
            return audit(model, name, sides, training, **options)
        with self.comparison.applied(arm):
            return audit(model, name, sides, training, **options)


def _whole(passages: Passages) -> list[tuple[int, ...]]:
    return [prefix + suffix for prefix, suffix in passages.rows()]


def _kind(name: str) -> str:
    """The name of a linear map without the numbers in it."""
    return ".".join(part for part in name.split(".") if not part.isdigit())


def _chosen(entries: Sequence[Mapping[str, Any]]) -> list[Arm]:
    """The arms that are looked at more closely: the best targeted one and the best criterion."""
    best = []
    targeted = [each for each in entries if each["criterion"] == TARGETED]
    if targeted:
        best.append(min(targeted, key=lambda each: each["metrics"]["right: tune"]["value"]))
    free = [
        each
        for each in entries
        if each["criterion"] not in (*CONTROLS, TARGETED) and each["matched"]
    ]
    if free:
        best.append(min(free, key=lambda each: each["metrics"]["perplexity"]["value"]))
    return [Arm(each["criterion"], each["place"], each["fit_tokens"]) for each in best]
