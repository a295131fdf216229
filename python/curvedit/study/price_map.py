"""Where to edit: what forgetting costs in each block and kind of linear map, measured cheaply.

One cell is one linear map. Removing flat components, or one targeted step, is tried in it alone, of
about the same predicted damage everywhere. Forgotten is the rise of the loss on the passages'
suffixes, which unlike the share of tokens right moves with the smallest edit. It grows with the
length of a change and the damage with its square, so what does not depend on the length is
forgetting per root of a nat.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from curvedit import meter
from curvedit.data import Ids, Passages
from curvedit.evaluation import Divergence, Sampling, Suite, evaluate, forced
from curvedit.factors import Factors
from curvedit.forgetting import FirstStep, first_steps
from curvedit.models import find_stack, maps_of, weight_of
from curvedit.projection import project
from curvedit.ranking import rank
from curvedit.study.arms import change_of
from curvedit.study.measuring import after

_LEAST = 1e-6  # nats below which a measured divergence is rounding
_ALLOWED = 0.004  # nats that a cell's edit is predicted to cost
_RATIO = 10.0  # of measured to predicted damage of a step of one target, roughly
_SHARE = 4  # one of so many blocks is proposed
Cells = dict[tuple[int, str], str]  # block and kind to the name of the linear map


@dataclass
class PriceMap:
    """Measured and predicted worth of each cell; NaN where nothing was measured."""

    cells: Cells
    forgotten: dict[str, dict[str, float]] = field(default_factory=dict)  # nats, mode and name
    kl: dict[str, dict[str, float]] = field(default_factory=dict)  # nats per token of text
    predictors: dict[str, dict[str, float]] = field(default_factory=dict)

    def worth(self, mode: str) -> dict[str, float]:
        """Nats forgotten per root of a nat of damage."""
        return {
            name: lost / max(self.kl[mode][name], _LEAST) ** 0.5
            for name, lost in self.forgotten[mode].items()
        }

    def proposed(self, mode: str) -> list[int]:
        """The quarter of the blocks whose cells are worth most on average."""
        worth = self.worth(mode)
        blocks = sorted({block for block, _ in self.cells})
        means = {
            block: np.mean(
                [worth[n] for (b, _), n in self.cells.items() if b == block and n in worth]
            )
            for block in blocks
        }
        best = sorted(blocks, key=lambda block: -means[block])[: max(1, len(blocks) // _SHARE)]
        return sorted(best)

    def to_json(self) -> dict[str, Any]:
        """The entry of the study's document: tables of blocks by kinds."""
        blocks = sorted({block for block, _ in self.cells})
        kinds = list(dict.fromkeys(kind for _, kind in self.cells))

        def table(values: Mapping[str, float]) -> list[list[float | None]]:
            return [
                [values.get(self.cells.get((block, kind), "")) for kind in kinds]
                for block in blocks
            ]

        found: dict[str, Any] = {"kinds": kinds, "layers": blocks}
        for mode in self.forgotten:
            found[mode] = {"forgotten": table(self.forgotten[mode]), "kl": table(self.kl[mode])}
        found["predictors"] = {
            key: {
                "values": table(values),
                "spearman": {mode: self.correlation(values, mode) for mode in self.forgotten},
            }
            for key, values in self.predictors.items()
        }
        found["proposed"] = self.proposed("label_free")
        found["proposed_targeted"] = self.proposed("targeted")
        return found

    def correlation(self, values: Mapping[str, float], mode: str) -> float | None:
        """Rank correlation of a predictor with the measured worth, over the cells."""
        worth = self.worth(mode)
        names = [name for name in worth if name in values]
        if len(names) < 3:
            return None
        ranks = [_ranks([each[name] for name in names]) for each in (values, worth)]
        if not all(np.ptp(each) for each in ranks):
            return None
        return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def cells_of(model: nn.Module, names: Sequence[str]) -> Cells:
    """Block and kind of each linear map inside the model's stack of blocks."""
    stack = find_stack(model, names)
    found: Cells = {}
    for name in names:
        if stack is None or not name.startswith(f"{stack.name}."):
            continue
        number, _, kind = name[len(stack.name) + 1 :].partition(".")
        found[int(number), kind] = name
    return found


def measure_map(
    model: nn.Module,
    factors: Factors,
    passages: Passages,
    windows: Sequence[Ids],
    *,
    every: int = 1,
    batch_size: int = 8,
    progress: bool = True,
) -> PriceMap:
    """Try an edit of each cell alone.

    Args:
        model: The module that the factors were fitted on; it is unchanged in the end.
        factors: Of all cells.
        passages: Recited ones.
        windows: Token ids of text that should be kept.
        every: Take one of so many blocks.
        batch_size: Passages or windows at a time.
        progress: Show how far it has come.
    """
    cells = {at: name for at, name in cells_of(model, list(factors)).items() if at[0] % every == 0}
    names = list(cells.values())
    suite = Suite([Divergence(list(windows))], batch_size=batch_size)
    before = evaluate(model, suite, progress=False)
    unedited = suffix_loss(model, passages, batch_size)
    found = PriceMap(cells)
    steps = first_steps(
        model, factors, passages, targets=names, batch_size=batch_size, progress=progress
    )
    found.predictors["gradient against curvature"] = {n: steps[n].worth for n in names}
    found.predictors["spread of the curvature"] = {n: _spread(factors, n) for n in names}
    size: dict[str, float] = {}
    modes = ("label_free", "targeted")
    found.forgotten, found.kl = {mode: {} for mode in modes}, {mode: {} for mode in modes}

    def add(mode: str, name: str) -> None:
        scores = after(model, suite, baseline=before, progress=False)
        found.forgotten[mode][name] = suffix_loss(model, passages, batch_size) - unedited
        found.kl[mode][name] = scores["kl"].value

    with meter.progress(2 * len(names), unit="cell", what="map", shown=progress) as bar:
        for name in names:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                selection = rank(
                    factors, keep_kl=_ALLOWED, targets=[name], model=model, progress=False
                )
            with project(model, selection) as edit:
                size[name] = change_of(edit, model)
                add("label_free", name)
            bar.update()
            with _stepped(model, name, steps.pop(name)):
                add("targeted", name)
            bar.update()
    found.predictors["change at equal predicted damage"] = size
    return found


@contextmanager
def _stepped(model: nn.Module, name: str, step: FirstStep) -> Iterator[None]:
    """Inside, the weight of one target has taken its first step, of the damage allowed."""
    weight = weight_of(maps_of(model)[name])
    content = weight.detach().clone()
    length = (_ALLOWED / _RATIO / step.damage) ** 0.5 if step.damage > 0 else 0.0
    with torch.no_grad():
        weight.copy_((content.float() + length * step.step).to(weight.dtype))
    try:
        yield
    finally:
        with torch.no_grad():
            weight.copy_(content)


def suffix_loss(model: nn.Module, passages: Passages, batch_size: int) -> float:
    """Mean loss on the tokens of the suffixes, nats."""
    whole = Sampling()
    logs = forced(model, passages, samplings=[whole], batch_size=batch_size).logs[whole]
    return -float(np.concatenate(logs).mean())


def _ranks(values: Sequence[float]) -> npt.NDArray[np.float64]:
    """Ranks from 0; equal values share the mean of theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    found: npt.NDArray[np.float64] = ((last - counts + last - 1) / 2)[place]
    return found


def _spread(factors: Factors, name: str) -> float:
    """Directions that hold the curvature: (sum)^2 / sum of squares, as a share of all."""
    shares = []
    for kind in ("G", "A"):
        values = factors.basis(kind, name).values
        shares.append(float(values.sum() ** 2 / values.square().sum() / len(values)))
    return shares[0] * shares[1]
