"""The files of a study in its directory, from which an interrupted one goes on."""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from curvedit.files import new_directory, write_whole
from curvedit.report import Metric, Report

_SETTINGS, _DONE = "settings.json", "study.json"


class Records:
    """A study's directory: settings, parts that are done, and in the end the study itself."""

    def __init__(self, directory: Path, settings: Mapping[str, Any]) -> None:
        """Begin in a new or empty directory, or go on in one that was begun with these settings.

        Raises:
            FileExistsError: a finished study, or anything else, is there.
            ValueError: a study of other settings was begun there.
        """
        self.directory = directory
        self.seconds: dict[str, float] = {}  # by stage
        self.notes: list[str] = []  # for whoever reads the study
        self._counted: set[str] = set()
        wanted = json.loads(json.dumps(settings))
        place = directory / _SETTINGS
        if (directory / _DONE).exists():
            raise FileExistsError(
                f"out: expected a new directory, got {directory}, a finished study"
            )
        if place.is_file():
            known = json.loads(place.read_text(encoding="utf-8"))
            for key in sorted({*known, *wanted}):
                if known.get(key) != wanted.get(key):
                    raise ValueError(
                        f"out: expected the {key} with which the study in {directory} was begun, "
                        f"{known.get(key)!r:.120}, got {wanted.get(key)!r:.120}; take another "
                        "directory"
                    )
            return
        directory.mkdir(parents=True, exist_ok=True)
        strange = sorted(each.name for each in directory.iterdir() if each.name not in _OWN)
        if strange:
            raise FileExistsError(
                f"out: expected a new or empty directory, got {directory} with {strange[0]!r}"
            )
        write_whole(place, json.dumps(wanted, indent=1).encode())

    def part(self, name: str, make: Callable[[], dict[str, Any]], *, stage: str) -> dict[str, Any]:
        """A part of the study, made once and kept as ``parts/NAME.json``; its time goes to a stage.

        Whatever ``make`` calls :meth:`part` or :meth:`folder` for is counted there.
        """
        place = self.directory / "parts" / f"{name}.json"
        if not place.is_file():
            place.parent.mkdir(exist_ok=True)
            made, seconds = self._timed(make)
            document = {"seconds": seconds, "content": made}
            write_whole(place, json.dumps(document, allow_nan=False).encode())
        document = json.loads(place.read_text(encoding="utf-8"))
        self._count(name, stage, document["seconds"])
        content: dict[str, Any] = document["content"]
        return content

    def folder(self, name: str, write: Callable[[Path], None], *, stage: str) -> Path:
        """A directory of the study, written once and whole."""
        place, clock = self.directory / name, self.directory / "parts" / f"{name}.seconds"
        if not place.is_dir():
            with new_directory("out", place) as part:
                _, seconds = self._timed(lambda: write(part))
            clock.parent.mkdir(exist_ok=True)
            write_whole(clock, str(seconds).encode())
        seconds = float(clock.read_text()) if clock.is_file() else 0.0
        self._count(name, stage, seconds)
        return place

    def _timed(self, make: Callable[[], Any]) -> tuple[Any, float]:
        """What is made, and its own seconds: without those of parts made meanwhile."""
        start, inner = time.perf_counter(), sum(self.seconds.values())
        content = make()
        meanwhile = sum(self.seconds.values()) - inner
        return content, max(0.0, time.perf_counter() - start - meanwhile)

    def _count(self, name: str, stage: str, seconds: float) -> None:
        if name not in self._counted:
            self._counted.add(name)
            self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds

    def finish(self, document: Mapping[str, Any], page: str) -> None:
        """Write the page, and last the study's document."""
        write_whole(self.directory / "study.html", page.encode())
        text = json.dumps(document, indent=1, allow_nan=False) + "\n"
        write_whole(self.directory / _DONE, text.encode())


_OWN = {"downloads", "model", "texts", "preset.json"}  # inputs of a preset


def plain(metrics: Mapping[str, Metric]) -> dict[str, Any]:
    """Metrics as they are in the study's document."""
    return {key: _numbers(each) for key, each in metrics.items()}


def _numbers(metric: Metric) -> dict[str, float]:
    return {"value": metric.value, "low": metric.low, "high": metric.high}


def save(report: Report, place: Path) -> None:
    """Write a report with its reference into a directory."""
    report.save(place)
