"""Calling a model so that the logits of all positions never exist together."""

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from curvedit.batches import Batch


def default_logits_bytes(device: torch.device) -> int:
    """Bound on logits and what is made of them.

    On a CPU, what malloc hands out again without returning it to the system: fresh pages cost more
    than more pieces do. On a GPU a piece reads the whole head, so pieces are larger.
    """
    return 3 << 25 if device.type == "cpu" else 1 << 28


def call(model: nn.Module, inputs: dict[str, Any] | tuple[Any, ...], **options: Any) -> Any:
    """Call the model with a batch's inputs and those options that its ``forward`` names."""
    if isinstance(inputs, tuple):
        return model(*inputs)
    known = inspect.signature(model.forward).parameters
    return model(**inputs, **{key: value for key, value in {"use_cache": False, **options}.items() if key in known})


def pieces(
    model: nn.Module, batch: Batch, length: int, logits_bytes: int
) -> Iterator[tuple[int, int, int, int | None]]:
    """Parts of a batch whose logits fit the bound: ``(row, row after, position, position after or None)``.

    Whole rows where one fits; otherwise positions of one row, for models that take ``logits_to_keep``.
    """
    size = batch.samples.shape[0]
    if batch.counts is None:
        yield 0, size, 0, None
        return
    per_position = 12 * _vocabulary(model)  # logits, their gradient, and one copy in another dtype
    positions = max(1, logits_bytes // per_position)
    if positions >= length or "logits_to_keep" not in inspect.signature(model.forward).parameters:
        rows = max(1, positions // length)
        for start in range(0, size, rows):
            yield start, min(start + rows, size), 0, None
        return
    for row in range(size):
        for left in range(0, length, positions):
            yield row, row + 1, left, min(left + positions, length)


def _vocabulary(model: nn.Module) -> int:
    """Number of classes per position; a guess on the large side where the model does not say."""
    config = getattr(model, "config", None)
    text = config.get_text_config() if config is not None and hasattr(config, "get_text_config") else config
    return int(getattr(text, "vocab_size", 0) or 1 << 17)
