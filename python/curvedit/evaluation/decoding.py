"""Greedy continuation of prefixes.

Exactly as many tokens are decoded as the suffix has. An end-of-sequence token is a token like any
other and does not stop decoding, so a continuation always has the suffix's length. The model's own
``generation_config`` (penalties, lengths, forced tokens) has no effect.

If the model takes a mask, positions and a cache, prefixes of unequal length share a batch: they are
padded on the left, masked, and numbered from their first token. Otherwise only prefixes of equal
length share one.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from curvedit.data import Ids, Passages, left_padded, positions_of
from curvedit.meter import progress as progress_of
from curvedit.models import (
    accepts,
    call,
    counts_from_zero,
    device_of,
    language_logits,
    measuring,
    require_fits,
)

# What transformers calls the argument and the output, by version and kind of model.
_CACHES = ("cache", "past_key_values", "cache_params")
_ROWS = 32  # least number of passages decoded together on a CPU


def greedy_continuations(
    model: nn.Module,
    passages: Passages,
    *,
    batch_size: int = 16,
    pad_token_id: int = 0,
    progress: bool = False,
) -> list[Ids]:
    """The model's greedy continuation of each prefix, with as many tokens as its suffix has.

    Args:
        model: A causal language model, called as ``model(input_ids=...)``, and with mask,
            positions and cache if its ``forward`` names them.
        passages: Prefixes to continue; of the suffixes only the lengths matter.
        batch_size: Passages per batch; the result does not depend on it, up to rounding. On a CPU
            up to 32 are decoded together even so, as a step reads all weights for each batch.
        pad_token_id: The id to pad with; any id will do, since padding is masked.
        progress: Show how many tokens are decoded.

    Raises:
        ValueError: a passage does not fit the model, or its logits are not finite.
    """
    require_passages_fit(model, passages)
    rows = list(passages.rows())
    found: list[Ids] = [()] * len(rows)
    lengths = [len(prefix) for prefix, _ in rows]
    size = max(batch_size, _ROWS) if device_of(model).type == "cpu" else batch_size
    total = sum(len(suffix) for _, suffix in rows)
    with (
        measuring(model),
        progress_of(total, unit="tok", what="decode", shown=progress) as shown,
    ):
        cache = _cache_of(model)
        padded = _pads(model, cache)
        for numbers in groups_of(lengths, size, padded=padded):
            wanted = [len(rows[number][1]) for number in numbers]
            tokens: list[Tensor] = []
            prefixes = [rows[number][0] for number in numbers]
            for step in _decoded(model, prefixes, pad_token_id, cache, padded=padded):
                tokens.append(step)
                shown.update(sum(len(tokens) <= length for length in wanted))
                if len(tokens) == max(wanted):
                    break
            for number, row in zip(numbers, torch.cat(tokens, dim=1).tolist(), strict=True):
                found[number] = tuple(row[: len(rows[number][1])])
    return found


def require_passages_fit(model: nn.Module, passages: Passages) -> None:
    """Refuse passages that are too long for a model, or have ids outside its vocabulary.

    Raises:
        ValueError: names the length or id.
    """
    rows = [prefix + suffix for prefix, suffix in passages.rows()]
    require_fits("passages", model, max(map(len, rows)), max(map(max, rows)))


def _decoded(
    model: nn.Module, prefixes: list[Ids], pad: int, taken: str | None, *, padded: bool
) -> Iterator[Tensor]:
    """The next tokens (B, 1) of all prefixes, without end.

    With a cache only the last tokens are read; without one, the whole sequences again.
    """
    inputs = model_inputs(model, prefixes, pad, padded=padded)
    cache = None
    while True:
        new: dict[str, Any] = dict(inputs)
        if taken is not None and cache is not None:
            new |= {key: inputs[key][:, -1:] for key in ("input_ids", "position_ids") if key in new}
            new |= {taken: cache}
        output = call(model, new, use_cache=taken is not None, logits_to_keep=1)
        if taken is not None:
            cache = next(
                (found for name in _CACHES if (found := getattr(output, name, None))), None
            )
        tokens = best_tokens(language_logits(model, output, len(prefixes))[:, -1:])
        yield tokens
        inputs["input_ids"] = torch.cat([inputs["input_ids"], tokens], dim=1)
        if "attention_mask" in inputs:
            mask = inputs["attention_mask"]
            inputs["attention_mask"] = torch.cat([mask, mask.new_ones(len(prefixes), 1)], dim=1)
            inputs["position_ids"] = positions_of(inputs["attention_mask"])


def shares_batches(model: nn.Module) -> bool:
    """Whether sequences of unequal length may share a batch of this model."""
    return _pads(model, _cache_of(model))


def _pads(model: nn.Module, cache: str | None) -> bool:
    """Whether rows of unequal length may share a batch: padding is masked, and positions count."""
    return (
        cache is not None
        and accepts(model, "attention_mask", "position_ids")
        and counts_from_zero(model)
    )


def _cache_of(model: nn.Module) -> str | None:
    """The argument by which the model's ``forward`` takes the cache that it returns, if it does."""
    taken = next((name for name in _CACHES if accepts(model, name)), None)
    if taken is None:
        return None
    one = torch.zeros(1, 1, dtype=torch.int64, device=device_of(model))
    returned = _returned(call(model, {"input_ids": one}, use_cache=True))
    return None if returned is None else taken


def _returned(output: Any) -> Any:
    """The cache in a model's output."""
    found = (getattr(output, name, None) for name in _CACHES)
    return next((cache for cache in found if cache is not None), None)


def model_inputs(model: nn.Module, rows: list[Ids], pad: int, *, padded: bool) -> dict[str, Tensor]:
    """Token ids (B, T), with mask and positions where rows are padded."""
    inputs = left_padded(rows, pad, device_of(model))
    return inputs if padded else {"input_ids": inputs["input_ids"]}


def best_tokens(logits: Tensor) -> Tensor:
    """The most likely tokens; of equally likely ones the lowest id."""
    top, tokens = logits.max(dim=-1)
    if not top.isfinite().all():
        raise ValueError("model: its logits are not finite on the passages; check its weights")
    return tokens


def groups_of(lengths: Sequence[int], size: int, *, padded: bool) -> Iterator[list[int]]:
    """Row numbers in batches, short rows first; equal lengths only, unless they can be padded."""
    order = sorted(range(len(lengths)), key=lambda number: lengths[number])
    runs = (
        [order]
        if padded
        else [list(run) for _, run in itertools.groupby(order, key=lambda number: lengths[number])]
    )
    for run in runs:
        for start in range(0, len(run), size):
            yield run[start : start + size]
