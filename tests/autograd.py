"""Factors by plain autograd, one whole backward pass for each batch."""

import copy

import architectures
import torch
import torch.nn.functional as F
from expert_calls import ExpertCalls
from torch import nn


def is_map(module):
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def loss_and_rows(logits, batch):
    """The summed loss in float64, and which positions (B, T) count; None where all rows do."""
    labels, mask = batch["labels"], batch.get("attention_mask")
    rows = None if mask is None else mask.bool()
    if labels.ndim == 1:
        return F.cross_entropy(logits, labels, reduction="sum"), rows
    if logits.shape[-1] == architectures.CLASSES:
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum"), rows
    total, counts = 0.0, torch.zeros_like(rows)
    for row in range(len(labels)):
        for t in range(labels.shape[1] - 1):
            if rows[row, t] and rows[row, t + 1] and labels[row, t + 1] != -100:
                total = total + F.cross_entropy(logits[row, t], labels[row, t + 1])
                counts[row, : t + 1] = rows[row, : t + 1]
    return total, counts


def truth(model, batches):
    """Sums and counts of every linear map that a loss depends on, from whole backward passes."""
    torch.set_default_dtype(torch.float64)
    try:
        return autograd(copy.deepcopy(model).double(), batches)
    finally:
        torch.set_default_dtype(torch.float32)


def autograd(twin, batches):
    if hasattr(twin, "set_experts_implementation") and twin._can_set_experts_implementation():
        twin.set_experts_implementation("eager")  # the others take no float64
    calls = {}

    def watch(name):
        def hook(_, args, kwargs, output):
            a = (args[0] if args else next(iter(kwargs.values()))).detach().clone()
            output.register_hook(lambda g: calls.setdefault(name, []).append((a, g.detach(), None)))

        return hook

    for name, module in twin.named_modules():
        if is_map(module):
            module.register_forward_hook(watch(name), with_kwargs=True)

    def watch_expert(name, inputs, rows, output):
        a = inputs.detach().clone()
        output.register_hook(lambda g: calls.setdefault(name, []).append((a, g.detach(), rows)))

    sums = {}
    for batch in batches:
        calls.clear()
        inputs = {
            key: x.to(next(twin.parameters()).dtype) if x.is_floating_point() else x
            for key, x in batch.items()
            if key != "labels"
        }
        with ExpertCalls(twin, watch_expert):
            logits = twin(**inputs, **no_cache(twin)).logits
        loss, rows = loss_and_rows(logits, batch)
        loss.backward()
        for name, found in calls.items():
            for a, g, positions in found:
                a, g = a.flatten(0, -2), g.flatten(0, -2)
                counts = None if rows is None else rows.flatten()
                if counts is not None and positions is not None:
                    counts = counts[positions]
                if counts is not None and len(a) == len(counts):
                    a, g = a[counts], g[counts]
                a_norm, g_norm = (x.square().sum(1, keepdim=True) for x in (a, g))
                new = (a.T @ a, g.T @ g, (a * g_norm).T @ a, (g * a_norm).T @ g, len(a))
                old = sums.get(name, (0,) * 5)
                sums[name] = tuple(x + y for x, y in zip(old, new, strict=True))
    return sums


def no_cache(model):
    return {"use_cache": False} if hasattr(model.config, "use_cache") and is_decoder(model) else {}


def is_decoder(model):
    return type(model).__name__.endswith(("CausalLM", "LMHeadModel"))
