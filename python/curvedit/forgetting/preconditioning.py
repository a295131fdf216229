"""The direction of a step: a gradient, divided in the factors' eigenbasis by the curvature.

With ``C = U_G^T D U_A`` for the gradient ``D`` of the loss, component ``(i, j)`` of the step is
``-C / (lambda_i mu_j + damping * mean(lambda mu))``: directions that general text bends on are
spared. A change ``dC`` is predicted to cost ``1/2 sum lambda mu dC^2``, the second-order term of
the Kullback-Leibler divergence from the unedited model, in nats per position.

Source:
    Martens & Grosse 2015, arXiv:1503.05671, section 6, for the Kronecker-factored step.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from curvedit.factors import Factors


@dataclass(frozen=True)
class Parabola:
    """The predicted damage along a step, ``constant + linear * t + square * t^2``, in nats."""

    constant: float = 0.0
    linear: float = 0.0
    square: float = 0.0

    def __call__(self, length: float) -> float:
        """The damage after a step of this length."""
        return self.constant + length * (self.linear + length * self.square)

    def __add__(self, other: "Parabola") -> "Parabola":
        """The damage of two targets together."""
        return Parabola(
            self.constant + other.constant,
            self.linear + other.linear,
            self.square + other.square,
        )

    def length_to(self, level: float) -> float:
        """The length at which the damage reaches a level; 0 if it is there already.

        Raises:
            ZeroDivisionError: the step changes nothing that the factors see.
        """
        rest = self.constant - level
        if rest >= 0:
            return 0.0
        root = (self.linear**2 - 4 * self.square * rest) ** 0.5
        return float(root - self.linear) / (2 * self.square)


def direction(
    factors: Factors,
    name: str,
    gradient: Tensor,  # (d_out, d_in) float32
    change: Tensor,  # (d_out, d_in) float32: what earlier steps changed
    damping: float,
) -> tuple[Tensor, Parabola]:
    """Return the step ``(d_out, d_in)`` of one target, and the predicted damage along it.

    Raises:
        ValueError: a factor of the target is 0.
    """
    bases = factors.basis("G", name), factors.basis("A", name)
    out, inputs = (each.vectors.to(gradient.device, torch.float32) for each in bases)
    often = factors.frequency(name)
    mean = often * float(bases[0].values.mean() * bases[1].values.mean())
    if not mean:
        raise ValueError(
            f"factors: {name!r} has no curvature, so that no damage can be predicted: fit on other "
            "data, or leave it out of the targets"
        )
    curvature = often * torch.outer(*(each.values.to(gradient.device) for each in bases)).float()
    step = out.T @ gradient @ inputs
    step /= -(curvature + damping * mean)
    before = out.T @ change @ inputs
    damage = Parabola(
        0.5 * _weighted(curvature, before, before),
        _weighted(curvature, before, step),
        0.5 * _weighted(curvature, step, step),
    )
    return out @ step @ inputs.T, damage


def _weighted(curvature: Tensor, one: Tensor, other: Tensor) -> float:
    return float((curvature * one * other).sum(dtype=torch.float64))
