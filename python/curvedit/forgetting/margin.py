"""The losses of a targeted edit, bounded below: margins of the true token over the best other.

With the gap ``d = z[true] - max z[other]`` of a loss term, forgetting descends the hinge
``max(0, d + margin)``, which is 0 once another token leads by the margin. Unlike the likelihood it
is bounded, so that a forgotten passage pulls no more, and its gradient does not vanish where the
true token has a probability of 1. Keeping descends ``max(0, margin - d)`` where ``|d| < margin``:
what is neither certain nor lost.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from curvedit.data import Batch
from curvedit.models import logits_of
from curvedit.passes import LossFunction


@dataclass
class Gaps:
    """What passes saw of each passage, or sample: loss terms, those that are right, and the loss.

    A term is right if its true token is the model's first choice; ties count as wrong.
    """

    terms: Tensor  # (passages,) int64
    right: Tensor  # (passages,) int64
    loss: Tensor  # (passages,) float64, summed over the terms

    @classmethod
    def none(cls, count: int) -> "Gaps":
        """Start at zero."""
        whole = torch.zeros(count, dtype=torch.int64)
        return cls(whole, whole.clone(), torch.zeros(count, dtype=torch.float64))

    def add(self, samples: Tensor, gaps: Tensor, losses: Tensor) -> None:
        """Add loss terms, by the passage (terms,) that each belongs to."""
        where = samples.cpu()
        self.terms.index_add_(0, where, torch.ones_like(where))
        self.right.index_add_(0, where, (gaps > 0).long().cpu())
        self.loss.index_add_(0, where, losses.double().cpu())

    @property
    def shares(self) -> Tensor:
        """Share of each passage's terms that are right, (passages,) float64."""
        return self.right.double() / self.terms


@dataclass(frozen=True)
class MarginLoss:
    """The hinge on a gap, which forgets, or with ``keeps`` the one that keeps; summed over terms.

    ``gaps`` is told of every term that is differentiated.
    """

    gaps: Gaps
    margin: float = 1.0  # of logits
    keeps: bool = False
    custom: LossFunction | None = field(default=None, init=False)

    def differentiate(
        self, output: object, batch: Batch, *, start: int = 0, stop: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the logits and the gradient of the summed loss with respect to them.

        Args:
            output: The model's output for ``batch``; a language model's logits may cover only the
                positions ``start … stop - 1``.
            batch: The rows that the output belongs to, with labels.
            start: First position that the logits cover.
            stop: One past the last position; None for all.

        Raises:
            TypeError: the output has no logits.
            ValueError: the logits have the wrong shape or are not finite, or the labels are missing
                or out of range.
        """
        logits, where, labels = _labelled(output, batch, start, stop)
        rows = logits.detach()[where].float()
        if not rows.isfinite().all():
            raise ValueError(
                f"model: the logits are not finite in batch {batch.index}; check the weights"
            )
        true = rows.gather(-1, labels[:, None])[:, 0]
        other, rival = rows.scatter_(-1, labels[:, None], -torch.inf).max(-1)
        gap = true - other
        sign = -1.0 if self.keeps else 1.0
        losses = (self.margin + sign * gap).clamp(min=0.0)
        pulls = (losses > 0) & ((gap > -self.margin) if self.keeps else True)
        samples = batch.samples[where.nonzero()[:, 0]]
        self.gaps.add(samples, gap, losses)
        at = [index[pulls] for index in where.nonzero(as_tuple=True)]
        gradient = torch.zeros_like(logits)
        gradient[(*at, labels[pulls])] = sign
        gradient[(*at, rival[pulls])] = -sign
        return logits, gradient

    def for_check(self) -> "FixedLoss":
        """Return a loss for the self-check, whose gradient does not depend on the logits."""
        return FixedLoss()

    def require_valid(self) -> None:
        """Everything is checked at once."""


@dataclass(frozen=True)
class FixedLoss:
    """The difference of the true logit and the one after it, which no rounding can change."""

    custom: LossFunction | None = field(default=None, init=False)

    def differentiate(
        self, output: object, batch: Batch, *, start: int = 0, stop: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the logits and their gradient, as :meth:`MarginLoss.differentiate` does."""
        logits, where, labels = _labelled(output, batch, start, stop)
        at = where.nonzero(as_tuple=True)
        gradient = torch.zeros_like(logits)
        gradient[(*at, labels)] = 1.0
        gradient[(*at, (labels + 1) % logits.shape[-1])] = -1.0
        return logits, gradient

    def for_check(self) -> "FixedLoss":
        """Return itself."""
        return self

    def require_valid(self) -> None:
        """Everything is checked at once."""


def _labelled(
    output: object, batch: Batch, start: int, stop: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the logits, where they have a loss term, and the labels (terms,) of those."""
    logits = logits_of(output)
    terms = None if batch.terms is None else batch.terms[:, start:stop]
    leading = tuple(batch.samples.shape if terms is None else terms.shape)
    if tuple(logits.shape[:-1]) != leading or logits.shape[-1] < 2:
        sizes = ", ".join(map(str, leading))
        raise ValueError(
            f"model: expected logits of shape ({sizes}, two classes or more), "
            f"got {tuple(logits.shape)} in batch {batch.index}"
        )
    if batch.labels is None:
        raise ValueError(f"passages: expected labels to forget, got none in batch {batch.index}")
    where = torch.ones(leading, dtype=torch.bool, device=logits.device) if terms is None else terms
    labels = (batch.labels if terms is None else batch.labels[:, start:stop])[where]
    if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < logits.shape[-1]:
        raise ValueError(
            f"passages: expected labels from 0 to {logits.shape[-1] - 1}, "
            f"got {int(labels.min())} to {int(labels.max())} in batch {batch.index}"
        )
    return logits, where, labels
