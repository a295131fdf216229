"""Accuracy of a classifier on a labelled split."""

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from curvedit.data import Batch, read_batch
from curvedit.models import call, device_of, logits_of


def measure_split(
    model: nn.Module, batches: Iterable[Any], *, name: str
) -> tuple[npt.NDArray[np.bool_], str]:
    """Which samples are classified as labelled, and a hash of the samples in any order.

    Args:
        model: A classifier in evaluation mode; logits (B, classes), as ``.logits`` or a tensor.
        batches: Mappings of inputs with ``labels`` (B,), or pairs ``(inputs, labels)``.
        name: The split's name, for messages.

    Raises:
        ValueError: no batch, no labels, or labels that do not fit the logits.
    """
    device = device_of(model)
    right: list[Tensor] = []
    total, seen = 0, 0
    for index, raw in enumerate(batches):
        where = f"splits[{name!r}]: batch {index}"
        batch = read_batch(raw, index, seen, device, "classification")
        seen += batch.samples.shape[0]
        logits = logits_of(call(model, batch.inputs))
        labels = _labels(batch, logits, where)
        if not logits.isfinite().all():
            raise ValueError(f"{where}: the model's logits are not finite; check its weights")
        right.append((logits.argmax(-1) == labels).cpu())
        total += _hash(batch, labels)
    if not right:
        raise ValueError(f"splits[{name!r}]: expected at least one batch, got none")
    return torch.cat(right).numpy(), f"{total % (1 << 256):064x}"


def _labels(batch: Batch, logits: Tensor, where: str) -> Tensor:
    size = batch.samples.shape[0]
    if logits.ndim != 2 or logits.shape[0] != size:
        raise ValueError(
            f"{where}: expected logits ({size}, classes) from the model, got {tuple(logits.shape)}"
        )
    labels = batch.labels
    if labels is None:
        raise ValueError(f"{where}: expected labels, one class per sample, got none")
    if labels.shape != (size,) or labels.is_floating_point():
        raise ValueError(
            f"{where}: expected integer labels ({size},), got {labels.dtype} {tuple(labels.shape)}"
        )
    if size and (int(labels.min()) < 0 or int(labels.max()) >= logits.shape[1]):
        raise ValueError(
            f"{where}: expected labels in 0 … {logits.shape[1] - 1}, the model's classes, got "
            f"{int(labels.min())} … {int(labels.max())}"
        )
    return labels


def _hash(batch: Batch, labels: Tensor) -> int:
    """Sum of the samples' hashes: the same whatever their order and batching."""
    values = batch.inputs.values() if isinstance(batch.inputs, dict) else batch.inputs
    columns = [
        value.cpu()
        for value in values
        if isinstance(value, Tensor) and value.shape[:1] == labels.shape
    ]
    total = 0
    for number, label in enumerate(labels.tolist()):
        digest = hashlib.sha256(str(label).encode())
        for column in columns:
            digest.update(
                column[number].contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            )
        total += int.from_bytes(digest.digest(), "big")
    return total
