"""Perplexity of text and nDCG@10 against a baseline, in one pass."""

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from curvedit.batches import Batch, logits_of, read_batch
from curvedit.calls import call, pieces
from curvedit.causality import require_causal
from curvedit.evaluation import bootstrap
from curvedit.report import Estimate, Reference

K = 10


@torch.inference_mode()
def likelihood(
    model: nn.Module,
    text: Iterable[Any],
    reference: Reference | None,
    *,
    ndcg_positions: int,
    resamples: int,
    logits_bytes: int,
) -> tuple[dict[str, Estimate], Reference]:
    """``perplexity``, exp of the mean loss over all tokens, and ``ndcg10``; intervals over windows.

    nDCG@10 grades the model's ten likeliest tokens by their rank among the baseline's ten: the
    token of rank r (from 0) is worth 10 - r, discounted by log2 of its place. A model without a
    reference is its own.

    Args:
        model: A causal language model in evaluation mode.
        text: Batches of token ids.
        reference: The baseline's likeliest tokens on the same text.
        ndcg_positions: How many positions nDCG@10 looks at.
        resamples: Of the bootstrap.
        logits_bytes: Bound on the memory of logits.

    Returns:
        The estimates, and the reference: the given one, or this model's own.

    Raises:
        ValueError: the text is empty, the model is not causal, or the reference is of other text.
    """
    losses: list[Tensor] = []
    counts: list[Tensor] = []
    tops: list[Tensor] = []
    per_row: list[Tensor] = []
    digest = hashlib.sha256()
    seen = 0
    device = next(model.parameters()).device
    for index, raw in enumerate(text):
        batch = read_batch(raw, index, 0, device, "language")
        if batch.counts is None or batch.labels is None or not isinstance(batch.inputs, dict):
            raise ValueError(f"text: expected token ids, got {type(raw).__name__} as batch {index}")
        if not index:
            require_causal(model, batch.inputs["input_ids"])
        for tensor in (batch.inputs["input_ids"], batch.counts):
            digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy())
        loss, top, rows = _batch(model, batch, max(0, ndcg_positions - seen), logits_bytes)
        losses.append(loss)
        counts.append(batch.counts.sum(1).cpu())
        tops.append(top)
        per_row.append(rows + sum(map(len, losses[:-1])))
        seen += len(top)
    if not losses:
        raise ValueError("text: expected at least one batch, got none; check the data source")
    loss, count = torch.cat(losses).double().numpy(), torch.cat(counts).double().numpy()
    top, rows = torch.cat(tops), torch.cat(per_row)
    data = digest.hexdigest()
    reference = Reference(data, top) if reference is None else reference
    if reference.data != data or reference.tokens.shape != top.shape:
        raise ValueError("baseline: its nDCG@10 reference is of other text; evaluate the baseline on the same suite")
    score = ndcg(reference.tokens, top)
    by_window = torch.zeros(len(count), dtype=torch.float64).index_add_(0, rows, score).numpy()
    graded = torch.zeros(len(count), dtype=torch.float64).index_add_(0, rows, torch.ones_like(score)).numpy()
    some = graded > 0
    return {
        "perplexity": bootstrap.ratio(loss, count, resamples=resamples, then=np.exp),
        "ndcg10": bootstrap.ratio(by_window[some], graded[some], resamples=resamples),
    }, reference


def _batch(model: nn.Module, batch: Batch, wanted: int, logits_bytes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Summed loss per row, the likeliest tokens of up to ``wanted`` positions, and their rows."""
    size, length = batch.samples.shape[0], batch.counts.shape[1] if batch.counts is not None else 0
    losses = torch.zeros(size)
    tops, rows = [torch.zeros(0, K, dtype=torch.int32)], [torch.zeros(0, dtype=torch.int64)]
    for start, stop, left, right in pieces(model, batch, length, logits_bytes):
        part = batch.rows(start, stop)
        if part.counts is None or part.labels is None:
            continue
        slicing = {} if right is None else {"logits_to_keep": torch.arange(left, right, device=part.counts.device)}
        logits = logits_of(call(model, part.inputs, **slicing))
        counts, labels = part.counts[:, left:right], part.labels[:, left:right]
        row, position = counts.nonzero(as_tuple=True)
        chosen = logits[row, position]
        terms = F.cross_entropy(chosen.float(), labels[row, position], reduction="none")
        losses.index_add_(0, row.cpu() + start, terms.cpu())
        take = max(0, wanted - sum(map(len, tops)))
        best = chosen[:take].topk(min(K, chosen.shape[1])).indices.int().cpu()
        tops.append(F.pad(best, (0, K - best.shape[1]), value=-1))
        rows.append(row[:take].cpu() + start)
    return losses, torch.cat(tops), torch.cat(rows)


def ndcg(
    baseline: Tensor,  # (positions, 10) token ids, likeliest first
    model: Tensor,  # (positions, 10)
) -> Tensor:
    """Graded nDCG@10 per position, float64, in [0, 1]; 1 where the two agree in order."""
    grades = torch.arange(K, 0, -1, dtype=torch.float64)
    discounts = 1 / torch.arange(2, K + 2, dtype=torch.float64).log2()
    gained = torch.zeros(len(model), dtype=torch.float64)
    for place in range(K):
        match = (model[:, place, None] == baseline) & (baseline >= 0)
        gained += discounts[place] * (match * grades).sum(1)
    possible = ((baseline >= 0) * grades * discounts).sum(1)
    return gained / possible
