"""What one batch means: model inputs, contributing positions, and the labels of the data.

Position ``t`` of a sequence contributes if it is not padding and the loss has a term at ``t``: the
next token exists, is not padding, and its label is not -100. A classifier has one loss term per
sample; there, every position that is not padding contributes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

TASKS = ("language", "classification", "custom")


@dataclass(frozen=True)
class Batch:
    """One batch, split into its parts."""

    index: int  # its position in the data, for messages
    task: str  # one of TASKS
    inputs: dict[str, Any] | tuple[Any, ...]  # what the model is called with
    samples: Tensor  # (B,) int64: the sample numbers that key the label draws
    labels: Tensor | None  # (B, T) next-token labels, (B,) classes, or any target; None if absent
    contributing: Tensor | None  # (B, T) bool: has a loss term; None for one term per sample
    mask: Tensor | None  # (B, T) bool: is not padding; None if there is no padding

    @property
    def positions(self) -> int:
        """Number of loss terms."""
        return int(self.samples.shape[0] if self.contributing is None else self.contributing.sum())

    def rows(self, start: int, stop: int) -> "Batch":
        """Only the samples ``start … stop - 1``."""
        size = self.samples.shape[0]

        def cut(value: Any) -> Any:
            is_batched = isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == size
            return value[start:stop] if is_batched else value

        inputs = (
            {key: cut(value) for key, value in self.inputs.items()}
            if isinstance(self.inputs, dict)
            else tuple(cut(value) for value in self.inputs)
        )
        return replace(
            self,
            inputs=inputs,
            samples=cut(self.samples),
            labels=cut(self.labels),
            contributing=cut(self.contributing),
            mask=cut(self.mask),
        )


def read_batch(
    raw: Any, index: int, first_sample: int, device: torch.device, task: str | None
) -> Batch:
    """Split a batch as the user gave it into its parts, and check them.

    Args:
        raw: A tensor of token ids ``(B, T)``; a mapping of model inputs, optionally with
            ``labels``, ``attention_mask`` and ``sample_index``; or a pair ``(inputs, labels)``.
        index: The batch's position in the data.
        first_sample: Number of the batch's first sample, unless it has its own ``sample_index``.
        device: The model's device.
        task: One of ``TASKS``, or None to infer it from the batch.

    Returns:
        The batch on ``device``.

    Raises:
        TypeError: the batch is of another kind.
        ValueError: it has no contributing position, or its parts do not fit each other.
    """
    if isinstance(raw, Tensor):
        raw = {"input_ids": raw}
    if isinstance(raw, Mapping):
        return _read_mapping(dict(raw), index, first_sample, device, task)
    if (
        isinstance(raw, Sequence)
        and len(raw) == 2
        and all(isinstance(part, Tensor) for part in raw)
    ):
        inputs, labels = (part.to(device) for part in raw)
        if task is None:
            task = "custom" if labels.is_floating_point() or labels.ndim != 1 else "classification"
        samples = torch.arange(first_sample, first_sample + inputs.shape[0], device=device)
        return Batch(index, task, (inputs,), samples, labels, None, None)
    raise TypeError(
        f"batches: expected token ids, a mapping of model inputs or a pair (inputs, labels), "
        f"got {type(raw).__name__} as batch {index}"
    )


def _read_mapping(
    raw: dict[str, Any], index: int, first_sample: int, device: torch.device, task: str | None
) -> Batch:
    raw = {
        key: value.to(device) if isinstance(value, Tensor) else value for key, value in raw.items()
    }
    labels = raw.pop("labels", None)
    samples = raw.pop("sample_index", None)
    ids = raw.get("input_ids")
    mask = raw.get("attention_mask")
    if mask is not None:
        mask = mask.bool()
    leading = (
        ids
        if ids is not None
        else next((v for v in raw.values() if isinstance(v, Tensor) and v.ndim), None)
    )
    if leading is None:
        raise ValueError(
            "batches: expected at least one tensor of model inputs, "
            f"got {list(raw)} as batch {index}"
        )
    if samples is None:
        samples = torch.arange(first_sample, first_sample + leading.shape[0], device=device)
    if task is None:
        per_sample = labels is not None and labels.ndim == 1
        task = "classification" if ids is None or per_sample else "language"
    if task != "language":
        return Batch(index, task, raw, samples, labels, None, mask)
    if ids is None:
        raise ValueError(
            f"batches: the language task expects input_ids, got {list(raw)} as batch {index}"
        )
    labels = ids if labels is None else labels
    if labels.shape != ids.shape:
        raise ValueError(
            f"batches: expected labels of shape {tuple(ids.shape)}, as input_ids, got "
            f"{tuple(labels.shape)} as batch {index}"
        )
    here = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
    contributing = torch.zeros_like(here)
    contributing[:, :-1] = here[:, :-1] & here[:, 1:] & (labels[:, 1:] != -100)
    if not contributing.any():
        raise ValueError(
            f"batches: batch {index} of shape {tuple(ids.shape)} has no position with a next "
            "token to predict (all padding, all labels -100, or sequences of length 1); leave it "
            "out"
        )
    following = labels.roll(-1, dims=1)  # the last column wraps around and never contributes
    return Batch(index, task, raw, samples, following, contributing, mask)
