"""What an edit survives: rounding to few bits, training on other data, other ways of asking."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn

from curvedit import meter
from curvedit.data import Ids, Passages
from curvedit.evaluation import (
    Prompts,
    SampledExtraction,
    Suite,
    evaluate,
    forced,
    relearn,
    rounded,
)
from curvedit.study.records import plain

UNRELATED = "unrelated text"
STEPS = (10, 25, 50)
_RECITED_STEPS = (10, 25)  # on text that was recited


def share_right(model: nn.Module, passages: Passages, *, batch_size: int) -> float:
    """Share of the suffix tokens right, teacher-forced."""
    right = forced(model, passages, batch_size=batch_size).right
    return float(np.concatenate(right).mean())


def audit(
    model: nn.Module,
    arm: str,
    sides: Mapping[str, Passages],
    training: Mapping[str, Sequence[Ids]],
    *,
    batch_size: int = 8,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, Any]:
    """Audit the model as it is now, under the name of an arm.

    Args:
        model: Edited, or not; it is unchanged in the end.
        arm: The name that the results go by.
        sides: The passages by side; the forgotten ones are "tune".
        training: What to train on, by name.
        batch_size: Passages at a time.
        seed: Seeds the training.
        progress: Show how far it has come.
    """
    rounding = []
    for bits in (8, 4):
        with rounded(model, bits):
            right = {
                f"right: {side}": share_right(model, each, batch_size=batch_size)
                for side, each in sides.items()
            }
        rounding.append({"arm": arm, "bits": bits, **right})
    now = share_right(model, sides["tune"], batch_size=batch_size)
    relearning = []
    steps = {name: STEPS if name == UNRELATED else _RECITED_STEPS for name in training}
    total = sum(max(each) for each in steps.values())
    with meter.progress(total, unit="step", what="relearn", shown=progress) as bar:
        for name, rows in training.items():
            found = relearn(
                model,
                rows,
                lambda: share_right(model, sides["tune"], batch_size=batch_size),
                steps=steps[name],
                seed=seed,
                done=bar.update,
            )
            entry = {"arm": arm, "on": name, "steps": [0, *steps[name]], "right": [now, *found]}
            relearning.append(entry)
    suite = Suite([Prompts(sides["tune"]), SampledExtraction(sides["tune"])], batch_size=batch_size)
    asked = evaluate(model, suite, progress=progress).before
    return {
        "rounding": rounding,
        "relearning": relearning,
        "prompts": {arm: plain(asked)},
    }
