"""KL divergence from the unedited model, per token of text that should be kept.

The baseline's distributions over a large vocabulary would fill gigabytes. Kept of each position are
its likeliest tokens with their log probabilities, whose terms of the divergence are exact, and some
tokens drawn from the rest, whose terms estimate the rest's without bias. A model that equals its
baseline scores exactly 0, since every term does.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from curvedit.evaluation.measure import Run
from curvedit.evaluation.text import TextMeasure
from curvedit.evaluation.text_reference import reference_of
from curvedit.models import cached_rows
from curvedit.report import Kept, Meaning, Metric

EXACT = 32  # likeliest tokens kept of each position
DRAWN = 32  # tokens drawn from the rest


@dataclass(frozen=True, eq=False)
class Divergence(TextMeasure):
    """``kl``: mean over tokens of KL(baseline ‖ model), in nats; interval over windows."""

    own_name: ClassVar[str] = "kl_text"
    meanings: ClassVar[Mapping[str, Meaning]] = {
        "kl": Meaning(
            "KL divergence",
            "number",
            "lower",
            "nats per token from the unedited model's predictions to this one's",
            digits=4,
            headline=False,
        )
    }

    def watch(self, run: Run) -> "_Keeper | _Comparer":
        """What sees the logits of every position in order."""

        def made() -> _Keeper | _Comparer:
            if run.baseline is None:
                return _Keeper()
            reference = run.baseline.reference
            if reference is None or reference.kept is None:
                raise ValueError(
                    "baseline: expected the distributions that KL divergence compares with, got a "
                    "report without them; measure the baseline again with this suite, and load it "
                    "from the directory it was saved to"
                )
            return _Comparer(reference.kept)

        found: _Keeper | _Comparer = run.shared(("kl", id(self.text)), made)
        return found

    def measure(self, model: nn.Module, run: Run) -> dict[str, Metric]:
        """Read the text and compare the distributions with the baseline's."""
        watch = self.watch(run)
        text = self.read(model, run)
        kept = watch.kept() if isinstance(watch, _Keeper) else None
        reference_of(text, run, self.name(run), kept)
        each = np.zeros(len(text.top)) if isinstance(watch, _Keeper) else watch.divergences()
        sums = [part.sum() for part in np.split(each, np.cumsum(text.tokens)[:-1])]
        counted = text.tokens > 0
        return {"kl": run.interval(np.array(sums)[counted], text.tokens[counted])}


class _Keeper:
    """Keeps what a baseline predicts at every position."""

    def __init__(self) -> None:
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = []
        self._seen = 0

    def __call__(self, logits: Tensor, total: Tensor) -> None:
        """Take the logits (n, V) of the next positions and their logsumexp (n,)."""
        few = cached_rows(logits)
        for piece, each in zip(logits.split(few), total.split(few), strict=True):
            logs = piece.double() - each.double()[:, None]
            top = logs.topk(min(EXACT, logs.shape[-1]), dim=-1)
            ids, rest = top.indices, torch.zeros(len(logs), dtype=torch.float64)
            if logs.shape[-1] > EXACT:
                chances = logs.exp().scatter(1, ids, 0.0)
                total = chances.cumsum(1)
                places = _places(self._seen, len(logs)).to(logs.device) * total[:, -1:]
                drawn = torch.searchsorted(total, places, right=True).clamp(max=logs.shape[-1] - 1)
                ids, rest = torch.cat([ids, drawn], 1), total[:, -1]
            kept = logs.gather(1, ids)
            self._parts.append((ids.int().cpu(), kept.float().cpu(), rest.float().cpu()))
            self._seen += len(logs)

    def kept(self) -> Kept:
        """What was kept of all positions."""
        ids, logs, rest = (torch.cat(part).numpy() for part in zip(*self._parts, strict=True))
        return Kept(ids, logs, rest, EXACT)


class _Comparer:
    """Compares what a model predicts with what its baseline did."""

    def __init__(self, kept: Kept) -> None:
        self._kept, self._seen = kept, 0
        self._found: list[Tensor] = []

    def __call__(self, logits: Tensor, total: Tensor) -> None:
        """Take the logits (n, V) of the next positions and their logsumexp (n,)."""
        kept = self._kept
        here = slice(self._seen, self._seen + len(logits))
        ids = torch.from_numpy(kept.ids[here]).long()
        if len(ids) != len(logits) or int(ids.max()) >= logits.shape[-1]:
            raise ValueError(
                "baseline: expected one measured on the same text with the same vocabulary, "
                f"got one that differs at position {self._seen}; measure it again"
            )
        own = logits.gather(1, ids.to(logits.device)).double() - total.double()[:, None]
        logs = torch.from_numpy(kept.logs[here])
        ratio = (logs - own.float().cpu()).double()
        terms = logs[:, : kept.exact].double().exp() * ratio[:, : kept.exact]
        found = terms.sum(1)
        if ids.shape[1] > kept.exact:
            rest = torch.from_numpy(kept.rest[here]).double()
            found = found + rest * ratio[:, kept.exact :].mean(1)
        self._found.append(found)
        self._seen += len(logits)

    def divergences(self) -> npt.NDArray[np.float64]:
        """KL divergence at each position, (positions,)."""
        found: npt.NDArray[np.float64] = torch.cat(self._found).numpy()
        return found


def _places(first: int, count: int) -> Tensor:
    """Evenly spaced places in (0, 1), shifted at each position by a hash of its number.

    Shape ``(count, DRAWN)``. The shift depends on the position alone, not on the batching.
    """
    mixed = np.arange(first, first + count, dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    for factor, shift in ((0xBF58476D1CE4E5B9, 30), (0x94D049BB133111EB, 27)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)  # splitmix64
    shifts = ((mixed ^ (mixed >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) / 2**53
    return (torch.arange(DRAWN) + torch.from_numpy(shifts)[:, None]) / DRAWN
