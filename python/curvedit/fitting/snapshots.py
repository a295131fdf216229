"""Snapshots of an unfinished fit, from which a fit of the same model, data and settings goes on.

Two files take turns, each written whole or not at all, so that the last good one is never touched.
A file holds the sums, and in its header all else that the pass has counted. What goes on from it
adds the same products in the same order, so that the sums are bit-identical to those of a fit that
was never stopped, on the same machine.
"""

import contextlib
import hashlib
import json
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from curvedit.data import RowSketch
from curvedit.factors import Key
from curvedit.files import new_file
from curvedit.fitting.moments import Moments
from curvedit.passes import Fidelity, Run

_NAMES = ("snapshot-0.safetensors", "snapshot-1.safetensors")
_STATE = "state"  # key of the header


class Snapshots:
    """The snapshots of one fit, in a directory."""

    def __init__(
        self,
        directory: str | Path,
        made_by: Mapping[str, Any],
        every: float,
        moments: Moments,
        *,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        """Prepare; nothing is read or written yet.

        Args:
            directory: Where they go; it is made when the first one is due.
            made_by: What decides the fit's result, by name; plain values.
            every: Seconds between two of them.
            moments: The sums of the pass.
            share: Number of this process, of how many that share the fit; each has its own.
        """
        number, count = share
        place = Path(directory)
        self.directory = place if count == 1 else place / f"process-{number}-of-{count}"
        self.every = every
        self.made_by = json.loads(json.dumps(made_by))
        self.seconds = 0.0  # that an interrupted fit took until its snapshot
        self._digest = hashlib.sha256()  # of the batches seen
        self._expected = ""  # digest at the snapshot
        self._number, self._seen = 0, 0
        self._moments = moments
        self._began = self._last = time.monotonic()

    def restore(self, run: Run) -> None:
        """Bring a fit to where the last good snapshot was made, if there is one.

        Raises:
            ValueError: the snapshot is of another model, of other data or settings.
        """
        found = [each for name in _NAMES if (each := self._read(self.directory / name))]
        if not found:
            return
        state, sums = max(found, key=lambda each: int(each[0]["number"]))
        for key, value in self.made_by.items():
            other = state["made_by"].get(key)
            if other != value:
                raise ValueError(
                    f"snapshots: expected {self.directory} to be of an interrupted fit of the same "
                    f"model, data and settings, got one with another {key} ({_short(other)} "
                    f"instead of {_short(value)}); remove it, or choose another place"
                )
        self._moments.place.fill({Key.parse(key): each for key, each in sums.items()})
        for name in ("batches", "samples", "positions", "loss_terms", "task", "reason"):
            setattr(run, name, state[name])
        check = state["check"]
        run.check = Fidelity(
            check["reason"],
            frozenset(check["copied"]),
            frozenset(check["alone"]),
            check["difference"],
            check["seconds"],
        )
        run.rows = RowSketch.from_json(state["rows"]) or RowSketch()
        run.stack = None if state["reason"] else run.stack
        observer = run.observer
        observer.copied, observer.alone = set(run.check.copied), set(run.check.alone)
        observer.tokens, observer.leaders = dict(state["tokens"]), dict(state["leaders"])
        self._number, self._expected = state["number"], state["digest"]
        self.seconds = state["seconds"]

    @property
    def digest(self) -> str:
        """SHA-256 of the tensors of all batches seen."""
        return self._digest.hexdigest()

    def saw(self, raw: Any, run: Run) -> None:
        """Look at a batch before it is taken, or passed over because the snapshot has it.

        Raises:
            ValueError: the batches passed over are not those that the snapshot has seen.
        """
        if self._expected and self._seen == run.batches:
            if self.digest != self._expected:
                raise ValueError(
                    f"batches: expected the {run.batches} batches that {self.directory} has seen, "
                    "got others; remove it, or give the same data"
                )
            self._expected = ""
        for tensor in _tensors(raw):
            self._digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            numbers = tensor.detach().cpu().reshape(-1).view(torch.uint8)
            self._digest.update(numbers.numpy().data)
        self._seen += 1

    def took(self, run: Run) -> None:
        """Write a snapshot if one is due; a failure is told and leaves the one before."""
        if time.monotonic() - self._last < self.every:
            return
        try:
            self._write(run)
        except OSError as error:
            warnings.warn(
                f"snapshots: {self.directory} could not be written ({error}); the fit goes on, and "
                "the snapshot before it stays",
                stacklevel=2,
            )
        self._last = time.monotonic()

    def _write(self, run: Run) -> None:
        if run.check is None:
            return
        check = run.check
        sums = {
            str(key): each.cpu().contiguous() for key, each in self._moments.place.all().items()
        }
        state = {
            "number": self._number + 1,
            "made_by": self.made_by,
            **{
                name: getattr(run, name)
                for name in ("batches", "samples", "positions", "loss_terms", "task", "reason")
            },
            "check": {
                "reason": check.reason,
                "copied": sorted(check.copied),
                "alone": sorted(check.alone),
                "difference": check.difference,
                "seconds": check.seconds,
            },
            "rows": run.rows.to_json(),
            "tokens": run.observer.tokens,
            "leaders": run.observer.leaders,
            "digest": self.digest,
            "seconds": self.seconds + time.monotonic() - self._began,
            "sums": _hash(sums),
        }
        self.directory.mkdir(parents=True, exist_ok=True)
        with new_file(self.directory / _NAMES[self._number % 2]) as part:
            save_file(sums, part, metadata={_STATE: json.dumps(state)})
        self._number += 1

    def _read(self, path: Path) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """The state and the sums of a file; None if it is missing or damaged, which is told."""
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                state = json.loads((file.metadata() or {})[_STATE])
                sums = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            if state["sums"] != _hash(sums):
                raise ValueError("its sums are not those that were written")
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            warnings.warn(f"snapshots: {path} is damaged ({error}) and left out", stacklevel=4)
            return None
        return state, sums


def discard(directory: str | Path) -> None:
    """Remove the snapshots of a fit whose factors are saved, and their directory if it is empty."""
    for place in (*Path(directory).glob("process-*-of-*"), Path(directory)):
        for name in _NAMES:
            (place / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            place.rmdir()


def _tensors(raw: Any) -> Iterator[Tensor]:
    """All tensors of a batch, in its order."""
    if isinstance(raw, Tensor):
        yield raw
    elif isinstance(raw, Mapping):
        for each in raw.values():
            yield from _tensors(each)
    elif isinstance(raw, (tuple, list)):
        for each in raw:
            yield from _tensors(each)


def _hash(sums: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for key in sorted(sums):
        digest.update(key.encode())
        digest.update(sums[key].view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}…"
