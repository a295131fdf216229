"""Teacher forcing: what a model expects of passages' tokens, given the true ones before them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from curvedit.data import Ids, Passages
from curvedit.evaluation.decoding import (
    best_tokens,
    groups_of,
    model_inputs,
    require_passages_fit,
    shares_batches,
)
from curvedit.models import call, device_of, language_logits, measuring, vocabulary_of

_LOGITS_BYTES = 1 << 28  # of one forward pass, unless a single passage needs more
_POSITIONS = 128  # whose logits are turned into probabilities at once


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn: from softmax(logits / temperature), the ``top_k`` likeliest of them.

    Raises:
        ValueError: the temperature is not positive, or ``top_k`` is below 1.
    """

    temperature: float = 1.0
    top_k: int | None = None

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature: expected more than 0, got {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k: expected at least 1 or None, got {self.top_k}")


@dataclass(frozen=True)
class Forced:
    """What a model expects of each passage's tokens; one array per passage, a value per token."""

    right: tuple[npt.NDArray[np.bool_], ...]  # whether the token is the likeliest
    logs: dict[Sampling, tuple[npt.NDArray[np.float64], ...]]  # log of the chance of drawing it


def forced(
    model: nn.Module,
    passages: Passages,
    *,
    whole: bool = False,
    samplings: Sequence[Sampling] = (),
    batch_size: int = 16,
    pad_token_id: int = 0,
    done: Callable[[int], None] = lambda _: None,
) -> Forced:
    """Read passages with the true tokens as context.

    Args:
        model: A causal language model.
        passages: Prefixes and suffixes.
        whole: Judge all tokens after the first, instead of those of the suffix.
        samplings: Ways of drawing whose chances are wanted.
        batch_size: Passages per batch; fewer where their logits would not fit a bound. The result
            does not depend on it, up to rounding.
        pad_token_id: The id to pad with; any id will do, since padding is masked.
        done: Told the number of passages that were read, after each batch.

    Raises:
        ValueError: a passage does not fit the model, or its logits are not finite.
    """
    require_passages_fit(model, passages)
    rows = [
        (prefix + suffix, len(prefix + suffix) - 1 if whole else len(suffix))
        for prefix, suffix in passages.rows()
    ]
    right: list[npt.NDArray[np.bool_]] = [np.zeros(0, dtype=bool)] * len(rows)
    logs = {each: [np.zeros(0)] * len(rows) for each in samplings}
    size = _rows_at_once(model, max(judged for _, judged in rows) + 1, batch_size)
    with measuring(model):
        padded = shares_batches(model)
        for numbers in groups_of([len(ids) for ids, _ in rows], size, padded=padded):
            part = [rows[number] for number in numbers]
            logits, true = _judged(model, part, pad_token_id, padded)
            ends = np.cumsum([judged for _, judged in part])[:-1]
            is_right = (best_tokens(logits) == true).cpu().numpy()
            for number, values in zip(numbers, np.split(is_right, ends), strict=True):
                right[number] = values
            for each in samplings:
                chances = np.split(_logs(logits, true, each), ends)
                for number, values in zip(numbers, chances, strict=True):
                    logs[each][number] = values
            done(len(numbers))
    return Forced(tuple(right), {each: tuple(found) for each, found in logs.items()})


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
    found = forced(model, passages, batch_size=batch_size, pad_token_id=pad_token_id)
    return np.array([each.all() for each in found.right], dtype=bool)


def _rows_at_once(model: nn.Module, positions: int, most: int) -> int:
    vocabulary = vocabulary_of(model)
    if vocabulary is None:
        return most
    return max(1, min(most, _LOGITS_BYTES // (4 * positions * vocabulary)))


def _judged(
    model: nn.Module, rows: Sequence[tuple[Ids, int]], pad: int, padded: bool
) -> tuple[Tensor, Tensor]:
    """Logits (N, V) and true ids (N,) of the judged tokens, passage after passage."""
    inputs = model_inputs(model, [ids for ids, _ in rows], pad, padded=padded)
    keep = max(judged for _, judged in rows) + 1
    output = call(model, inputs, logits_to_keep=keep)
    logits = language_logits(model, output, len(rows))[:, -keep:-1]
    true = [id_ for ids, judged in rows for id_ in ids[-judged:]]
    if all(judged == keep - 1 for _, judged in rows):
        found = logits.flatten(0, 1)
    else:
        found = torch.cat([logits[row, -judged:] for row, (_, judged) in enumerate(rows)])
    return found, torch.tensor(true, device=device_of(model))


def _logs(logits: Tensor, true: Tensor, sampling: Sampling) -> npt.NDArray[np.float64]:
    """Log of the chance to draw each true token; minus infinity outside the ``top_k``."""
    found = []
    for piece, ids in zip(logits.split(_POSITIONS), true.split(_POSITIONS), strict=True):
        scaled = piece.double() / sampling.temperature
        own = scaled.gather(1, ids[:, None])[:, 0]
        if sampling.top_k is None:
            found.append(own - scaled.logsumexp(1))
            continue
        top = scaled.topk(min(sampling.top_k, scaled.shape[1]), dim=1)
        among = (top.indices == ids[:, None]).any(1)
        found.append((own - top.values.logsumexp(1)).masked_fill(~among, float("-inf")))
    chances: npt.NDArray[np.float64] = torch.cat(found).cpu().numpy()
    return chances
