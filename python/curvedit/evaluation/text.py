"""Text: token losses for perplexity, and the most likely tokens for nDCG@10, in one pass."""

import hashlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from curvedit.data import Batch, read_batch
from curvedit.evaluation.bootstrap import ratio
from curvedit.evaluation.padding import positions_of
from curvedit.models import accepts, call, device_of, language_logits, require_fits, vocabulary_of
from curvedit.report import Metric

_LOGITS_BYTES = 1 << 28  # of one forward pass, unless a single window needs more
_POSITIONS = 1024  # whose logits are held in float32 at once


@dataclass(frozen=True)
class TextMeasurement:
    """One pass over text; windows and positions in the order of the data."""

    loss: npt.NDArray[np.float64]  # (windows,) summed over the positions that count, nats
    tokens: npt.NDArray[np.int64]  # (windows,) how many count
    top: npt.NDArray[np.int32]  # (positions, depth) most likely ids, best first
    sha256: str  # of the tokens and of which of them count


def measure_text(
    model: nn.Module, batches: Iterable[Any], *, name: str, depth: int
) -> TextMeasurement:
    """Losses per window and the ``depth`` most likely tokens per position that contributing.

    Logits exist for a few windows at a time, in float32 for a few positions.

    Args:
        model: A causal language model in evaluation mode.
        batches: As ``fit`` takes them.
        name: The suite's argument, for messages.
        depth: 0 keeps no tokens.

    Raises:
        ValueError: nothing counts in a batch, a window does not fit the model, or logits are not finite.
    """
    losses, tokens, top = [], [], []
    digest = hashlib.sha256()
    for batch in _batches(model, batches, name):
        _update(digest, batch)
        for part in _parts(model, batch):
            loss, best = _measure_part(model, part, depth, f"{name}: batch {batch.index}")
            losses.append(loss)
            tokens.append(_contributing(part).sum(1).cpu())
            top.append(best)
    if not losses:
        raise ValueError(f"{name}: expected at least one batch, got none")
    return TextMeasurement(
        torch.cat(losses).numpy(),
        torch.cat(tokens).numpy(),
        torch.cat(top).numpy(),
        digest.hexdigest(),
    )


def perplexity(text: TextMeasurement, *, resamples: int, seed: int) -> Metric:
    """``exp(total loss / total tokens)``; the interval is over windows.

    Token-weighted: every token counts the same, whatever batch or window it is in.
    """
    counted = text.tokens > 0
    mean = ratio(text.loss[counted], text.tokens[counted], resamples=resamples, seed=seed)
    if max(mean.value, mean.high) > 700:
        raise ValueError(
            f"model: its mean token loss is {mean.value:.3g} nats, beyond any perplexity; is it broken?"
        )
    return Metric(math.exp(mean.value), math.exp(mean.low), math.exp(mean.high))


def ndcg(
    top: npt.NDArray[np.int32],  # (positions, K) of the measured model, best first
    reference: npt.NDArray[np.int32],  # (positions, K) of the baseline, best first
    tokens: npt.NDArray[np.int64],  # (windows,) positions in each
    *,
    resamples: int,
    seed: int,
) -> Metric:
    """Mean nDCG@K of a model's top tokens, graded by the baseline's; the interval is over windows.

    A token gains K minus its rank (from 0) among the baseline's top K, or 0. Gains are discounted
    by ``log2(2 + rank)`` in the measured model's list and normalised by the baseline's own order,
    so a model with the same list scores exactly 1.

    Source:
        Järvelin and Kekäläinen 2002; Merullo et al., arXiv:2510.24256, appendix C and its code.
    """
    depth = reference.shape[1]
    grades = np.arange(depth, 0, -1, dtype=np.float64)
    each = np.concatenate(
        [
            _discounted(((mine[:, :, None] == theirs[:, None, :]) * grades).sum(2))
            for mine, theirs in zip(
                *(np.array_split(ids, len(ids) // 4096 + 1) for ids in (top, reference)),
                strict=True,
            )
        ]
    )
    each /= _discounted(grades[None])
    ends = np.cumsum(tokens)
    sums = np.array([part.sum() for part in np.split(each, ends[:-1])])
    counted = tokens > 0
    return ratio(sums[counted], tokens[counted], resamples=resamples, seed=seed)


def _discounted(gains: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """DCG of each row, added in the same order for every row."""
    total = np.zeros(gains.shape[0])
    for rank in range(gains.shape[1]):
        total += gains[:, rank] / math.log2(rank + 2)
    return total


def _batches(model: nn.Module, batches: Iterable[Any], name: str) -> Iterator[Batch]:
    device = device_of(model)
    seen = 0
    for index, raw in enumerate(batches):
        try:
            batch = read_batch(raw, index, seen, device, "language")
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name}: {error}") from error
        ids = batch.inputs["input_ids"] if isinstance(batch.inputs, dict) else batch.inputs[0]
        require_fits(name, model, ids.shape[1], int(ids.max()))
        seen += batch.samples.shape[0]
        yield batch


def _contributing(batch: Batch) -> Tensor:
    if batch.contributing is None:
        raise ValueError("text: expected token ids (B, T), got a batch without positions")
    return batch.contributing


def _parts(model: nn.Module, batch: Batch) -> Iterator[Batch]:
    """A batch in pieces whose logits fit the bound; window by window where the vocabulary is unknown."""
    size, length = _contributing(batch).shape
    vocabulary = vocabulary_of(model)
    rows = 1 if vocabulary is None else max(1, _LOGITS_BYTES // (4 * length * vocabulary))
    for start in range(0, size, rows):
        part = batch.rows(start, start + rows)
        if _contributing(part).any():
            yield part


def _measure_part(model: nn.Module, part: Batch, depth: int, where: str) -> tuple[Tensor, Tensor]:
    """Summed loss per window (float64) and top tokens per position that contributing, on the CPU."""
    contributing = _contributing(part)
    inputs = dict(part.inputs) if isinstance(part.inputs, dict) else {"input_ids": part.inputs[0]}
    if part.mask is not None and not part.mask[:, 0].all() and accepts(model, "position_ids"):
        inputs.setdefault("position_ids", positions_of(part.mask))
    keep = contributing.shape[1] - int(contributing.any(0).nonzero()[0])
    logits = language_logits(model, call(model, inputs, logits_to_keep=keep), len(contributing))
    offset = contributing.shape[1] - logits.shape[1]
    row, position = contributing.nonzero(as_tuple=True)
    labels = _labels(part)[row, position]
    loss = torch.zeros(len(contributing), dtype=torch.float64, device=logits.device)
    best = []
    for start in range(0, len(row), _POSITIONS):
        here = slice(start, start + _POSITIONS)
        piece = logits[row[here], position[here] - offset]
        piece = piece.float() if piece.dtype.itemsize < 4 else piece
        terms = F.cross_entropy(piece, labels[here], reduction="none")
        if not terms.isfinite().all():
            raise ValueError(f"{where}: the model's logits are not finite there; check its weights")
        loss.index_add_(0, row[here], terms.double())
        best.append(piece.topk(min(depth, piece.shape[-1]), dim=-1).indices.int().cpu())
    return loss.cpu(), torch.cat(best)


def _labels(batch: Batch) -> Tensor:
    if batch.labels is None:
        raise ValueError("text: expected labels beside token ids, got none")
    return batch.labels


def _update(digest: Any, batch: Batch) -> None:
    """Feed a batch's tokens, window by window, so that batching and padding do not matter."""
    ids = batch.inputs["input_ids"] if isinstance(batch.inputs, dict) else batch.inputs[0]
    labels, contributing = _labels(batch).cpu(), _contributing(batch).cpu()
    real = torch.ones_like(contributing) if batch.mask is None else batch.mask.cpu()
    for window, kept, counted, label in zip(ids.cpu(), real, contributing, labels, strict=True):
        digest.update(f"{int(kept.sum())}:".encode())
        digest.update(window[kept].long().numpy().tobytes())
        digest.update(counted[kept].numpy().tobytes())
        digest.update(label[counted].long().numpy().tobytes())
