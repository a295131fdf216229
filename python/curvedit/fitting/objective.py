"""The loss whose curvature is measured, and its gradient at a model's output.

The loss is the sum of cross-entropies over the loss terms that a batch has.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from curvedit.data import Batch
from curvedit.fitting.sampling import sample_labels, uniform
from curvedit.models import logits_of
from curvedit.passes import LossFunction


@dataclass(frozen=True)
class _Doubt:
    """What is to be looked at before a pass goes on; a GPU is not waited for until then."""

    sound: Tensor  # (2,) bool: the logits are finite; the labels are in range
    labels: Tensor
    where: Tensor  # labels count here
    classes: int
    batch: int  # its index

    def error(self, *, is_finite: bool) -> ValueError:
        if not is_finite:
            return ValueError(
                f"model: the logits are not finite in batch {self.batch}; "
                "check the weights and the inputs"
            )
        labels = self.labels[self.where]
        return ValueError(
            f"batches: expected labels from 0 to {self.classes - 1}, "
            f"got {int(labels.min())} to {int(labels.max())} in batch {self.batch}"
        )


@dataclass(frozen=True)
class Objective:
    """A summed loss whose labels come from the data or are drawn from the model's distribution.

    ``labels="sampled"`` gives the true Fisher information in expectation (one Monte Carlo label per
    loss term), ``"data"`` the empirical Fisher (Kunstner et al. 2019, arXiv:1905.12558).
    """

    labels: str  # "sampled" or "data"; "uniform" ignores the logits
    seed: int
    custom: LossFunction | None = None
    _doubts: list[_Doubt] = field(default_factory=list, init=False, repr=False, compare=False)

    def differentiate(
        self, output: Any, batch: Batch, *, start: int = 0, stop: int | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return a tensor and the gradient of the summed loss with respect to it.

        A backward pass starts from the two. The tensor is the logits ``z``, and the gradient is
        ``softmax(z) - onehot(label)`` in rows with a loss term and 0 in all others, even where
        their logits are NaN. It is computed in closed form, so that neither the loss nor its graph
        is stored. A custom loss is returned itself, with None as its gradient.

        Args:
            output: The model's output for ``batch``. A language model's logits may cover only the
                positions ``start … stop - 1``.
            batch: The rows that the output belongs to.
            start: First position that the logits cover.
            stop: One past the last position; None for all.

        Raises:
            TypeError: the output has no logits.
            ValueError: the logits have the wrong shape, or the labels are missing. Whether logits
                are finite and labels in range, :meth:`require_valid` tells.
        """
        if self.custom is not None:
            return self.custom(output, batch.labels), None
        logits = logits_of(output)
        terms = None if batch.terms is None else batch.terms[:, start:stop]
        leading = tuple(batch.samples.shape if terms is None else terms.shape)
        if tuple(logits.shape[:-1]) != leading:
            sizes = ", ".join(map(str, leading))
            raise ValueError(
                f"model: the {batch.task} task expects logits of shape ({sizes}, classes), "
                f"got {tuple(logits.shape)} in batch {batch.index}"
            )
        if logits.shape[-1] < 2:
            raise ValueError(
                "model: expected logits of at least 2 classes, whose distribution has a "
                f"curvature, got {logits.shape[-1]}; give a regression its own loss="
            )
        probabilities = logits.detach().softmax(
            -1, dtype=torch.promote_types(logits.dtype, torch.float32)
        )
        where = (
            torch.ones(leading, dtype=torch.bool, device=logits.device) if terms is None else terms
        )
        _clear(probabilities, ~where)
        labels, classes = self._labels(probabilities, batch, start, stop), logits.shape[-1]
        nearest = labels.clamp(0, classes - 1)
        sound = [probabilities.sum(-1).isfinite().all(), ((nearest == labels) | ~where).all()]
        self._doubts.append(_Doubt(torch.stack(sound), labels, where, classes, batch.index))
        ones = where.to(probabilities.dtype)
        probabilities.scatter_add_(-1, nearest[..., None], -ones[..., None])
        return logits, probabilities.to(logits.dtype)

    def require_valid(self) -> None:
        """Refuse what was given to :meth:`differentiate` since the last call, if it is not valid.

        Raises:
            ValueError: logits are not finite in rows with a loss term, or labels of the data are
                out of range there.
        """
        doubts = list(self._doubts)
        self._doubts.clear()
        if not doubts:
            return
        found = torch.stack([each.sound for each in doubts]).tolist()
        for (is_finite, in_range), doubt in zip(found, doubts, strict=True):
            if not (is_finite and in_range):
                raise doubt.error(is_finite=is_finite)

    def for_check(self) -> "Objective":
        """Return a loss for the self-check, whose labels do not depend on the logits."""
        return replace(self, labels="data" if self.custom else "uniform")

    def _labels(self, probabilities: Tensor, batch: Batch, start: int, stop: int | None) -> Tensor:
        """Return one label per row, arbitrary in rows without a loss term."""
        if self.labels != "data":
            if self.labels == "uniform":
                probabilities = torch.ones_like(probabilities)
            samples, positions = (
                batch.samples,
                torch.zeros((), dtype=torch.int64, device=probabilities.device),
            )
            if batch.terms is not None:
                samples = samples[:, None]
                positions = torch.arange(
                    start, start + probabilities.shape[1], device=probabilities.device
                )
            return sample_labels(probabilities, uniform(self.seed, samples, positions))
        if batch.labels is None:
            raise ValueError(
                f"labels='data': expected labels in the data, got none in batch {batch.index}"
            )
        return batch.labels if batch.terms is None else batch.labels[:, start:stop]


def _clear(probabilities: Tensor, rows: Tensor) -> None:
    """Set rows to zero: on a CPU only these are touched, on a GPU the host does not wait."""
    if probabilities.device.type != "cpu":
        probabilities.masked_fill_(rows[..., None], 0.0)
    elif rows.any():
        probabilities[rows] = 0.0
