"""Calls a model on a batch's inputs and gives its output and logits.

A model is called in evaluation mode, without a key-value cache unless decoding asks for one, and
with only those options that its ``forward`` declares. The logits of all positions need not exist at
once: :func:`pieces` splits a batch.
"""

import hashlib
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from curvedit.data import Batch
from curvedit.meter import beat, total_memory
from curvedit.models.quantised import repacking
from curvedit.models.threads import exclusive
from curvedit.models.wrapping import unwrapped

_ROUNDING = 16  # times the epsilon of the logits' dtype, relative to the largest
_UNKNOWN_VOCABULARY = 1 << 17  # a deliberately large guess, for models that do not tell


def call(model: nn.Module, inputs: dict[str, Any] | tuple[Any, ...], **options: Any) -> Any:
    """Call the model with a batch's inputs and those options that its ``forward`` declares.

    The key-value cache is off unless ``options`` says otherwise. A ``forward`` that has another
    name for token ids takes them as its first argument.
    """
    beat()
    if isinstance(inputs, tuple):
        return model(*inputs)
    known = inspect.signature(unwrapped(model).forward).parameters
    takes_any = any(each.kind is each.VAR_KEYWORD for each in known.values())
    given = dict(inputs)
    first = () if "input_ids" in known or takes_any else (given.pop("input_ids", None),)
    return model(
        *(ids for ids in first if ids is not None),
        **given,
        **{key: value for key, value in {"use_cache": False, **options}.items() if key in known},
    )


@torch.no_grad()
def counts_from_zero(model: nn.Module) -> bool:
    """Whether a language model that is given no positions takes 0, 1, … for them.

    RoBERTa, for one, counts from the token after its padding.
    """
    padding = getattr(_text_config(model), "pad_token_id", None)
    ids = torch.full((1, 3), 1 if padding == 0 else 0, device=device_of(model))
    own = logits_of(call(model, {"input_ids": ids}))
    positions = torch.arange(3, device=ids.device)[None]
    given = logits_of(call(model, {"input_ids": ids, "position_ids": positions}))
    return bool(
        (own - given).abs().max() <= _ROUNDING * torch.finfo(own.dtype).eps * own.abs().max()
    )


def accepts(model: nn.Module, *names: str) -> bool:
    """Whether the model's ``forward`` declares all of these arguments."""
    return set(names) <= set(inspect.signature(unwrapped(model).forward).parameters)


def demands(model: nn.Module, name: str) -> bool:
    """Whether the model's ``forward`` declares this argument without a default."""
    found = inspect.signature(unwrapped(model).forward).parameters.get(name)
    return found is not None and found.default is found.empty


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no key-value cache inside; both are restored afterwards.

    No other thread may hold the model meanwhile. A ``forward`` that forwards its options without
    declaring them takes ``use_cache`` from the configuration alone, so it is switched off there.
    """
    with exclusive(model):
        training = {module: module.training for module in model.modules()}
        found = {
            id(config): config
            for module in model.modules()
            if (config := getattr(module, "config", None))
        }
        caching = [each for each in found.values() if getattr(each, "use_cache", None) is True]
        model.eval()
        for module in repacking(model):  # they have no other use for the mode
            module.training = True
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
    """Like :func:`evaluating`, without gradients of parameters, and with compiled code run eagerly.

    Compiled code does not see hooks that were attached since.
    """
    compiled = any(
        module._compiled_call_impl is not None or hasattr(module, "_orig_mod")
        for module in model.modules()
    )
    eager = torch.compiler.set_stance("force_eager") if compiled else nullcontext()
    with evaluating(model), eager:
        wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
        for parameter in wanted:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in wanted:
                parameter.requires_grad_(True)


@contextmanager
def measuring(model: nn.Module) -> Iterator[None]:
    """Like :func:`evaluating`, without gradients.

    This is not inference mode, in which buffers that a model computes on first use would become
    inference tensors and break a later fit.
    """
    with evaluating(model), torch.no_grad():
        yield


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the model's first parameter or buffer in memory; otherwise the CPU."""
    for tensor in (*model.parameters(), *model.buffers()):
        if not tensor.is_meta:
            return tensor.device
    return torch.device("cpu")


def dtype_of(model: nn.Module) -> str:
    """Return the dtype of the first parameter, such as "bfloat16", or "no parameters"."""
    for parameter in model.parameters():
        return str(parameter.dtype).removeprefix("torch.")
    return "no parameters"


def weights_fingerprint(model: nn.Module) -> str:
    """SHA-256 of the first thousand numbers of every parameter: enough to tell models apart."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {tuple(parameter.shape)} ".encode())
        if not hasattr(type(parameter.data), "__tensor_flatten__"):  # made of other tensors
            digest.update(parameter.detach().flatten()[:1000].float().cpu().numpy().tobytes())
    return digest.hexdigest()


def identity_of(model: nn.Module) -> dict[str, Any]:
    """Return class, name or path, and parameter count, as recorded in provenance and reports."""
    return {
        "class": type(unwrapped(model)).__name__,
        "name_or_path": getattr(getattr(unwrapped(model), "config", None), "_name_or_path", ""),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }


def vocabulary_of(model: nn.Module) -> int | None:
    """Return the vocabulary size, or None if the configuration does not state it."""
    size = getattr(_text_config(model), "vocab_size", None)
    return size if isinstance(size, int) and size > 0 else None


def require_fits(name: str, model: nn.Module, longest: int, largest: int, least: int = 0) -> None:
    """Refuse token sequences for which the model lacks positions or embeddings.

    ``longest`` is in tokens; ``largest`` and ``least`` are ids.

    Raises:
        ValueError: a sequence is longer than the model's context, or an id is outside its
            vocabulary.
    """
    context = getattr(_text_config(model), "max_position_embeddings", None)
    if isinstance(context, int) and longest > context:
        raise ValueError(
            f"{name}: expected at most {context} tokens, the model's context length, got {longest}"
        )
    if least < 0:
        raise ValueError(f"{name}: expected token ids of at least 0, got {least}")
    vocabulary = vocabulary_of(model)
    if vocabulary is not None and largest >= vocabulary:
        raise ValueError(
            f"{name}: expected token ids below {vocabulary}, the model's vocabulary size, "
            f"got {largest}; was another tokenizer used?"
        )


def logits_of(output: Any) -> Tensor:
    """Return the logits: ``output.logits``, the first item of a tuple, or the output itself.

    Raises:
        TypeError: the output has no logits.
    """
    if isinstance(output, Tensor):
        return output
    logits = getattr(output, "logits", None)
    if logits is None and isinstance(output, Sequence) and output and isinstance(output[0], Tensor):
        logits = output[0]
    if not isinstance(logits, Tensor):
        raise TypeError(f"model: expected an output with logits, got {type(output).__name__}")
    return logits


def language_logits(model: nn.Module, output: Any, rows: int) -> Tensor:
    """Return the logits ``(rows, positions, vocabulary)`` of a model's output.

    Raises:
        TypeError: the output has no logits.
        ValueError: they have another shape.
    """
    logits = logits_of(output)
    if logits.ndim != 3 or logits.shape[0] != rows:
        raise ValueError(
            f"model: expected logits ({rows}, positions, vocabulary) from {type(model).__name__}, "
            f"got {tuple(logits.shape)}"
        )
    return logits


def default_logits_bytes(device: torch.device) -> int:
    """Return the default bound on the memory of logits and what the loss makes of them.

    On a CPU it is a size that malloc reuses without returning it to the system, because fresh pages
    cost more than smaller pieces. On a GPU each piece reads the whole head and waits for the host a
    few times, so pieces are as large as its memory allows: with 256 MiB the head and loss of a 7B
    model with 100,352 words take 0.29 s for 8192 positions on an H200, with 4 GiB 0.04 s.
    """
    if device.type == "cpu":
        return 3 << 25
    return logits_room(total_memory(device))


def logits_room(memory: int) -> int:
    """The same for a GPU with so much memory."""
    return min(1 << 32, max(1 << 28, memory // 16))


def cached_rows(logits: Tensor) -> int:
    """Rows of logits to work on at once: on a CPU those that stay in its cache between passes."""
    most = 1 << 22 if logits.device.type == "cpu" else 1 << 25
    return max(1, most // (4 * logits.shape[-1]))


def pieces(
    model: nn.Module, batch: Batch, length: int, logits_bytes: int
) -> Iterator[tuple[int, int, int, int | None]]:
    """Split a batch into parts whose logits fit the bound.

    A part is whole rows if one row fits, otherwise some positions of one row, provided that the
    model accepts ``logits_to_keep``. Rows stay together if the inputs do not say which of them
    belongs to which row, as with images packed into one tensor.

    Args:
        model: The model to be called.
        batch: The batch to split.
        length: Positions per row.
        logits_bytes: Bound on the memory of logits and what the loss makes of them.

    Yields:
        First row, one past the last row, first position, and one past the last position or None
        for all positions.
    """
    size = batch.samples.shape[0]
    if batch.terms is None:
        yield 0, size, 0, None
        return
    # bytes: logits, their gradient, and a copy in another dtype
    per_position = 12 * (vocabulary_of(model) or _UNKNOWN_VOCABULARY)
    positions = max(1, logits_bytes // per_position)
    if not batch.divisible:
        step = max(1, positions // size) if accepts(model, "logits_to_keep") else length
        spans = [(left, min(left + step, length)) for left in range(0, length, step)]
        yield from ((0, size, *(span if len(spans) > 1 else (0, None))) for span in spans)
        return
    if positions >= length or not accepts(model, "logits_to_keep"):
        rows = max(1, positions // length)
        for start in range(0, size, rows):
            yield start, min(start + rows, size), 0, None
        return
    for row in range(size):
        for left in range(0, length, positions):
            yield row, row + 1, left, min(left + positions, length)


def _text_config(model: nn.Module) -> Any:
    config = getattr(unwrapped(model), "config", None)
    return (
        config.get_text_config()
        if config is not None and hasattr(config, "get_text_config")
        else config
    )
