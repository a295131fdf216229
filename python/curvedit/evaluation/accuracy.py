"""Accuracy of a classifier on labelled splits."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from curvedit.data import Batch, read_batch, require_rereadable
from curvedit.evaluation.measure import Measure, Run
from curvedit.models import call, device_of, logits_of
from curvedit.report import Meaning, Metric


@dataclass(frozen=True, eq=False)
class Accuracy(Measure):
    """``accuracy: NAME`` for each split: the share of samples classified as labelled.

    Args:
        splits: Name to labelled batches, which are mappings with ``labels`` or pairs
            ``(inputs, labels)``; a re-iterable, such as a list.

    Raises:
        ValueError: there are no splits, or one is empty.
        TypeError: a split can be read only once.
    """

    splits: Mapping[str, Iterable[Any]] = field(repr=False)

    meanings: ClassVar[Mapping[str, Meaning]] = {
        "accuracy: {}": Meaning(
            "Accuracy, {}",
            "share",
            "",
            "samples of the split {!r} classified as labelled",
            units="split {}",
        )
    }

    def __post_init__(self) -> None:
        if not isinstance(self.splits, Mapping):
            raise TypeError(
                "splits: expected a mapping from name to labelled batches, "
                f"got {type(self.splits).__name__}"
            )
        if not self.splits:
            raise ValueError("splits: expected at least one split, got none")
        for name, batches in self.splits.items():
            require_rereadable(f"splits[{name!r}]", batches)

    @property
    def keys(self) -> tuple[str, ...]:
        """One key per split."""
        return tuple(f"accuracy: {name}" for name in self.splits)

    def measure(self, model: nn.Module, run: Run) -> dict[str, Metric]:
        """Classify the samples of every split."""
        found = {}
        for name, batches in self.splits.items():
            right, sha256 = measure_split(model, batches, name=name)
            run.identify(f"split {name}", sha256, {"samples": len(right)})
            found[f"accuracy: {name}"] = run.interval(right)
        return found


def measure_split(
    model: nn.Module, batches: Iterable[Any], *, name: str
) -> tuple[npt.NDArray[np.bool_], str]:
    """Which samples are classified as labelled, and a hash; neither depends on the samples' order.

    Args:
        model: A classifier in evaluation mode that returns logits (B, classes), as a tensor or
            as ``.logits``.
        batches: Mappings of inputs with ``labels`` (B,), or pairs ``(inputs, labels)``.
        name: The split's name, for messages.

    Raises:
        ValueError: no batch, no labels, or labels that do not fit the logits.
    """
    device = device_of(model)
    right: list[Tensor] = []
    digests: list[int] = []
    seen = 0
    for index, raw in enumerate(batches):
        where = f"splits[{name!r}]: batch {index}"
        batch = read_batch(raw, index, seen, device, "classification")
        seen += batch.samples.shape[0]
        logits = logits_of(call(model, batch.inputs))
        labels = _labels(batch, logits, where)
        if not logits.isfinite().all():
            raise ValueError(f"{where}: the model's logits are not finite; check its weights")
        right.append((logits.argmax(-1) == labels).cpu())
        digests += _digests(batch, labels)
    if not right:
        raise ValueError(f"splits[{name!r}]: expected at least one batch, got none")
    # in the order of their hashes, so that two models' samples pair up however they were shuffled
    order = sorted(range(len(digests)), key=lambda number: digests[number])
    return torch.cat(right).numpy()[order], f"{sum(digests) % (1 << 256):064x}"


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


def _digests(batch: Batch, labels: Tensor) -> list[int]:
    """The samples' hashes, whose sum depends neither on their order nor on the batching."""
    values = batch.inputs.values() if isinstance(batch.inputs, dict) else batch.inputs
    columns = [
        value.cpu()
        for value in values
        if isinstance(value, Tensor) and value.shape[:1] == labels.shape
    ]
    found = []
    for number, label in enumerate(labels.tolist()):
        digest = hashlib.sha256(str(label).encode())
        for column in columns:
            digest.update(
                column[number].contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            )
        found.append(int.from_bytes(digest.digest(), "big"))
    return found
