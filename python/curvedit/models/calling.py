"""Calling a model: the only room that does, for a fit and for a measurement alike.

A model is called in evaluation mode, without a key-value cache unless decoding asks for one, and with those
options that its ``forward`` names. Logits of all positions need not exist together: :func:`pieces` cuts a batch.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from curvedit.data import Batch

_UNKNOWN_VOCABULARY = 1 << 17  # a guess on the large side where the model does not say


def call(model: nn.Module, inputs: dict[str, Any] | tuple[Any, ...], **options: Any) -> Any:
    """Call the model with a batch's inputs and those options that its ``forward`` names; no cache by default."""
    if isinstance(inputs, tuple):
        return model(*inputs)
    known = inspect.signature(model.forward).parameters
    return model(
        **inputs,
        **{key: value for key, value in {"use_cache": False, **options}.items() if key in known},
    )


def accepts(model: nn.Module, *names: str) -> bool:
    """Whether the model's ``forward`` names all these arguments."""
    return set(names) <= set(inspect.signature(model.forward).parameters)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no cache inside; modes and configuration are restored after.

    A ``forward`` that passes its options on without naming them takes ``use_cache`` from its configuration
    alone, so that is switched off too.
    """
    training = {module: module.training for module in model.modules()}
    found = {
        id(config): config
        for module in model.modules()
        if (config := getattr(module, "config", None))
    }
    caching = [config for config in found.values() if getattr(config, "use_cache", None) is True]
    model.eval()
    for config in caching:
        config.use_cache = False
    try:
        yield
    finally:
        for config in caching:
            config.use_cache = True
        for module, mode in training.items():
            module.training = mode


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """As :func:`evaluating`, and no parameter takes a gradient."""
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with evaluating(model):
        for parameter in wanted:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in wanted:
                parameter.requires_grad_(True)


@contextmanager
def measuring(model: nn.Module) -> Iterator[None]:
    """As :func:`evaluating`, without gradients.

    Not inference mode: buffers that a model computes on first use would stay inference tensors
    and break a later fit.
    """
    with evaluating(model), torch.no_grad():
        yield


def device_of(model: nn.Module) -> torch.device:
    """Where the model's first parameter or buffer is; the CPU for a model without any."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def dtype_of(model: nn.Module) -> str:
    """The dtype of the model's first parameter, "bfloat16"; "no parameters" for a model without any."""
    for parameter in model.parameters():
        return str(parameter.dtype).removeprefix("torch.")
    return "no parameters"


def identity_of(model: nn.Module) -> dict[str, Any]:
    """Class, name or path, and number of parameters, as provenance and reports record them."""
    return {
        "class": type(model).__name__,
        "name_or_path": getattr(getattr(model, "config", None), "_name_or_path", ""),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }


def vocabulary_of(model: nn.Module) -> int | None:
    """Number of classes per position, where the configuration says."""
    size = getattr(_text_config(model), "vocab_size", None)
    return size if isinstance(size, int) and size > 0 else None


def require_fits(name: str, model: nn.Module, longest: int, largest: int) -> None:
    """Refuse token sequences that the model has no positions or no embeddings for.

    Raises:
        ValueError: a sequence is longer than the model's context, or an id is out of its vocabulary.
    """
    context = getattr(_text_config(model), "max_position_embeddings", None)
    if isinstance(context, int) and longest > context:
        raise ValueError(
            f"{name}: expected at most {context} tokens, the model's context, got {longest}"
        )
    vocabulary = vocabulary_of(model)
    if vocabulary is not None and largest >= vocabulary:
        raise ValueError(
            f"{name}: expected token ids below {vocabulary}, the model's vocabulary, got {largest}; "
            "was another tokenizer used?"
        )


def logits_of(output: Any) -> Tensor:
    """The logits in a model's output: ``output.logits``, ``output["logits"]``, a tuple's head, or itself."""
    if isinstance(output, Tensor):
        return output
    logits = getattr(output, "logits", None)
    if logits is None and isinstance(output, Sequence) and output and isinstance(output[0], Tensor):
        logits = output[0]
    if not isinstance(logits, Tensor):
        raise TypeError(f"model: expected an output with logits, got {type(output).__name__}")
    return logits


def language_logits(model: nn.Module, output: Any, rows: int) -> Tensor:
    """The logits ``(rows, positions, vocabulary)`` of an output, checked."""
    logits = logits_of(output)
    if logits.ndim != 3 or logits.shape[0] != rows:
        raise ValueError(
            f"model: expected logits ({rows}, positions, vocabulary) from {type(model).__name__}, "
            f"got {tuple(logits.shape)}"
        )
    return logits


def default_logits_bytes(device: torch.device) -> int:
    """Bound on logits and what is made of them.

    On a CPU, what malloc hands out again without returning it to the system: fresh pages cost more
    than more pieces do. On a GPU a piece reads the whole head, so pieces are larger.
    """
    return 3 << 25 if device.type == "cpu" else 1 << 28


def pieces(
    model: nn.Module, batch: Batch, length: int, logits_bytes: int
) -> Iterator[tuple[int, int, int, int | None]]:
    """Parts of a batch whose logits fit the bound: ``(row, row after, position, position after or None)``.

    Whole rows where one fits; otherwise positions of one row, for models that take ``logits_to_keep``.
    """
    size = batch.samples.shape[0]
    if batch.contributing is None:
        yield 0, size, 0, None
        return
    per_position = 12 * (
        vocabulary_of(model) or _UNKNOWN_VOCABULARY
    )  # logits, gradient, a copy in another dtype
    positions = max(1, logits_bytes // per_position)
    if positions >= length or not accepts(model, "logits_to_keep"):
        rows = max(1, positions // length)
        for start in range(0, size, rows):
            yield start, min(start + rows, size), 0, None
        return
    for row in range(size):
        for left in range(0, length, positions):
            yield row, row + 1, left, min(left + positions, length)


def _text_config(model: nn.Module) -> Any:
    config = getattr(model, "config", None)
    return (
        config.get_text_config()
        if config is not None and hasattr(config, "get_text_config")
        else config
    )
