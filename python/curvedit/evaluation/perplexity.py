"""Perplexity of text that should be kept."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import nn

from curvedit.evaluation.measure import Run
from curvedit.evaluation.text import TextMeasure
from curvedit.report import Meaning, Metric

_LARGEST = 700  # nats; exp of more overflows float64


@dataclass(frozen=True, eq=False)
class Perplexity(TextMeasure):
    """``perplexity``: ``exp(total loss / total tokens)``, with an interval over windows.

    Every token has the same weight, whichever batch or window it is in.
    """

    meanings: ClassVar[Mapping[str, Meaning]] = {
        "perplexity": Meaning(
            "Perplexity",
            "number",
            "lower",
            "exp of the mean token loss on text that should be kept",
            units="text",
        )
    }

    def measure(self, model: nn.Module, run: Run) -> dict[str, Metric]:
        """Read the text and average the token losses."""
        text = self.read(model, run)
        counted = text.tokens > 0
        mean = run.interval(text.loss[counted], text.tokens[counted])
        if max(mean.value, mean.high) > _LARGEST:
            raise ValueError(
                f"model: expected a mean token loss of at most {_LARGEST} nats, "
                f"got {mean.value:.3g}; check its weights"
            )
        value, low, high = (math.exp(nats) for nats in (mean.value, mean.low, mean.high))
        units = None if mean.units is None else replace(mean.units, exponential=True)
        return {"perplexity": Metric(value, low, high, units)}
