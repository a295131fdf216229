"""Stage 3, targeted: Factors and the passages to forget in, edited weights out."""

import math
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from curvedit.data import Passages, TokenBatches
from curvedit.editing import (
    Description,
    Edit,
    TargetEdit,
    edit_checkpoint,
    editable,
    held_out,
    require_outside,
    restore,
    restored_on_error,
)
from curvedit.factors import Factors
from curvedit.forgetting.descent import Descent
from curvedit.forgetting.inputs import numbered, require_apart
from curvedit.forgetting.outcome import Bounds, Recited
from curvedit.forgetting.subject import Data, Subject
from curvedit.forgetting.weights import Weights
from curvedit.models import (
    conversion_hint,
    frozen,
    is_gguf,
    load_model,
    match_names,
    require_fits,
    weight_hash,
)

DAMPING = 0.1
STEPS = 4
_LEAST = 1e-6  # nats; less drowns in the rounding of logits


def forget(
    model: nn.Module | str | Path,
    factors: Factors,
    passages: Passages | Iterable[Any],
    *,
    holdout: Any,
    targets: str | Sequence[str] | None = None,
    retain: Passages | Iterable[Any] | None = None,
    budget: float = 0.02,
    damping: float = DAMPING,
    steps: int = STEPS,
    out: str | Path | None = None,
    device: str | None = None,
    batch_size: int = 16,
    pad_token_id: int = 0,
    progress: bool = True,
) -> Edit:
    """Forget given passages, within a budget of damage to everything else.

    The weights descend a bounded margin loss on the passages' suffixes, teacher-forced: the true
    token is to lose its lead. Each step is preconditioned in the eigenbasis of the factors, so that
    directions which general text bends on are spared; its length follows from the damage that the
    factors predict, and the damage is measured on held-out data after it. Steps end when no passage
    is at least 75 % right and the recited ones are at most 35 % right on average, or when the
    budget is used. Of a model that foresees half of held-out text or more (one of bytes), forgotten
    is what is no more right than that text, and recited what is nearer to certain than to it.

    Units: damage is ``KL(unedited || edited)`` per position, in nats.

    Args:
        model: A module, edited in place; or a checkpoint directory, which is loaded, and copied to
            the new directory ``out`` with the targeted tensors rewritten.
        factors: What ``fit`` returned for this model, from general data.
        passages: What to forget: passages of a language model; or, for classifiers, batches as
            ``fit`` takes them, with the labels that are no longer to be predicted.
        holdout: General data on which the damage is measured: windows of token ids, or batches as
            ``fit`` takes them; a re-iterable, such as a list.
        targets: Patterns that choose among the fitted targets; None takes all.
        retain: Passages, or labelled batches, that are to stay right; their margins are held up.
        budget: Damage allowed, in nats per position.
        damping: Added to the curvature, in units of each target's mean curvature.
        steps: Number of steps to the budget, if the passages take all of it.
        out: The new directory; only if ``model`` is a directory.
        device: Where to load such a model; by default CUDA where there is one.
        batch_size: Passages or windows at a time; the result does not depend on it, up to rounding.
        pad_token_id: The id to pad with; any id will do, since padding is masked.
        progress: Show progress bars.

    Returns:
        The edit, with each target's relative change and predicted damage, and ``undo()``. Its
        ``record`` holds recitation and damage after each step.

    Raises:
        TypeError: data is of an unknown kind, or can be read only once.
        ValueError: a target has no factors, is not the weight they were fitted on, or is tied to
            another parameter; data is empty, does not fit the model, or is to be forgotten and kept
            at once; the model recites none of the passages; a number is out of range; or every step
            costs more than the budget. Nothing changed.
        RuntimeError: another thread uses the model.
        FileNotFoundError: ``model`` is a path without safetensors.
        FileExistsError: ``out`` is not empty.
        OSError: ``out`` cannot be written; nothing is left behind.

    Source:
        The step: Martens & Grosse 2015, arXiv:1503.05671, section 6.
    """
    require_numbers(budget, damping, steps, batch_size)
    start = time.perf_counter()
    names = match_names(targets or "*", list(factors))
    text = held_out(holdout, batch_size, pad_token_id)
    require_apart(passages, retain, text)
    data = Data(
        numbered("passages", passages, batch_size, pad_token_id),
        None if retain is None else numbered("retain", retain, batch_size, pad_token_id),
        text,
    )
    place = None if isinstance(model, nn.Module) else Path(model)
    if isinstance(model, nn.Module):
        if out is not None:
            raise ValueError(
                "out: a module is edited in place; call its save_pretrained(out) afterwards"
            )
        if device is not None:
            raise ValueError("device: a module is edited where it is; move it there beforehand")
        module = model
    else:
        if out is None:
            raise ValueError("out: expected a new directory for an edited checkpoint, got None")
        require_outside(Path(out), Path(model))
        if is_gguf(model):
            raise FileNotFoundError(
                f"model: expected a checkpoint directory with safetensors, got {model}"
                f"{conversion_hint(model)}"
            )
        module = load_model(model, device=device)
    for name, given in (("passages", passages), ("retain", retain), ("holdout", holdout)):
        _require_fits(name, module, given)
    recipe = {"criterion": "targeted", "budget": budget, "damping": damping, "steps": steps}
    with frozen(module), restored_on_error() as originals:
        modules = editable(module, {name: factors.targets[name] for name in names})
        weights = Weights(modules, originals)
        subject = Subject(module, modules, data, progress)
        bounds = Bounds.beside(subject.ordinary())
        descent = Descent(factors, subject, weights, budget, bounds, damping, steps)
        outcome = _descend(descent)
        edited = {each.name: _target_edit(factors, weights, each.name) for each in originals}
        if place is not None and out is not None:
            recipe |= _origin(factors)
            _write(place, Path(out), factors, weights, edited, recipe, outcome)
            restore(originals)
    seconds = time.perf_counter() - start
    written = None if place is None or out is None else Path(out)
    return Edit(edited, seconds, written, {**recipe, **outcome}, originals)


def require_numbers(budget: float, damping: float, steps: int, batch_size: int) -> None:
    """Raise ``ValueError`` unless these arguments of :func:`forget` are in their ranges."""
    for name, value, least in (("budget", budget, _LEAST), ("damping", damping, 0.0)):
        if not (math.isfinite(value) and value >= least and value > 0):
            at_least = f"a number of at least {least:g}" if least else "a positive number"
            raise ValueError(f"{name}: expected {at_least}, got {value!r}")
    for name, count in (("steps", steps), ("batch_size", batch_size)):
        if type(count) is not int or count < 1:
            raise ValueError(f"{name}: expected at least 1, got {count!r}")


def _require_fits(name: str, model: nn.Module, given: Any) -> None:
    """Refuse token sequences that do not fit the model, where that is known beforehand."""
    if isinstance(given, Passages):
        rows = [prefix + suffix for prefix, suffix in given.rows()]
        require_fits(name, model, max(map(len, rows)), max(map(max, rows)))
    elif isinstance(given, TokenBatches):
        require_fits(name, model, given.longest, given.largest)


def _descend(descent: Descent) -> dict[str, Any]:
    """Take the steps, and return what there is to say of them.

    Raises:
        ValueError: the model recites none of the passages.
    """
    near, forgotten = descent.bounds.near, descent.bounds.forgotten
    gaps, gradients = descent.subject.differentiate()
    shares = gaps.shares
    recited = shares >= near
    count = len(shares)
    if not recited.any():
        raise ValueError(
            f"passages: expected some that the model recites, at least {near:.0%} of the tokens "
            f"right, got {count} of which the nearest is {float(shares.max()):.0%} right; there is "
            "nothing to forget"
        )
    if not recited.all():
        number = int(shares.argmin())
        warnings.warn(
            f"{int((~recited).sum())} of {count} passages are not recited by the unedited model "
            f"(less than {near:.0%} of the tokens right), for example number {number} "
            f"({float(shares[number]):.0%}); they are not counted among the forgotten",
            stacklevel=3,
        )
    before = Recited.of(shares, recited, descent.bounds)
    descent.run(shares, gradients)
    last = descent.steps[-1]
    if not last.recited.is_forgotten:
        warnings.warn(
            f"the passages are not forgotten within the budget of {descent.budget:g} nats: "
            f"{last.recited.near} of {count} are still recited, {last.recited.right:.0%} of the "
            f"tokens are right (at most {forgotten:.0%} wanted); allow more, or edit more layers",
            stacklevel=3,
        )
    return {
        "stopped": descent.stopped,
        "bounds": asdict(descent.bounds),
        "passages": count,
        "recited": int(recited.sum()),
        "before": before.to_json(),
        "taken": [step.to_json() for step in descent.steps],
        "backward": descent.subject.backward,
    }


def _target_edit(factors: Factors, weights: Weights, name: str) -> TargetEdit:
    """The record of one target; its change is that of the weight as it was rounded."""
    original = next(each for each in weights.originals if each.name == name)
    before = original.content.to(original.weight.device)
    change = original.weight.float() - before.float()
    size = float(change.norm() / (before.float().norm() or 1.0))
    return TargetEdit(
        1.0,
        size,
        "torch",
        weight_hash(before),
        weight_hash(original.weight),
        _predicted(factors, name, change),
    )


def _predicted(factors: Factors, name: str, change: Tensor) -> float:
    out, inputs = (factors.basis(kind, name) for kind in ("G", "A"))
    parts = out.vectors.T.to(change) @ change @ inputs.vectors.to(change)
    curvature = factors.frequency(name) * torch.outer(out.values, inputs.values).to(change)
    return 0.5 * float((curvature * parts.square()).sum(dtype=torch.float64))


def _origin(factors: Factors) -> dict[str, Any]:
    """Where the factors come from, as a selection's recipe says it."""
    keys = ("labels", "seed", "data", "positions")
    known = {key: factors.provenance[key] for key in keys if key in factors.provenance}
    return {"factors": {**known, "sha256": factors.identity}}


def _write(
    source: Path,
    out: Path,
    factors: Factors,
    weights: Weights,
    edited: Mapping[str, TargetEdit],
    recipe: Mapping[str, Any],
    outcome: Mapping[str, Any],
) -> None:
    """Write a copy of the checkpoint with the edited weights."""
    found = {each.name: each.weight for each in weights.originals}

    def edit(name: str, weight: Tensor) -> list[Tensor | None]:
        return [found[name].to(weight.dtype).cpu()]

    def describe(_: int) -> Description:
        entries = {
            name: {"shape": factors.targets[name].shape, "mass": 1.0, **target.to_json()}
            for name, target in edited.items()
        }
        return Description(recipe, entries, {"outcome": outcome})

    edit_checkpoint(source, [out], {name: factors.targets[name] for name in found}, edit, describe)
