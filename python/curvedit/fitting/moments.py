"""The first pass's accumulator: inputs ``a`` and gradients ``g`` in, sums of second moments out.

The sums are of ``a a^T`` and ``g g^T``, and of the same weighted by ``|g|^2`` and ``|a|^2``.
"""

import torch
from torch import Tensor

from curvedit.factors import Key
from curvedit.fitting.places import Place
from curvedit.ops import Record, choose
from curvedit.passes import Call

_ACCEPTED = (torch.float32, torch.bfloat16, torch.float16)


class Moments:
    """Tile-packed float32 sums ``A`` and ``G`` and, if ``weighted``, ``A_w`` and ``G_w``."""

    def __init__(self, place: Place, *, weighted: bool) -> None:
        """Start empty; a sum is created in its place when its target is first called."""
        self.place, self.weighted = place, weighted
        self.record = Record()

    def add(
        self, call: Call, gradients: Tensor, input_norms: Tensor, gradient_norms: Tensor
    ) -> None:
        """Add a call's inputs and output gradients ``(rows, d_out)``.

        The norms ``(rows,)`` are squared, and 0 in rows that do not contribute.
        """
        sides = (
            ("A", call.inputs, gradient_norms, call.leads),
            ("G", gradients, input_norms, True),
        )
        for kind, rows, norms, leads in sides:  # only the leader adds a shared input's plain sum
            rows = rows if rows.dtype in _ACCEPTED else rows.float()
            kinds = ([kind] if leads else []) + ([f"{kind}_w"] if self.weighted else [])
            if not kinds:
                continue
            keys = [Key(each, call.name) for each in kinds]
            with self.place.lent(keys, rows) as sums:
                op, weights = "syrk_accumulate", [norms if self.weighted else call.weight]
                if len(sums) == 2:
                    op, weights = "syrk_accumulate_pair", [norms, call.weight]
                arguments = (*sums, rows, *weights)
                implementation = choose(op, *arguments, trusted=True)
                implementation(*arguments)
            self.record.used(implementation)
