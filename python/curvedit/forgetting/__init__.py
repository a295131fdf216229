"""Stage 3, targeted: Factors and the passages to forget in, edited weights out."""

from curvedit.forgetting.first_step import FirstStep, first_steps
from curvedit.forgetting.outcome import FORGOTTEN, NEAR
from curvedit.forgetting.stage import DAMPING, STEPS, forget, require_numbers

__all__ = [
    "DAMPING",
    "FORGOTTEN",
    "NEAR",
    "STEPS",
    "FirstStep",
    "first_steps",
    "forget",
    "require_numbers",
]
