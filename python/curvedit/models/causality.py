"""Checks that a language model is causal, and raises an error if it is not.

A model is causal if its logits at position ``t`` do not depend on any token after ``t``.
"""

import torch
from torch import Tensor, nn

from curvedit.models.calling import call, demands, logits_of

_LENGTH = 16  # tokens, enough to see a leak
_ROUNDING = 4  # times the epsilon of the logits' dtype; the same kernels on the same shapes give 0
_COMPANY = 8  # times what the logits move by where nothing but rounding can move them


class CausalityError(ValueError):
    """The model can see the tokens that it is asked to predict."""


@torch.no_grad()
def require_causal(model: nn.Module, input_ids: Tensor) -> None:
    """Refuse a model whose logits at earlier positions change when only the last token does.

    Runs the model twice on one short sequence. A masked language model such as BERT is refused:
    under a next-token loss it could copy the answer from its input.

    Args:
        model: In evaluation mode; called as ``model(input_ids=...)``.
        input_ids: Token ids (T,) or (B, T); only the first tokens of the first row are used.

    Raises:
        CausalityError: the model is not causal, or is an encoder-decoder.
        ValueError: its logits are not of shape (B, T, vocabulary).
    """
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise CausalityError(
            "model: expected a causal language model (decoder only), "
            f"got the encoder-decoder {type(model).__name__}"
        )
    ids = input_ids.reshape(-1, input_ids.shape[-1])[:1, :_LENGTH]
    if ids.shape[1] < 2:
        ids = ids.repeat(1, 2)
    first = _logits(model, ids)
    changed = ids.clone()
    changed[0, -1] = _another(ids[0], first.shape[-1])
    second = _logits(model, changed)
    moved = (first[:, :-1] - second[:, :-1]).abs().max()
    rounding = _ROUNDING * torch.finfo(first.dtype).eps * first.abs().max()
    if moved > rounding and moved > _COMPANY * _moved_by_company(model, ids, changed, first):
        raise CausalityError(
            f"model: expected a causal language model, got {type(model).__name__}, whose logits at "
            f"earlier positions change by up to {float(moved):.2g} when only the last token does"
        )


def _moved_by_company(model: nn.Module, ids: Tensor, others: Tensor, alone: Tensor) -> Tensor:
    """How far a sequence's logits move when another one is beside it in the batch: rounding alone.

    Experts multiply the tokens of all sequences together, so that one token's choice of experts
    changes how those of the others are rounded.
    """
    return (_logits(model, torch.cat([ids, others]))[:1] - alone).abs().max()


def _another(ids: Tensor, vocabulary: int) -> int:
    """Return a token other than the last, from the sequence if possible, so that it is valid."""
    last = int(ids[-1])
    others = [int(token) for token in ids if int(token) != last]
    return others[0] if others else (last + 1) % vocabulary


def _logits(model: nn.Module, ids: Tensor) -> Tensor:
    inputs = {"input_ids": ids}
    if demands(model, "attention_mask"):
        inputs["attention_mask"] = torch.ones_like(ids)
    logits = logits_of(call(model, inputs))
    if logits.ndim != 3 or logits.shape[:2] != ids.shape:
        raise ValueError(
            "model: the language task expects logits (B, T, vocabulary) for ids "
            f"{tuple(ids.shape)}, got {tuple(logits.shape)}"
        )
    return logits
