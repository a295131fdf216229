"""The loss whose curvature is measured: the sum of cross-entropies over the positions that count."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from curvedit.batches import Batch, LossFunction, logits_of
from curvedit.sampling import sample_labels, uniform


@dataclass(frozen=True)
class Objective:
    """Summed loss, with labels from the data or drawn from the model's own distribution.

    ``labels="sampled"`` gives the true Fisher information in expectation (one Monte-Carlo label
    per loss term), ``"data"`` the empirical Fisher (Kunstner et al. 2019, arXiv:1905.12558).
    """

    labels: str  # "sampled" or "data"
    seed: int
    custom: LossFunction | None = None

    def loss(self, output: Any, batch: Batch, *, start: int = 0, stop: int | None = None) -> Tensor:
        """The summed loss, a scalar, of a model output.

        Args:
            output: The model's output for ``batch``; for a language model the logits may cover
                positions ``start … stop - 1`` only.
            batch: The rows the output belongs to.
            start: First position that the logits cover.
            stop: One past the last; None for all.
        """
        if self.custom is not None:
            return self.custom(output, batch.labels)
        logits = logits_of(output)
        if batch.counts is None:
            return self._terms(self._two_dimensional(logits, batch), batch.samples, None, batch.labels, batch.index)
        if logits.ndim != 3:
            raise ValueError(f"model: the language task expects logits (B, T, vocabulary), got {tuple(logits.shape)}")
        counts = batch.counts[:, start:stop]
        if logits.shape[:2] != counts.shape:
            raise ValueError(
                f"model: expected logits for {tuple(counts.shape)} positions, got {tuple(logits.shape[:2])}"
            )
        row, position = counts.nonzero(as_tuple=True)
        labels = None if batch.labels is None else batch.labels[:, start:stop][row, position]
        return self._terms(logits[row, position], batch.samples[row], position + start, labels, batch.index)

    def _terms(
        self, logits: Tensor, samples: Tensor, positions: Tensor | None, labels: Tensor | None, index: int
    ) -> Tensor:
        if self.labels == "sampled":
            at = torch.zeros_like(samples) if positions is None else positions
            with torch.no_grad():
                if not logits.isfinite().all():
                    raise ValueError(f"model: its logits are not finite in batch {index}; check weights and inputs")
                labels = sample_labels(logits, uniform(self.seed, samples, at))
        elif labels is None:
            raise ValueError(f"labels='data': expected labels in the data, got none in batch {index}")
        return F.cross_entropy(logits.float() if logits.dtype.itemsize < 4 else logits, labels, reduction="sum")

    @staticmethod
    def _two_dimensional(logits: Tensor, batch: Batch) -> Tensor:
        if logits.ndim != 2 or logits.shape[0] != batch.samples.shape[0]:
            raise ValueError(
                f"model: the classification task expects logits ({batch.samples.shape[0]}, classes), "
                f"got {tuple(logits.shape)} in batch {batch.index}"
            )
        return logits
