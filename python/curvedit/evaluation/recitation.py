"""Recitation: does the model continue a passage word for word?

Greedy decoding of exactly as many tokens as the suffix has. An end-of-sequence token is a token
like any other: where the suffix goes on, generating it is a mistake, and decoding goes on after it.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from rapidfuzz.distance import Levenshtein
from torch import Tensor, nn

from curvedit.batches import logits_of
from curvedit.evaluation import bootstrap
from curvedit.evaluation.suite import Passages
from curvedit.report import Estimate

LOOSE = 0.75  # similarity from which a recitation counts loosely (Merullo et al., arXiv:2510.24256)


def recitation(model: nn.Module, passages: Passages, *, batch_size: int, resamples: int) -> dict[str, Estimate]:
    """``strict``: exact continuations; ``loose``: at least 0.75 similar; ``avg_levenshtein``: distance / length."""
    distances = []
    for start in range(0, len(passages), batch_size):
        suffixes = passages.suffixes[start : start + batch_size]
        generated = greedy(model, passages.prefixes[start : start + batch_size], max(map(len, suffixes)))
        for suffix, row in zip(suffixes, generated.tolist(), strict=True):
            wanted = [int(token) for token in suffix]
            distances.append(Levenshtein.distance(row[: len(wanted)], wanted) / len(wanted))
    relative = np.array(distances)
    return {
        "strict": bootstrap.mean((relative == 0).astype(float), resamples=resamples),
        "loose": bootstrap.mean((1 - relative >= LOOSE).astype(float), resamples=resamples),
        "avg_levenshtein": bootstrap.mean(relative, resamples=resamples),
    }


@torch.inference_mode()
def greedy(model: nn.Module, prefixes: Sequence[Sequence[int]], length: int) -> Tensor:
    """The ``length`` likeliest next tokens, one after another, per prefix: ``(B, length)``.

    Prefixes of different lengths are padded on the left, with positions counted from the first
    real token, so that a prefix is continued as it would be alone.
    """
    device = next(model.parameters()).device
    width = max(map(len, prefixes))
    ids = torch.zeros(len(prefixes), width, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, prefix in enumerate(prefixes):
        ids[row, width - len(prefix) :] = torch.as_tensor(list(prefix))
        mask[row, width - len(prefix) :] = 1
    ids, mask = ids.to(device), mask.to(device)
    known = inspect.signature(model.forward).parameters
    generated: list[Tensor] = []
    cache: Any = None
    for _ in range(length):
        inputs: dict[str, Any] = {"input_ids": ids if cache is None else ids[:, -1:]}
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        options = {
            "attention_mask": mask,
            "position_ids": positions if cache is None else positions[:, -1:],
            "use_cache": True,
            "past_key_values": cache,
            "logits_to_keep": 1,
        }
        output = model(**inputs, **{key: value for key, value in options.items() if key in known})
        cache = getattr(output, "past_key_values", None)
        following = logits_of(output)[:, -1].argmax(-1, keepdim=True)
        generated.append(following)
        ids = torch.cat([ids, following], 1)
        mask = torch.cat([mask, torch.ones_like(following)], 1)
    return torch.cat(generated, 1)


@torch.inference_mode()
def recites(model: nn.Module, passages: Passages) -> list[bool]:
    """Per passage, whether the model would recite its suffix exactly; one forward pass per length.

    Every next token given the true ones before it is right if and only if greedy decoding is.
    """
    device = next(model.parameters()).device
    exact = [False] * len(passages)
    groups: dict[tuple[int, int], list[int]] = {}
    for number, (prefix, suffix) in enumerate(zip(passages.prefixes, passages.suffixes, strict=True)):
        groups.setdefault((len(prefix), len(suffix)), []).append(number)
    for (before, _), members in groups.items():
        rows = [[*map(int, passages.prefixes[n]), *map(int, passages.suffixes[n])] for n in members]
        ids = torch.tensor(rows, device=device)
        guessed = logits_of(model(input_ids=ids))[:, before - 1 : -1].argmax(-1)
        for number, right in zip(members, (guessed == ids[:, before:]).all(1).tolist(), strict=True):
            exact[number] = right
    return exact
