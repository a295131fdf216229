"""The first step of a targeted edit, target by target: where forgetting is cheap."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from curvedit.data import Passages
from curvedit.editing import editable
from curvedit.factors import Factors
from curvedit.forgetting.inputs import numbered
from curvedit.forgetting.preconditioning import direction
from curvedit.forgetting.subject import Data, Subject
from curvedit.models import frozen, match_names


@dataclass(frozen=True)
class FirstStep:
    """The preconditioned step of one target, and what is predicted of it."""

    step: Tensor  # (d_out, d_in) float32; a step of length t adds t times it
    damage: float  # predicted at length 1, nats per position; it grows with the square of t
    descent: float  # of the margin loss at length 1, to first order

    @property
    def worth(self) -> float:
        """Descent to first order for each root of predicted damage, whatever the length."""
        return float(self.descent / self.damage**0.5) if self.damage > 0 else 0.0


def first_steps(
    model: nn.Module,
    factors: Factors,
    passages: Passages | Iterable[Any],
    *,
    targets: str | Sequence[str] | None = None,
    damping: float = 1.0,
    batch_size: int = 16,
    pad_token_id: int = 0,
    progress: bool = True,
) -> dict[str, FirstStep]:
    """The first step that ``forget`` would take with each target alone; nothing is changed.

    Args:
        model: The module that the factors were fitted on.
        factors: What ``fit`` returned.
        passages: As for ``forget``.
        targets: Patterns that choose among the fitted targets; None takes all.
        damping: As for ``forget``.
        batch_size: As for ``forget``.
        pad_token_id: As for ``forget``.
        progress: Show progress bars.

    Raises:
        TypeError: the passages are of an unknown kind.
        ValueError: a target has no curvature, or is not the weight that was fitted.

    Source:
        Martens & Grosse 2015, arXiv:1503.05671, section 6.
    """
    names = match_names(targets or "*", list(factors))
    data = Data(numbered("passages", passages, batch_size, pad_token_id), None, ())
    with frozen(model):
        modules = editable(model, {name: factors.targets[name] for name in names})
        _, gradients = Subject(model, modules, data, progress).differentiate()
    factors.decompose([(kind, name) for name in names for kind in ("G", "A")], progress=progress)
    found = {}
    for name, gradient in gradients.items():
        step, damage = direction(factors, name, gradient, torch.zeros_like(gradient), damping)
        descent = -float((step * gradient).sum())
        found[name] = FirstStep(step, damage.square, descent)
    return found
