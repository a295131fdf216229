"""The data of a study: passages that the model recites, and text that it should keep."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import nn

from curvedit.data import Ids, Passages, TokenBatches
from curvedit.evaluation import forced
from curvedit.models import find_stack, find_targets
from curvedit.study.measuring import sides_of
from curvedit.study.records import Records
from curvedit.study.settings import Settings

NEAR = 0.75  # share of the tokens right from which on a passage is recited
REQUIRED = ("tune", "test")  # sides
_APART = 5  # of so many passages of the tuned side, one is set apart


@dataclass(frozen=True)
class Material:
    """The data of a study."""

    passages: Passages  # of both sides
    fitted_on: Mapping[int, TokenBatches]  # general text by the number of tokens
    text: Mapping[str, Sequence[Ids]]  # held-out windows by domain

    def require_text(self, checked: int) -> None:
        """Refuse domains that have no windows beyond those that edits are checked on."""
        short = [name for name, rows in self.text.items() if len(rows) <= checked]
        if short or not self.text:
            got = f"{len(self.text[short[0]])} of {short[0]!r}" if short else "no domain"
            raise ValueError(
                f"text: expected more than {checked} windows of each domain, got {got}"
            )


def recited(model: nn.Module, passages: Passages, settings: Settings, records: Records) -> Passages:
    """The passages that the model recites; a note says how many it does not.

    A fifth of the tuned side is set apart as "related": passages of the same sources that nothing
    is tuned on and nobody names.

    Raises:
        ValueError: of a side it recites none.
    """

    def read() -> dict[str, Any]:
        found = forced(model, passages, batch_size=settings.batch_size).right
        return {"right": [float(each.mean()) for each in found]}

    right = np.array(records.part("recited", read, stage="compare")["right"])
    numbers = np.flatnonzero(right >= NEAR).tolist()
    for side in REQUIRED:
        if not any(passages.facts[number].get("split") == side for number in numbers):
            raise ValueError(
                f"passages: expected some of the {side} side that the model recites, at least "
                f"{NEAR:.0%} of the tokens right, got none of {len(passages)}"
            )
    if len(numbers) < len(passages):
        records.notes.append(
            f"{len(passages) - len(numbers)} of {len(passages)} passages are not recited (less "
            f"than {NEAR:.0%} of the tokens right) and were left out"
        )
    return _set_apart(passages.take(numbers))


def _set_apart(passages: Passages) -> Passages:
    """The same, every fifth of the tuned side marked "related" if its source has others there."""
    tuned = [number for number, each in enumerate(passages.facts) if each.get("split") == "tune"]
    apart = set(tuned[_APART - 1 :: _APART])
    named = {passages.facts[number].get("source") for number in tuned if number not in apart}
    facts = [
        {**each, "split": "related"} if number in apart and each.get("source") in named else each
        for number, each in enumerate(passages.facts)
    ]
    return replace(passages, facts=facts)


def counts_of(passages: Passages) -> dict[str, dict[str, int]]:
    """How many passages of how many sources each side has."""
    found = {}
    for side in sides_of(passages):
        facts = passages.of_split(side).facts
        sources = len({str(each.get("source")) for each in facts})
        found[side] = {"passages": len(facts), "sources": sources}
    return found


def some(passages: Passages, count: int) -> Passages:
    """At most so many, spread evenly."""
    if len(passages) <= count:
        return passages
    return passages.take(np.linspace(0, len(passages) - 1, count).round().astype(int).tolist())


def some_rows(rows: Sequence[Ids], count: int) -> list[Ids]:
    """At most so many windows, spread evenly."""
    chosen = np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int)
    return [rows[int(at)] for at in chosen]


def usual_places(model: nn.Module) -> dict[str, list[str]]:
    """Where to edit a model of which nothing is known: the middle of its blocks, and more.

    Raises:
        ValueError: the model has no blocks.
    """
    names = list(find_targets(model, "*"))
    stack = find_stack(model, names)
    if stack is None:
        raise ValueError("places: expected patterns for a model without a list of blocks, got none")
    count = len(stack.blocks)
    ends = {"middle": (0.4, 0.6), "wide": (0.4, 0.9)}
    return {
        place: [
            name
            for number in range(int(first * count), max(int(first * count) + 1, int(last * count)))
            for name in names
            if name.startswith(f"{stack.name}.{number}.")
        ]
        for place, (first, last) in ends.items()
    }
