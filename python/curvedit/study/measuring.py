"""What is measured of every edit: recitation by side of the passages, damage by domain of text."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from torch import nn

from curvedit.data import Ids, Passages
from curvedit.evaluation import (
    Agreement,
    Divergence,
    Perplexity,
    Suite,
    TokenRecall,
    evaluate,
    paired_difference,
    ratio,
)
from curvedit.report import Meaning, Metric, Report, Units, register

SIDES = ("tune", "related", "test")  # "related": of the same sources as "tune", not named
COSTS = ("perplexity", "kl", "top1")
Scores = Mapping[str, Metric]  # by key; unlike in a report, "kl" beside "kl: news"

register(
    {
        "right: {}": Meaning(
            "Suffix tokens right, {}", "share", "lower", "teacher-forced", headline=False
        ),
        "near: {}": Meaning(
            "Nearly recited, {}", "share", "lower", "at least 75 % of the suffix right",
            headline=False,
        ),
        "perplexity: {}": Meaning(
            "Perplexity, {}", "number", "lower", "held-out text of one domain", headline=False
        ),
        "kl: {}": Meaning(
            "KL divergence, {}", "number", "lower", "held-out text of one domain", digits=4,
            headline=False,
        ),
    },
    owner="the study",
)  # fmt: skip


@dataclass
class Yardstick:
    """The passages and the text on which every edit of a study is measured.

    Args:
        passages: Those of both sides; their facts name the ``split`` and the ``source``.
        text: Windows of token ids by domain.
        batch_size: Passages or windows at a time.
        resamples: Number of bootstrap samples.
        seed: Seeds them.
        shows_progress: Show how far reading has come.
    """

    passages: Passages
    text: Mapping[str, Sequence[Ids]]
    batch_size: int = 8
    resamples: int = 1000
    seed: int = 0
    shows_progress: bool = True
    _suite: Suite = field(init=False, repr=False)

    def __post_init__(self) -> None:
        windows = [window for rows in self.text.values() for window in rows]
        measures = [
            TokenRecall(self.passages),
            Perplexity(windows),
            Divergence(windows),
            Agreement(windows),
        ]
        self._suite = Suite(
            measures, batch_size=self.batch_size, resamples=self.resamples, seed=self.seed
        )

    def baseline(self, model: nn.Module) -> Report:
        """Measure the unedited model."""
        return evaluate(model, self._suite, progress=self.shows_progress)

    def measure(self, model: nn.Module, baseline: Report) -> Scores:
        """Measure an edited model; of each metric the units are kept."""
        return self.by_part(
            after(model, self._suite, baseline=baseline, progress=self.shows_progress)
        )

    def by_part(self, metrics: Scores) -> Scores:
        """The metrics of the whole data, and those of each side and domain."""
        side = np.array([str(each.get("split")) for each in self.passages.facts])
        domain = np.repeat(list(self.text), [len(rows) for rows in self.text.values()])
        found: dict[str, Metric] = {}
        for key in ("right", "near"):
            for name in sides_of(self.passages):
                found[f"{key}: {name}"] = self._part(metrics[key], side == name)
        for key in COSTS:
            found[key] = metrics[key]
        for key in ("perplexity", "kl"):
            for name in self.text:
                found[f"{key}: {name}"] = self._part(metrics[key], domain == name)
        return found

    def _part(self, metric: Metric, chosen: npt.NDArray[np.bool_]) -> Metric:
        if metric.units is None:
            return metric
        top, bottom = metric.units.numerator[chosen], metric.units.denominator[chosen]
        part = ratio(top, bottom, resamples=self.resamples, seed=self.seed)
        if not metric.units.exponential:
            return part
        value, low, high = (math.exp(nats) for nats in (part.value, part.low, part.high))
        return Metric(value, low, high, Units(top, bottom, exponential=True))

    def differences(self, before: Scores, after: Scores) -> Scores:
        """After less before, with paired intervals, of the metrics that both have."""
        found: dict[str, Metric] = {}
        for key in after:
            first, second = before[key].units if key in before else None, after[key].units
            if first is not None and second is not None:
                change = paired_difference(first, second, resamples=self.resamples, seed=self.seed)
                found |= {} if change is None else {key: change}
        return found

    def cost_ratio(self, before: Scores, one: Scores, other: Scores) -> Metric | None:
        """The rise of perplexity under one edit over that under another, with a paired interval.

        None where the second rises by nothing.
        """
        sides = [metrics["perplexity"].units for metrics in (before, one, other)]
        losses = np.stack([each.numerator for each in sides if each is not None])
        tokens = sides[0].denominator if sides[0] is not None else np.ones(losses.shape[1])
        count = losses.shape[1]
        generator = np.random.default_rng(self.seed)
        draws = generator.multinomial(count, np.full(count, 1 / count), size=self.resamples)
        weights = np.concatenate([np.ones((1, count)), draws])
        means = weights @ losses.T / (weights @ tokens)[:, None]
        rises = np.expm1(means[:, 1:] - means[:, :1])
        if rises[0, 1] <= 0:
            return None
        each = rises[:, 0] / rises[:, 1]
        low, high = np.nanquantile(np.where(np.isfinite(each), each, np.nan)[1:], [0.025, 0.975])
        return Metric(float(each[0]), float(low), float(high))


def sides_of(passages: Passages) -> list[str]:
    """The sides that have passages."""
    there = {each.get("split") for each in passages.facts}
    return [side for side in SIDES if side in there]


def with_units(metrics: Scores) -> dict[str, object]:
    """Metrics as a JSON document that keeps what they were averaged from."""
    return {
        key: {
            "value": each.value,
            "low": each.low,
            "high": each.high,
            "units": None
            if each.units is None
            else [
                each.units.numerator.tolist(),
                each.units.denominator.tolist(),
                each.units.exponential,
            ],
        }
        for key, each in metrics.items()
    }


def of_units(document: Mapping[str, Mapping[str, object]]) -> Scores:
    """The inverse of :func:`with_units`."""
    found = {}
    for key, each in document.items():
        units = each["units"]
        kept = None
        if isinstance(units, list):
            kept = Units(np.array(units[0], float), np.array(units[1], float), bool(units[2]))
        value, low, high = (float(str(each[part])) for part in ("value", "low", "high"))
        found[key] = Metric(value, low, high, kept)
    return found


def after(model: nn.Module, suite: Suite, *, baseline: Report, progress: bool) -> Scores:
    """What an edited model scores."""
    return evaluate(model, suite, baseline=baseline, progress=progress).after or {}
