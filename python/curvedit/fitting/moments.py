"""The first pass's accumulator: inputs ``a`` and gradients ``g`` in, sums of second moments out.

The sums are of ``a a^T`` and ``g g^T``, and of the same weighted by ``|g|^2`` and ``|a|^2``.
"""

import torch
from torch import Tensor

from curvedit.factors import Key
from curvedit.ops import Record, choose, tiles
from curvedit.passes import Call

_ACCEPTED = (torch.float32, torch.bfloat16, torch.float16)


class Moments:
    """Tile-packed float32 sums ``A`` and ``G`` and, if ``weighted``, ``A_w`` and ``G_w``."""

    def __init__(self, *, weighted: bool) -> None:
        """Start empty; a sum is created when its target is first called."""
        self.weighted = weighted
        self.sums: dict[Key, Tensor] = {}
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
            plain = [self._sum(Key(kind, call.name), rows)] if leads else []
            weighted = [self._sum(Key(f"{kind}_w", call.name), rows)] if self.weighted else []
            if plain and weighted:
                op, arguments = (
                    "syrk_accumulate_pair",
                    (*plain, *weighted, rows, norms, call.weight),
                )
            elif plain or weighted:
                op, arguments = (
                    "syrk_accumulate",
                    (*plain, *weighted, rows, norms if weighted else call.weight),
                )
            else:
                continue
            implementation = choose(op, *arguments, trusted=True)
            implementation(*arguments)
            self.record.used(implementation)

    def _sum(self, key: Key, rows: Tensor) -> Tensor:
        if key not in self.sums:
            self.sums[key] = tiles.zeros(rows.shape[1], device=rows.device)
        return self.sums[key]
