"""Rounding: whether what was forgotten stays so when the weights are rounded to few bits."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from curvedit.evaluation.measure import Run
from curvedit.evaluation.passage_measure import PassageMeasure
from curvedit.evaluation.teacher_forcing import forced
from curvedit.models import block_maps, weight_of
from curvedit.report import Meaning, Metric

GROUP = 32  # inputs that share a scale
BITS = (8, 4)


@dataclass(frozen=True, eq=False)
class Rounding(PassageMeasure):
    """``right_int8`` and ``right_int4``: suffix tokens right after a round trip to integers.

    Every linear map of the model's blocks is rounded to nearest, with one scale per 32 inputs and
    no calibration, and restored bit for bit. Unmasking by quantisation: Zhang et al.,
    arXiv:2410.16454.
    """

    meanings: ClassVar[Mapping[str, Meaning]] = {
        f"right_int{bits}": Meaning(
            f"Suffix tokens right, int{bits}",
            "share",
            "lower",
            f"the same after the blocks' weights are rounded to {bits} bits",
            units="passages",
            headline=False,
        )
        for bits in BITS
    }

    def measure(self, model: nn.Module, run: Run) -> dict[str, Metric]:
        """Read every passage once for each number of bits."""
        self.identify(run)
        found = {}
        for bits in BITS:
            with rounded(model, bits):
                read = forced(
                    model,
                    self.passages,
                    batch_size=run.batch_size,
                    pad_token_id=run.pad_token_id,
                )
            right = np.array([each.sum() for each in read.right], dtype=np.float64)
            length = np.array([len(each) for each in read.right], dtype=np.float64)
            found[f"right_int{bits}"] = run.interval(right, length)
        return found


def rounded_to(weight: Tensor, bits: int) -> Tensor:
    """A weight (d_out, d_in), rounded to signed integers with one scale per 32 inputs.

    Round to nearest with the largest magnitude of each group as its scale, as simple as
    quantisation gets; no calibration.
    """
    most = 2 ** (bits - 1) - 1
    pad = -weight.shape[1] % GROUP
    groups = nn.functional.pad(weight.float(), (0, pad)).unflatten(1, (-1, GROUP))
    scale = groups.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / most
    found: Tensor = (groups / scale).round().clamp(-most, most) * scale
    whole: Tensor = found.flatten(1)[:, : weight.shape[1]].to(weight.dtype)
    return whole


@contextmanager
def rounded(model: nn.Module, bits: int) -> Iterator[None]:
    """Inside, every linear map of the model's blocks is rounded."""
    weights = [weight_of(each) for each in block_maps(model).values()]
    with restored(weights), torch.no_grad():
        for weight in weights:
            weight.copy_(rounded_to(weight, bits))
        yield


@contextmanager
def restored(weights: Sequence[Tensor]) -> Iterator[None]:
    """Afterwards, the weights are as before."""
    kept = [each.detach().clone() for each in weights]
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, content in zip(weights, kept, strict=True):
                weight.copy_(content)
