"""Top-1 agreement: how often a model's likeliest next token is the unedited model's."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import nn

from curvedit.evaluation.measure import Run
from curvedit.evaluation.text import TextMeasure
from curvedit.evaluation.text_reference import reference_of
from curvedit.report import Meaning, Metric


@dataclass(frozen=True, eq=False)
class Agreement(TextMeasure):
    """``top1``: share of positions with the baseline's likeliest token; interval over windows.

    A baseline scores exactly 1.
    """

    own_name: ClassVar[str] = "top1_text"
    depth: ClassVar[int] = 1
    meanings: ClassVar[Mapping[str, Meaning]] = {
        "top1": Meaning(
            "Top-1 agreement",
            "share",
            "higher",
            "positions whose likeliest next token is the unedited model's",
            headline=False,
        )
    }

    def measure(self, model: nn.Module, run: Run) -> dict[str, Metric]:
        """Read the text and compare the likeliest tokens with the baseline's."""
        text = self.read(model, run)
        reference = reference_of(text, run, self.name(run))
        same = (text.top[:, 0] == reference.top[:, 0]).astype(np.float64)
        sums = [part.sum() for part in np.split(same, np.cumsum(text.tokens)[:-1])]
        counted = text.tokens > 0
        return {"top1": run.interval(np.array(sums)[counted], text.tokens[counted])}
