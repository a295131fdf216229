"""Accuracy of a classifier on named splits."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import nn

from curvedit.batches import logits_of, read_batch
from curvedit.calls import call
from curvedit.evaluation import bootstrap
from curvedit.report import Estimate


@torch.inference_mode()
def accuracy(model: nn.Module, name: str, batches: Iterable[Any], *, resamples: int) -> Estimate:
    """Share of samples whose likeliest class is the label; interval over samples.

    Raises:
        ValueError: the split is empty, or a batch has no labels.
    """
    right: list[torch.Tensor] = []
    device = next(model.parameters()).device
    for index, raw in enumerate(batches):
        batch = read_batch(raw, index, 0, device, "classification")
        if batch.labels is None:
            raise ValueError(f"splits[{name!r}]: expected labels in batch {index}, got none")
        right.append((logits_of(call(model, batch.inputs)).argmax(-1) == batch.labels).cpu())
    if not right:
        raise ValueError(f"splits[{name!r}]: expected at least one batch, got none")
    return bootstrap.mean(torch.cat(right).numpy().astype(np.float64), resamples=resamples)
