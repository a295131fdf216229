"""Backward passes over data: the targets' inputs and output gradients, for whoever sums them.

A model with a list of blocks is run block by block, with one block's graph in memory at a time. The
stages that need gradients, ``fit`` and ``forget``, give the loss and the accumulator.
"""

from curvedit.passes.fidelity import Fidelity
from curvedit.passes.loss import Loss, LossFunction
from curvedit.passes.observer import Call, NoGradientError, Observer
from curvedit.passes.run import Accumulator, Keeper, Run

__all__ = [
    "Accumulator",
    "Call",
    "Fidelity",
    "Keeper",
    "Loss",
    "LossFunction",
    "NoGradientError",
    "Observer",
    "Run",
]
