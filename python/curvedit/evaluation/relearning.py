"""Relearning: whether a little training on other text brings back what was forgotten."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from curvedit.data import Ids, right_padded
from curvedit.evaluation.measure import Run
from curvedit.evaluation.passage_measure import PassageMeasure
from curvedit.evaluation.perplexity import Perplexity
from curvedit.evaluation.rounding import restored
from curvedit.evaluation.teacher_forcing import Forced, forced
from curvedit.meter import progress
from curvedit.models import call, device_of, find_stack, find_targets, language_logits
from curvedit.report import Meaning, Metric

STEPS = (10, 50)
LENGTH = 64  # tokens of a window that is trained on
_RATE = 5e-5  # of AdamW, without weight decay
_ROWS = 4  # windows per training step
_MOST = 256  # windows of the text that steps draw from
_FAMILY = "right_relearned: {}"


@dataclass(frozen=True, eq=False)
class Relearning(PassageMeasure):
    """``right_relearned: N steps``: suffix tokens right after training on unrelated text.

    The model's blocks take N steps of AdamW at 5e-5, each on four windows of 64 tokens, and are
    restored bit for bit. That forgotten text may come back so: Hu et al., arXiv:2406.13356.

    Args:
        passages: Prefixes and their true suffixes.
        text: What to train on, as for :class:`Perplexity`; not the passages.
        steps: After how many steps to read the passages.

    Raises:
        TypeError: not :class:`Passages`, or the text can be read only once.
        ValueError: the text is empty, or there are no steps.
    """

    text: Any = field(default=(), repr=False)
    steps: Sequence[int] = STEPS
    _reader: Perplexity = field(init=False, repr=False)

    meanings: ClassVar[Mapping[str, Meaning]] = {
        _FAMILY: Meaning(
            "Suffix tokens right, after {} of training",
            "share",
            "lower",
            "the same after {} of training on unrelated text",
            units="passages",
            headline=False,
        )
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.steps or min(self.steps) < 1:
            raise ValueError(f"steps: expected numbers of at least 1, got {self.steps!r}")
        if isinstance(self.text, Sequence) and not self.text:
            raise ValueError("text: expected some to train on, got none")
        object.__setattr__(self, "_reader", Perplexity(self.text))

    @property
    def keys(self) -> tuple[str, ...]:
        """A key for each number of steps."""
        return tuple(_FAMILY.format(f"{steps} steps") for steps in self.steps)

    def probe(self, model: nn.Module, run: Run) -> Tensor:
        """The first passage, once the passages and the first text are known to fit the model."""
        next(self._reader.windows(model, run), None)
        return super().probe(model, run)

    def measure(self, model: nn.Module, run: Run) -> dict[str, Metric]:
        """Train, read the passages on the way, and restore the model."""
        self.identify(run)
        total = max(self.steps)

        def read() -> Forced:
            return forced(
                model, self.passages, batch_size=run.batch_size, pad_token_id=run.pad_token_id
            )

        with progress(total, unit="step", what="relearn", shown=run.shows_progress) as shown:
            rows = [*islice(self._reader.windows(model, run), _MOST)]
            reads = relearn(model, rows, read, steps=self.steps, done=shown.update)
        found = {}
        for key, each in zip(self.keys, reads, strict=True):
            right = np.array([part.sum() for part in each.right], dtype=np.float64)
            length = np.array([len(part) for part in each.right], dtype=np.float64)
            found[key] = run.interval(right, length)
        return found


def relearn(
    model: nn.Module,
    rows: Sequence[Ids],
    probe: Callable[[], Any],
    *,
    steps: Sequence[int] = STEPS,
    seed: int = 0,
    done: Callable[[int], None] = lambda _: None,
) -> list[Any]:
    """Train the model's blocks on token ids, and probe it on the way; it is restored in the end.

    Args:
        model: A causal language model.
        rows: What it is trained on; each step takes four windows of at most 64 tokens.
        probe: What is measured.
        steps: After how many steps.
        seed: Seeds the choice of rows.
        done: Told of every step.

    Returns:
        What was measured, for each number of steps in ascending order.
    """
    stack = find_stack(model, list(find_targets(model, "*")))
    owner: nn.Module = model if stack is None else model.get_submodule(stack.name)
    trained = [each for each in owner.parameters() if each.is_floating_point()]
    was = [(each, each.requires_grad) for each in model.parameters()]
    generator = np.random.default_rng(seed)
    found = []
    with restored(trained):
        for each, _ in was:
            each.requires_grad_(False)
        for each in trained:
            each.requires_grad_(True)
        optimiser = torch.optim.AdamW(trained, lr=_RATE, weight_decay=0.0, fused=True)
        try:
            for step in range(1, max(steps) + 1):
                chosen = generator.choice(len(rows), size=min(_ROWS, len(rows)), replace=False)
                _train(model, [_cut(rows[int(at)], generator) for at in chosen], optimiser)
                done(1)
                if step in steps:
                    found.append(probe())
        finally:
            for each, needed in was:
                each.grad = None
                each.requires_grad_(needed)
    return found


def _cut(row: Ids, generator: np.random.Generator) -> Ids:
    start = int(generator.integers(0, max(1, len(row) - LENGTH + 1)))
    return row[start : start + LENGTH]


def _train(model: nn.Module, rows: Sequence[Ids], optimiser: torch.optim.Optimizer) -> None:
    batch = {key: each.to(device_of(model)) for key, each in right_padded(list(rows), 0).items()}
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    with torch.enable_grad():
        logits = language_logits(model, call(model, batch), len(rows))[:, :-1]
        loss = nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels[:, 1:].flatten())
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
    optimiser.step()
