"""What one batch means: model inputs, loss terms, contributing positions, labels of the data.

The loss of a language model has a term at position ``t`` if the next token exists, neither of the
two is padding, and the next token's label is not -100. A position contributes to the factors if it
is not padding and a term lies there or later in its sequence, which its output reaches through
attention. A classifier has one term per sample, and every position that is not padding contributes.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

TASKS = ("language", "classification", "custom")
_PER_POSITION = {"input_ids", "attention_mask", "position_ids", "token_type_ids"}


@dataclass(frozen=True)
class Batch:
    """One batch, split into its parts."""

    index: int  # its position in the data, for messages
    task: str  # one of TASKS
    inputs: dict[str, Any] | tuple[Any, ...]  # what the model is called with
    samples: Tensor  # (B,) int64: the sample numbers that key the label draws
    labels: Tensor | None  # (B, T) next-token labels, (B,) classes, or any target; None if absent
    terms: Tensor | None  # (B, T) bool: the loss has a term here; None for one term per sample
    mask: Tensor | None  # (B, T) bool: is not padding; None if there is no padding

    @cached_property
    def contributing(self) -> Tensor | None:
        """Which positions count in the factors, (B, T) bool; None if all do."""
        if self.terms is None:
            return self.mask
        reaches = self.terms.flip(1).cumsum(1).flip(1) > 0  # a term lies here or later
        return reaches if self.mask is None else reaches & self.mask

    @cached_property
    def contributing_on_host(self) -> Tensor | None:
        """The same in host memory, to count without waiting for a GPU again."""
        return None if self.contributing is None else self.contributing.cpu()

    @property
    def positions(self) -> int:
        """Number of positions that count in the factors; of samples, for one term per sample."""
        if self.terms is None or self.contributing_on_host is None:
            return self.samples.shape[0]
        return int(self.contributing_on_host.sum())

    @property
    def loss_terms(self) -> int:
        """Number of loss terms."""
        return int(self.samples.shape[0] if self.terms is None else self.terms.sum())

    @property
    def divisible(self) -> bool:
        """Whether every tensor among the inputs has one row per sample."""
        size = self.samples.shape[0]
        return all(
            value.shape[:1] == (size,) for value in _values(self) if isinstance(value, Tensor)
        )

    def rows(self, start: int, stop: int) -> "Batch":
        """Only the samples ``start … stop - 1``."""
        return self.take(slice(start, stop))

    def take(self, which: slice | list[int]) -> "Batch":
        """Only some of the samples."""
        size = self.samples.shape[0]

        def cut(value: Any) -> Any:
            is_batched = isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == size
            return value[which] if is_batched else value

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
            terms=cut(self.terms),
            mask=cut(self.mask),
        )

    def copied(self) -> "Batch":
        """The same batch with copies of its inputs."""
        copy = [value.clone() if isinstance(value, Tensor) else value for value in _values(self)]
        inputs = (
            dict(zip(self.inputs, copy, strict=True))
            if isinstance(self.inputs, dict)
            else tuple(copy)
        )
        return replace(self, inputs=inputs)

    def span(self, start: int, stop: int) -> "Batch | None":
        """Only the positions ``start … stop - 1`` of a language batch.

        None if there are inputs of which it is not known how they belong to positions.
        """
        if (
            self.terms is None
            or self.labels is None
            or not isinstance(self.inputs, dict)
            or not set(self.inputs) <= _PER_POSITION
            or any(value.shape != self.terms.shape for value in self.inputs.values())
        ):
            return None
        return replace(
            self,
            inputs={key: value[:, start:stop] for key, value in self.inputs.items()},
            labels=self.labels[:, start:stop],
            terms=self.terms[:, start:stop],
            mask=None if self.mask is None else self.mask[:, start:stop],
        )


def _values(batch: Batch) -> Iterable[Any]:
    return batch.inputs.values() if isinstance(batch.inputs, dict) else batch.inputs


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
        ValueError: the loss has no term in it, or its parts do not fit each other.
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
        if not inputs.ndim:
            raise ValueError(
                f"batches: expected a row for each sample, got a single number as batch {index}"
            )
        samples = torch.arange(first_sample, first_sample + inputs.shape[0], device=device)
        if task == "classification":
            labels = _classes(labels, inputs.shape[0], index)
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
    _require_tensors(raw, index)
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
    _require_integers("sample_index", samples, tuple(leading.shape[:1]), index)
    if task is None:
        per_sample = labels is not None and labels.ndim == 1
        task = "classification" if ids is None or per_sample else "language"
    if task == "classification" and labels is not None:
        labels = _classes(labels, leading.shape[0], index)
    if task != "language":
        return Batch(index, task, raw, samples, labels, None, mask)
    if ids is None:
        raise ValueError(
            f"batches: the language task expects input_ids, got {list(raw)} as batch {index}"
        )
    if ids.ndim != 2:
        raise ValueError(
            f"batches: expected input_ids of shape (B, T), got {tuple(ids.shape)} as batch {index}"
        )
    shape = tuple(ids.shape)
    labels = ids if labels is None else labels
    for name, value in (("input_ids", ids), ("labels", labels)):
        _require_integers(name, value, shape, index)
    labels = labels.long()
    if mask is not None and tuple(mask.shape) != shape:
        raise ValueError(
            f"batches: expected an attention_mask of shape {shape}, as input_ids, 0 at padding, "
            f"got {tuple(mask.shape)} as batch {index}"
        )
    real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
    terms = torch.zeros_like(real)
    terms[:, :-1] = real[:, :-1] & real[:, 1:] & (labels[:, 1:] != -100)
    if not terms.any():
        raise ValueError(
            f"batches: batch {index} of shape {tuple(ids.shape)} has no position with a next "
            "token to predict (all padding, all labels -100, or sequences of length 1); leave it "
            "out"
        )
    following = labels.roll(-1, dims=1)  # the last column wraps around and has no term
    return Batch(index, task, raw, samples, following, terms, mask)


def _require_tensors(raw: Mapping[str, Any], index: int) -> None:
    for name in ("input_ids", "labels", "attention_mask", "sample_index"):
        if not isinstance(raw.get(name), Tensor | None):
            raise TypeError(
                f"batches: expected {name} as a tensor, got {type(raw[name]).__name__} as batch "
                f"{index}; collate the samples into tensors, as return_tensors='pt' does"
            )


def _require_integers(name: str, value: Tensor, shape: tuple[int, ...], index: int) -> None:
    if tuple(value.shape) != shape or value.is_floating_point() or value.is_complex():
        raise ValueError(
            f"batches: expected {name} of shape {shape}, integers, got {value.dtype} of shape "
            f"{tuple(value.shape)} as batch {index}"
        )


def _classes(labels: Tensor, size: int, index: int) -> Tensor:
    """Return the labels as int64; other dtypes would index as a mask."""
    _require_integers("labels", labels, (size,), index)
    return labels.long()
