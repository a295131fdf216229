"""The comparison at the heart of a study: arms brought to their strength, applied and measured."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from curvedit.data import TokenBatches
from curvedit.editing import Edit
from curvedit.factors import Factors
from curvedit.fitting import fit
from curvedit.meter import progress
from curvedit.report import Report
from curvedit.study.arms import CONTROLS, CRITERIA, TARGETED, WHAT, Arm, Editor, change_of
from curvedit.study.auditing import share_right
from curvedit.study.matching import match
from curvedit.study.material import some
from curvedit.study.measuring import Scores, Yardstick, of_units, with_units
from curvedit.study.records import Records, plain
from curvedit.study.settings import Settings

_APART = 0.05  # of the unedited share right, from which on an arm is not matched


def fitted(
    model: nn.Module,
    data: Mapping[int, TokenBatches],
    places: Mapping[str, Sequence[str]],
    mapped: Sequence[str],
    settings: Settings,
    records: Records,
    *,
    shown: bool,
) -> dict[int, Factors]:
    """Factors by the number of tokens; those of least text also hold what is mapped."""
    found = {}
    edited = {name for names in places.values() for name in names}
    for tokens in sorted(settings.fit_tokens):
        more = mapped if tokens == min(settings.fit_tokens) else ()
        targets = sorted({*edited, *more})

        def write(place: Path, targets: Sequence[str], batches: TokenBatches) -> None:
            fit(
                model,
                batches,
                targets=list(targets),
                weighted="weighted" in settings.kinds,
                seed=settings.seed,
                progress=shown,
            ).save(place)

        make = partial(write, targets=targets, batches=data[tokens])
        found[tokens] = Factors.load(records.folder(f"factors-{tokens}", make, stage="fit"))
    return found


@dataclass(frozen=True)
class Comparison:
    """Everything that arms are compared with."""

    settings: Settings
    records: Records
    yardstick: Yardstick
    editor: Editor
    baseline: Report  # of the unedited model
    shown: bool

    @property
    def model(self) -> nn.Module:
        """The model that is edited."""
        return self.editor.model

    @property
    def before(self) -> Scores:
        """What the unedited model scores, by side and domain."""
        return self.yardstick.by_part(self.baseline.before)

    def entry(self, arm: Arm) -> dict[str, Any]:
        """An arm as in the study's document, with the units of its metrics."""
        return self.records.part(f"arm-{arm.file}", partial(self._entry, arm), stage="compare")

    def applied(self, arm: Arm) -> Edit:
        """An arm at the strength that was found for it, to be undone."""
        strength = self.entry(arm)["strength"]
        with _quietly():
            return self.editor.edit(arm, strength)

    def _entry(self, arm: Arm) -> dict[str, Any]:
        found: dict[str, Any] = {"strength": self.settings.budget, "tried": [], "matched": True}
        if arm.criterion != TARGETED:
            found = self._matched(arm)
        with _quietly(), self.editor.edit(arm, found["strength"]) as edit:
            change, record = change_of(edit, self.model), dict(edit.record)
            after = self.yardstick.measure(self.model, self.baseline)
        if record:
            found["note"] = f"{record['stopped']} after {len(record['taken'])} steps"
        return {
            "name": arm.name,
            "criterion": arm.criterion,
            "place": arm.place,
            "fit_tokens": arm.fit_tokens,
            "what": WHAT[arm.criterion],
            "note": "",
            **found,
            "change": change,
            "metrics": plain(after),
            "differences": plain(self.yardstick.differences(self.before, after)),
            "units": with_units(after),
        }

    def _matched(self, arm: Arm) -> dict[str, Any]:
        """The strength at which an arm forgets as much as it should, and what was tried."""
        passages = some(self.yardstick.passages.of_split("tune"), self.settings.searched)
        size = self.settings.batch_size
        unedited = share_right(self.model, passages, batch_size=size)
        wanted = (1 - self.settings.lost) * unedited
        with progress(None, unit="edit", what=arm.name, shown=self.shown) as bar:

            def right(strength: float) -> float:
                with _quietly(), self.editor.edit(arm, strength):
                    bar.update()
                    return share_right(self.model, passages, batch_size=size)

            found = match(right, wanted, near=self._likely(arm))
        is_matched = abs(found.found - wanted) <= _APART * unedited
        note = f"nearest to {wanted:.3f} of the tokens right: {found.found:.3f}"
        return {
            "strength": found.strength,
            "tried": sorted([2.0**-at, value] for at, value in found.tried.items()),
            "matched": is_matched,
            "note": "" if is_matched else note,
        }

    def _likely(self, arm: Arm) -> float | None:
        """The strength found for another criterion, or with factors of more text."""
        most = max(self.settings.fit_tokens)
        if arm.criterion in CONTROLS:
            return None
        if arm.fit_tokens != most:
            return float(self.entry(replace(arm, fit_tokens=most))["strength"])
        first = next(each for each in CRITERIA if each in self.settings.kinds)
        if arm.criterion == first:
            return None
        return float(self.entry(replace(arm, criterion=first))["strength"])

    def contrasts(self, entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Each criterion's cost in perplexity over that of the best control of its place."""
        found = []
        for one in entries:
            rivals = [
                each
                for each in entries
                if each["place"] == one["place"]
                and each["criterion"] in CONTROLS
                and each["matched"]
            ]
            if one["criterion"] in (*CONTROLS, TARGETED) or not one["matched"] or not rivals:
                continue
            best = min(rivals, key=lambda each: each["metrics"]["perplexity"]["value"])
            ratio = self.yardstick.cost_ratio(
                self.before, of_units(one["units"]), of_units(best["units"])
            )
            if ratio is not None:
                known = {"arm": one["criterion"], "control": best["criterion"]}
                known |= {key: one[key] for key in ("place", "fit_tokens")}
                found.append({**known, **plain({"ratio": ratio})})
        return found


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the warnings of edits that are tried on purpose, however much they delete."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="keep_mass:")
        warnings.filterwarnings("ignore", message="the passages are not forgotten")
        yield
