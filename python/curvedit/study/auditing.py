"""What an edit survives: rounding to few bits, training on other data, other ways of asking."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from curvedit import meter
from curvedit.data import Ids, Passages, right_padded
from curvedit.evaluation import Prompts, SampledExtraction, Suite, evaluate, forced
from curvedit.models import call, device_of, find_stack, find_targets, language_logits, weight_of
from curvedit.study.records import plain

GROUP = 32  # inputs that share a scale when weights are rounded
UNRELATED = "unrelated text"
STEPS = (10, 25, 50)
_RECITED_STEPS = (10, 25)  # on text that was recited
_RATE = 5e-5  # of AdamW, without weight decay
_ROWS = 4  # windows per training step
_LENGTH = 64  # tokens of each


def share_right(model: nn.Module, passages: Passages, *, batch_size: int) -> float:
    """Share of the suffix tokens right, teacher-forced."""
    right = forced(model, passages, batch_size=batch_size).right
    return float(np.concatenate(right).mean())


def block_maps(model: nn.Module) -> dict[str, nn.Module]:
    """The linear maps inside the model's blocks."""
    maps = find_targets(model, "*")
    stack = find_stack(model, list(maps))
    if stack is None:
        return maps
    return {name: each for name, each in maps.items() if name.startswith(f"{stack.name}.")}


def rounded_to(weight: Tensor, bits: int) -> Tensor:
    """A weight (d_out, d_in), rounded to signed integers with one scale per 32 inputs.

    Round to nearest with the largest magnitude of each group as its scale, as simple as
    quantisation gets; no calibration.
    """
    most = 2 ** (bits - 1) - 1
    pad = -weight.shape[1] % GROUP
    groups = nn.functional.pad(weight.float(), (0, pad)).unflatten(1, (-1, GROUP))
    scale = groups.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / most
    found: Tensor = (groups / scale).round().clamp(-most, most) * scale
    whole: Tensor = found.flatten(1)[:, : weight.shape[1]].to(weight.dtype)
    return whole


@contextmanager
def rounded(model: nn.Module, bits: int) -> Iterator[None]:
    """Inside, every linear map of the model's blocks is rounded."""
    weights = [weight_of(each) for each in block_maps(model).values()]
    with _restored(weights), torch.no_grad():
        for weight in weights:
            weight.copy_(rounded_to(weight, bits))
        yield


def relearn(
    model: nn.Module,
    rows: Sequence[Ids],
    probe: Callable[[], float],
    *,
    steps: Sequence[int] = STEPS,
    seed: int = 0,
    shown: Callable[[int], None] = lambda _: None,
) -> list[float]:
    """Train the model's blocks on token ids, and probe it on the way; it is restored in the end.

    Args:
        model: A causal language model.
        rows: What it is trained on; each step takes four windows of at most 64 tokens.
        probe: What is measured.
        steps: After how many steps.
        seed: Seeds the choice of rows.
        shown: Told of every step.

    Returns:
        The measurements.
    """
    stack = find_stack(model, list(find_targets(model, "*")))
    owner: nn.Module = model if stack is None else model.get_submodule(stack.name)
    trained = list(owner.parameters())
    was = [(each, each.requires_grad) for each in model.parameters()]
    generator = np.random.default_rng(seed)
    found = []
    with _restored(trained):
        for each in model.parameters():
            each.requires_grad_(False)
        for each in trained:
            each.requires_grad_(True)
        optimiser = torch.optim.AdamW(trained, lr=_RATE, weight_decay=0.0)
        try:
            for step in range(1, max(steps) + 1):
                chosen = generator.choice(len(rows), size=min(_ROWS, len(rows)), replace=False)
                _train(model, [_cut(rows[int(at)], generator) for at in chosen], optimiser)
                shown(1)
                if step in steps:
                    found.append(probe())
        finally:
            for each, needed in was:
                each.grad = None
                each.requires_grad_(needed)
    return found


def _cut(row: Ids, generator: np.random.Generator) -> Ids:
    start = int(generator.integers(0, max(1, len(row) - _LENGTH + 1)))
    return row[start : start + _LENGTH]


def _train(model: nn.Module, rows: Sequence[Ids], optimiser: torch.optim.Optimizer) -> None:
    batch = {key: each.to(device_of(model)) for key, each in right_padded(list(rows), 0).items()}
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    with torch.enable_grad():
        logits = language_logits(model, call(model, batch), len(rows))[:, :-1]
        loss = nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels[:, 1:].flatten())
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
    optimiser.step()


@contextmanager
def _restored(weights: Sequence[Tensor]) -> Iterator[None]:
    kept = [each.detach().clone() for each in weights]
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, content in zip(weights, kept, strict=True):
                weight.copy_(content)


def audit(
    model: nn.Module,
    arm: str,
    sides: Mapping[str, Passages],
    training: Mapping[str, Sequence[Ids]],
    *,
    batch_size: int = 8,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, Any]:
    """Audit the model as it is now, under the name of an arm.

    Args:
        model: Edited, or not; it is unchanged in the end.
        arm: The name that the results go by.
        sides: The passages by side; the forgotten ones are "tune".
        training: What to train on, by name.
        batch_size: Passages at a time.
        seed: Seeds the training.
        progress: Show how far it has come.
    """
    rounding = []
    for bits in (8, 4):
        with rounded(model, bits):
            right = {
                f"right: {side}": share_right(model, each, batch_size=batch_size)
                for side, each in sides.items()
            }
        rounding.append({"arm": arm, "bits": bits, **right})
    now = share_right(model, sides["tune"], batch_size=batch_size)
    relearning = []
    steps = {name: STEPS if name == UNRELATED else _RECITED_STEPS for name in training}
    total = sum(max(each) for each in steps.values())
    with meter.progress(total, unit="step", what="relearn", shown=progress) as bar:
        for name, rows in training.items():
            found = relearn(
                model,
                rows,
                lambda: share_right(model, sides["tune"], batch_size=batch_size),
                steps=steps[name],
                seed=seed,
                shown=bar.update,
            )
            entry = {"arm": arm, "on": name, "steps": [0, *steps[name]], "right": [now, *found]}
            relearning.append(entry)
    suite = Suite([Prompts(sides["tune"]), SampledExtraction(sides["tune"])], batch_size=batch_size)
    asked = evaluate(model, suite, progress=progress).before
    return {
        "rounding": rounding,
        "relearning": relearning,
        "prompts": {arm: plain(asked)},
    }
