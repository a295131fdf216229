"""What a fit takes, counted before anything is loaded: memory by part, and operations.

Sums are counted exactly, as tile-packed float32; what a block keeps comes from a run without
numbers. The peak lies where the head runs, beside the last block's graph, or in a block's backward
pass. On an H200 it was within 7 % of the count (benchmarks/results/h200/fit_7b.json).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from curvedit.fitting.places import slots_of
from curvedit.models import (
    calls_per_position,
    find_targets,
    logits_room,
    maps_of,
    require_fits,
    shape_of,
    trace,
    vocabulary_of,
    weight_of,
)
from curvedit.ops import tiles

_LOGIT = 12  # bytes of a logit, its gradient, and a copy in another dtype
_SHARE = 0.95  # of a device's memory that can be used; the rest is lost between allocations


@dataclass(frozen=True)
class Plan:
    """The parts of a fit's memory, in bytes, for batches of ``rows`` sequences of ``length``."""

    rows: int
    length: int
    weights: int
    sums: int
    largest: int  # rows of the largest sum
    count: int  # number of sums
    inputs: int  # of all blocks from the lowest that holds a target
    graph: int  # of one block, with its gradients
    logits: int  # of all positions, if they were computed at once
    operations: Mapping[str, float]  # per position, about: in the "model" and for the "sums"

    def on_device(
        self, memory: int, *, sums_on_host: bool = False, inputs_on_host: bool = False
    ) -> int:
        """Bytes that the device holds at the peak, on one with so much memory."""
        fixed, per_row = self._parts(memory, sums_on_host, inputs_on_host)
        head = min(self.logits, logits_room(memory))
        return fixed + self.rows * per_row + head

    def on_host(self, *, sums_on_host: bool = False, inputs_on_host: bool = False) -> int:
        """Bytes that wait in the host's memory."""
        return self.sums * sums_on_host + self.inputs * inputs_on_host

    def most_rows(
        self, memory: int, *, sums_on_host: bool = False, inputs_on_host: bool = False
    ) -> int:
        """The most sequences of a batch that fit into the device's memory; 0 if not even one."""
        fixed, per_row = self._parts(memory, sums_on_host, inputs_on_host)
        room = int(_SHARE * memory) - fixed
        with_all = room // (per_row + self.logits // self.rows)  # logits of every position fit
        bounded = (room - logits_room(memory)) // per_row
        return max(0, with_all, bounded)

    def _parts(self, memory: int, sums_on_host: bool, inputs_on_host: bool) -> tuple[int, int]:
        """Bytes whatever the batch, and bytes of each of its sequences, without logits."""
        slots = slots_of(memory, self.largest, self.count)
        held = slots * tiles.numel(self.largest) * 4 if sums_on_host else self.sums
        each = self.graph + (0 if inputs_on_host else self.inputs)
        return self.weights + held, -(-each // self.rows)


def plan_fit(
    modules: nn.Module,
    targets: str | list[str],
    *,
    rows: int,
    length: int,
    dtype: torch.dtype,
    weighted: bool = True,
) -> Plan:
    """Count what :func:`fit` takes for a causal language model.

    Args:
        modules: The model; on the meta device it needs no memory.
        targets: Name patterns, as of :func:`fit`.
        rows: Sequences of a batch.
        length: Positions of a sequence.
        dtype: Precision of the weights and of what the model computes.
        weighted: Whether the norm-weighted sums are wanted too.

    Raises:
        ValueError: a pattern matches nothing, the sequences are too long for the model, it has no
            list of blocks, or it cannot be run on token ids alone.
    """
    maps = find_targets(modules, targets)
    require_fits("length", modules, length, 0)
    found = trace(modules, list(maps), rows=rows, length=length, dtype=dtype)
    shapes = {name: shape_of(module) for name, module in maps.items()}
    leaders = sorted({found.leaders.get(each, each) for each in maps})
    summed = [(name, shape[0]) for name, shape in shapes.items()] * (2 if weighted else 1)
    summed += [(name, shape[1]) for name, shape in shapes.items() if weighted]
    summed += [(name, shapes[name][1]) for name in leaders]
    sizes = [size for _, size in summed]
    often = {name: calls_per_position(each) for name, each in maps_of(modules).items()}
    item = dtype.itemsize
    held = sum(each.numel() for each in modules.parameters())
    return Plan(
        rows=rows,
        length=length,
        weights=item * held,
        sums=4 * sum(map(tiles.numel, sizes)),
        largest=max(sizes),
        count=len(sizes),
        inputs=found.hidden_bytes * found.blocks,
        graph=found.graph_bytes + found.widest_bytes,
        logits=_LOGIT * (vocabulary_of(modules) or 0) * rows * length,
        operations={
            "model": 6.0
            * sum(often[name] * weight_of(each).numel() for name, each in maps_of(modules).items()),
            "sums": sum(often[name] * size * (size + 1) for name, size in summed),
        },
    )
