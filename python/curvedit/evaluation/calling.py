"""Calling a model that is being measured: its mode, its device, its limits and its options."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from curvedit.batches import logits_of


@contextmanager
def measuring(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients inside; each module's own mode is restored after.

    Not inference mode: buffers that a model computes on first use would stay inference tensors
    and break a later fit.
    """
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in training.items():
            module.training = mode


def device_of(model: nn.Module) -> torch.device:
    """Where the model's first parameter or buffer is; the CPU for a model without any."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def accepts(model: nn.Module, *names: str) -> bool:
    """Whether the model's ``forward`` names all these arguments."""
    return set(names) <= set(inspect.signature(model.forward).parameters)


def call(model: nn.Module, inputs: dict[str, Any] | tuple[Any, ...], **options: Any) -> Any:
    """Call the model with its inputs and those options that its ``forward`` names."""
    if isinstance(inputs, tuple):
        return model(*inputs)
    return model(**inputs, **{key: value for key, value in options.items() if accepts(model, key)})


def language_logits(model: nn.Module, output: Any, rows: int) -> Tensor:
    """The logits ``(rows, positions, vocabulary)`` of an output, checked."""
    logits = logits_of(output)
    if logits.ndim != 3 or logits.shape[0] != rows:
        raise ValueError(
            f"model: expected logits ({rows}, positions, vocabulary) from {type(model).__name__}, "
            f"got {tuple(logits.shape)}"
        )
    return logits


def left_padded(rows: list[tuple[int, ...]], pad: int, device: torch.device) -> dict[str, Tensor]:
    """Token ids padded on the left, with the mask and the positions that make padding invisible."""
    width = max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows], device=device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    mask = (torch.arange(width, device=device) >= width - lengths[:, None]).long()
    return {"input_ids": ids, "attention_mask": mask, "position_ids": positions_of(mask)}


def positions_of(mask: Tensor) -> Tensor:
    """Positions (B, T) that count from each row's first token; 0 on padding before it."""
    return (mask.long().cumsum(1) - 1).clamp(min=0)


def require_fits(name: str, model: nn.Module, longest: int, largest: int) -> None:
    """Refuse token sequences that the model has no positions or no embeddings for.

    Raises:
        ValueError: a sequence is longer than the model's context, or an id is out of its vocabulary.
    """
    config = getattr(model, "config", None)
    context = getattr(config, "max_position_embeddings", None)
    if isinstance(context, int) and longest > context:
        raise ValueError(f"{name}: expected at most {context} tokens, the model's context, got {longest}")
    vocabulary = getattr(config, "vocab_size", None)
    if isinstance(vocabulary, int) and largest >= vocabulary:
        raise ValueError(
            f"{name}: expected token ids below {vocabulary}, the model's vocabulary, got {largest}; "
            "was another tokenizer used?"
        )
