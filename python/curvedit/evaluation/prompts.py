"""Prompts: recitation from prefixes other than those of the passages."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from curvedit.data import Passages
from curvedit.evaluation.decoding import require_passages_fit
from curvedit.evaluation.measure import Measure, Run
from curvedit.evaluation.teacher_forcing import forced
from curvedit.evaluation.variants import perturbed, shifted, shorter
from curvedit.meter import progress
from curvedit.models import device_of
from curvedit.report import Meaning, Metric

Variant = Callable[[Passages], Passages]


def usual_variants(passages: Passages) -> dict[str, Variant]:
    """Prefixes shorter by a quarter and a half, cut later by a quarter of a suffix, and perturbed.

    The numbers of tokens follow from the shortest prefix and suffix.
    """
    opening = len(passages.identity.get("bos_ids", ()))
    prefix = max(1, min(map(len, passages.prefixes)) - opening)
    suffix = min(map(len, passages.suffixes))
    found: dict[str, Variant] = {}
    for tokens in sorted({prefix // 4, prefix // 2} - {0}):
        found[f"shorter by {tokens}"] = partial(shorter, tokens=tokens)
    for tokens in sorted({suffix // 4, -(min(prefix, suffix) // 4)} - {0}):
        found[f"shifted by {tokens}"] = partial(shifted, tokens=tokens)
    return {**found, "10 % replaced": partial(perturbed, share=0.1)}


@dataclass(frozen=True, eq=False)
class Prompts(Measure):
    """``prompt_right: NAME`` and ``prompt_strict: NAME`` for each variant of the passages.

    Both are teacher-forced: the share of suffix tokens right, and the share of passages with all
    of them right, which is what greedy decoding would recite.

    Args:
        passages: Prefixes and their true suffixes.
        variants: Name to a function of passages; by default :func:`usual_variants`.

    Raises:
        TypeError: not :class:`Passages`.
        ValueError: there are no variants, or one leaves a prefix or suffix empty.
    """

    passages: Passages
    variants: Mapping[str, Variant] | None = None
    _made: dict[str, Passages] = field(init=False, repr=False)

    meanings: ClassVar[Mapping[str, Meaning]] = {
        "prompt_right: {}": Meaning(
            "Suffix tokens right, {}",
            "share",
            "lower",
            "suffix tokens right where the prefix is {}",
            units="passages",
            headline=False,
        ),
        "prompt_strict: {}": Meaning(
            "Verbatim recitation, {}",
            "share",
            "lower",
            "passages recited where the prefix is {}",
            units="passages",
            headline=False,
        ),
    }

    def __post_init__(self) -> None:
        if not isinstance(self.passages, Passages):
            raise TypeError(f"passages: expected Passages, got {type(self.passages).__name__}")
        variants = usual_variants(self.passages) if self.variants is None else self.variants
        if not variants:
            raise ValueError("variants: expected at least one, got none")
        made = {name: make(self.passages) for name, make in variants.items()}
        object.__setattr__(self, "_made", made)

    @property
    def keys(self) -> tuple[str, ...]:
        """Two keys per variant."""
        return tuple(
            f"prompt_{kind}: {name}" for name in self._made for kind in ("right", "strict")
        )

    def probe(self, model: nn.Module, run: Run) -> Tensor:  # noqa: ARG002
        """The first passage, once all variants are known to fit the model."""
        for passages in self._made.values():
            require_passages_fit(model, passages)
        prefix, suffix = next(self.passages.rows())
        return torch.tensor([prefix + suffix], device=device_of(model))

    def measure(self, model: nn.Module, run: Run) -> dict[str, Metric]:
        """Read every variant of every passage."""
        whole = "".join(f"{name} {each.sha256()} " for name, each in self._made.items())
        sha256 = hashlib.sha256(whole.encode()).hexdigest()
        run.identify("prompts", sha256, {"passages": len(self.passages)})
        found = {}
        total = len(self._made) * len(self.passages)
        with progress(total, unit="passage", what="prompts", shown=run.shows_progress) as shown:
            for name, passages in self._made.items():
                options: dict[str, Any] = {"done": shown.update, "batch_size": run.batch_size}
                read = forced(model, passages, pad_token_id=run.pad_token_id, **options)
                right = np.array([each.sum() for each in read.right], dtype=np.float64)
                length = np.array([len(each) for each in read.right], dtype=np.float64)
                run.tell("passages", f"right, {name}", np.round(right / length, 4).tolist())
                found[f"prompt_right: {name}"] = run.interval(right, length)
                found[f"prompt_strict: {name}"] = run.interval(right == length)
        return found
