"""Greedy continuation of prefixes, and its teacher-forced shortcut.

Exactly as many tokens are decoded as the suffix has. An end-of-sequence token is a token like any
other and does not stop decoding, so a continuation always has the suffix's length. The model's own
``generation_config`` (penalties, lengths, forced tokens) has no effect.

If the model takes a mask, positions and a cache, prefixes of unequal length share a batch: they are
padded on the left, masked, and numbered from their first token. Otherwise only prefixes of equal
length share one.
"""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from curvedit.evaluation.inputs import Ids
from curvedit.evaluation.padding import left_padded
from curvedit.evaluation.passages import Passages
from curvedit.models import accepts, call, device_of, language_logits, measuring, require_fits


def greedy_continuations(
    model: nn.Module, passages: Passages, *, batch_size: int = 16, pad_token_id: int = 0
) -> list[Ids]:
    """The model's greedy continuation of each prefix, with as many tokens as its suffix has.

    Args:
        model: A causal language model, called as ``model(input_ids=...)``, and with mask,
            positions and cache if its ``forward`` names them.
        passages: Prefixes to continue; of the suffixes only the lengths matter.
        batch_size: Passages per batch; the result does not depend on it, up to rounding.
        pad_token_id: The id to pad with; any id will do, since padding is masked.

    Raises:
        ValueError: a passage does not fit the model, or its logits are not finite.
    """
    rows = list(passages.rows())
    _require_fits(model, rows)
    found: list[Ids] = [()] * len(rows)
    with measuring(model):
        for numbers in _groups(
            [len(prefix) for prefix, _ in rows], batch_size, padded=_pads(model)
        ):
            prefixes = [rows[number][0] for number in numbers]
            count = max(len(rows[number][1]) for number in numbers)
            decode = (
                _decode_cached if accepts(model, "past_key_values", "use_cache") else _decode_anew
            )
            tokens = decode(model, prefixes, count, pad_token_id).tolist()
            for number, row in zip(numbers, tokens, strict=True):
                found[number] = tuple(row[: len(rows[number][1])])
    return found


def recites(
    model: nn.Module, passages: Passages, *, batch_size: int = 16, pad_token_id: int = 0
) -> npt.NDArray[np.bool_]:
    """Whether each passage is recited exactly, from one forward pass instead of one per token.

    A passage is recited if the most likely token is right at every suffix position, given the true
    tokens before it. That holds if and only if greedy decoding gives the suffix (up to rounding
    between kernels), and is fast enough for searches over many edits.

    Args:
        model: A causal language model.
        passages: Prefixes and suffixes.
        batch_size: Passages per batch.
        pad_token_id: The id to pad with; any id will do, since padding is masked.

    Returns:
        One bool per passage.
    """
    rows = list(passages.rows())
    _require_fits(model, rows)
    right = np.zeros(len(rows), dtype=bool)
    device = device_of(model)
    with measuring(model):
        for numbers in _groups(
            [len(prefix + suffix) for prefix, suffix in rows], batch_size, padded=_pads(model)
        ):
            inputs = _inputs(
                model, [rows[number][0] + rows[number][1] for number in numbers], pad_token_id
            )
            keep = max(len(rows[number][1]) for number in numbers) + 1
            output = call(model, inputs, logits_to_keep=keep)
            best = _best(language_logits(model, output, len(numbers))[:, -keep:-1])
            for row, number in enumerate(numbers):
                suffix = torch.tensor(rows[number][1], device=device)
                right[number] = torch.equal(best[row, -len(suffix) :], suffix)
    return right


def _decode_cached(model: nn.Module, prefixes: list[Ids], count: int, pad: int) -> Tensor:
    inputs = _inputs(model, prefixes, pad)
    tokens: list[Tensor] = []
    cache = None
    while True:
        output = call(model, {**inputs, "past_key_values": cache}, use_cache=True, logits_to_keep=1)
        cache = output.past_key_values
        tokens.append(_best(language_logits(model, output, len(prefixes))[:, -1:]))
        if len(tokens) == count:
            return torch.cat(tokens, dim=1)
        inputs["input_ids"] = tokens[-1]
        if "attention_mask" in inputs:
            mask = inputs["attention_mask"]
            inputs["attention_mask"] = torch.cat([mask, mask.new_ones(len(prefixes), 1)], dim=1)
        if "position_ids" in inputs:
            inputs["position_ids"] = inputs["position_ids"][:, -1:] + 1


def _decode_anew(model: nn.Module, prefixes: list[Ids], count: int, pad: int) -> Tensor:
    """Without a cache: the whole sequence is read again for each token."""
    ids = _inputs(model, prefixes, pad)["input_ids"]
    for _ in range(count):
        output = call(model, {"input_ids": ids}, logits_to_keep=1)
        ids = torch.cat([ids, _best(language_logits(model, output, len(prefixes))[:, -1:])], dim=1)
    return ids[:, -count:]


def _pads(model: nn.Module) -> bool:
    return accepts(model, "attention_mask", "position_ids", "past_key_values", "use_cache")


def _inputs(model: nn.Module, rows: list[Ids], pad: int) -> dict[str, Tensor]:
    inputs = left_padded(rows, pad, device_of(model))
    return inputs if _pads(model) else {"input_ids": inputs["input_ids"]}


def _best(logits: Tensor) -> Tensor:
    """The most likely tokens; of equally likely ones the lowest id."""
    top, tokens = logits.max(dim=-1)
    if not top.isfinite().all():
        raise ValueError("model: its logits are not finite on the passages; check its weights")
    return tokens


def _groups(lengths: Sequence[int], size: int, *, padded: bool) -> Iterator[list[int]]:
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


def _require_fits(model: nn.Module, rows: list[tuple[Ids, Ids]]) -> None:
    longest = max(len(prefix + suffix) for prefix, suffix in rows)
    require_fits("passages", model, longest, max(max(prefix + suffix) for prefix, suffix in rows))
