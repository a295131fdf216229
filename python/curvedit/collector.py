"""From what flows through the targets, inputs ``a`` and output gradients ``g``, to sums.

Hooks on the targets see ``a`` in the forward pass and ``g`` in the backward pass. Each is reduced
at once by ``syrk_accumulate``; targets called with the very same tensor share one ``A``.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from curvedit import ops
from curvedit.batches import Batch
from curvedit.kernels import tiles

_ACCEPTED = (torch.float32, torch.bfloat16, torch.float16)


@dataclass
class _Call:
    """One forward call of a target."""

    name: str
    inputs: Tensor  # (rows, d_in)
    norms: Tensor  # (rows,) |a|^2, float32; 0 where a row does not count
    weight: Tensor | None  # (rows,) 0 or 1, float32; None if all count
    leaf: Tensor | None  # its output, where the graph begins there


class Collector:
    """Accumulates the factor sums of the targets while it observes a batch."""

    def __init__(self, targets: Mapping[str, nn.Module], *, weighted: bool, positions: str) -> None:
        """Collect for the given linear maps; ``positions`` is "all" or "first" (classifiers only)."""
        self.targets = dict(targets)
        self.weighted = weighted
        self.positions = positions
        self.sums: dict[str, Tensor] = {}
        self.tokens = dict.fromkeys(targets, 0)
        self.leaders: dict[str, str] = {}  # target -> first target fed by the same tensor
        self._batch: Batch | None = None
        self._slice: tuple[int, int | None] = (0, None)
        self._calls: list[_Call] = []
        self._seen: dict[tuple[Any, ...], tuple[str, Tensor]] = {}
        self._pending = 0
        self._totals: list[tuple[str, str, Tensor]] = []

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hooks stand on the targets inside this block; they act only while observing."""
        handles = [
            module.register_forward_hook(self._hook(name), with_kwargs=True) for name, module in self.targets.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def observing(self, batch: Batch, start: int = 0, stop: int | None = None) -> Iterator[None]:
        """Act on the calls inside: a forward over positions ``start … stop - 1``, then a backward.

        Raises:
            RuntimeError: a target was called but no gradient came back to it.
        """
        self._batch, self._slice = batch, (start, stop)
        try:
            yield
            if self._pending:
                raise RuntimeError(
                    f"targets: the loss does not depend on {self._calls[-1].name!r} in batch {batch.index}; "
                    "leave it out"
                )
        finally:
            self._batch, self._pending = None, 0
            self._calls.clear()
            self._seen.clear()

    def leaves(self) -> list[Tensor]:
        """Outputs at which the graph of the observed pass begins, apart from its given inputs."""
        return [call.leaf for call in self._calls if call.leaf is not None]

    def require_finite(self, batch: Batch) -> None:
        """Raise if any activation or gradient since the last call was NaN or infinite.

        Raises:
            ValueError: names the target and the batch.
        """
        if not self._totals:
            return
        finite = torch.stack([total.isfinite() for _, _, total in self._totals]).tolist()
        for (name, what, _), good in zip(self._totals, finite, strict=True):
            if not good:
                raise ValueError(
                    f"model: the {what} of {name!r} are not finite in batch {batch.index}; "
                    "check the weights, the inputs and the dtype (float16 overflows where bfloat16 does not)"
                )
        self._totals.clear()

    def _hook(self, name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor | None:
            if self._batch is None or not torch.is_grad_enabled():
                return None
            return self._forward(name, args[0] if args else next(iter(kwargs.values())), output)

        return hook

    def _forward(self, name: str, inputs: Tensor, output: Tensor) -> Tensor | None:
        batch = self._batch
        if batch is None:
            raise RuntimeError("collector: expected a batch under observation")
        inputs = inputs.detach()
        weight = self._row_weights(batch, name, tuple(inputs.shape[:-1]))
        rows = inputs.reshape(-1, inputs.shape[-1])
        norms = _squared_norms(rows, weight)
        self._totals.append((name, "inputs", norms.sum()))
        leader = self._leader(name, inputs)
        if leader == name:
            self._accumulate(f"A/{name}", rows, weight)
        leaf = None
        if not output.requires_grad:
            leaf = output.detach().requires_grad_()
        call = _Call(name, rows, norms, weight, leaf)
        self._calls.append(call)
        self._pending += 1
        (output if leaf is None else leaf).register_hook(lambda gradient: self._backward(call, gradient))
        return None if leaf is None else leaf.clone()  # a clone may be written to in place, a leaf not

    def _backward(self, call: _Call, gradient: Tensor) -> None:
        rows = gradient.detach().reshape(-1, gradient.shape[-1])
        norms = _squared_norms(rows, call.weight)
        self._totals.append((call.name, "output gradients", norms.sum()))
        self._accumulate(f"G/{call.name}", rows, call.weight)
        if self.weighted:
            self._accumulate(f"A_w/{call.name}", call.inputs, norms)
            self._accumulate(f"G_w/{call.name}", rows, call.norms)
        counted = rows.shape[0] if call.weight is None else int(call.weight.sum())
        self.tokens[call.name] += counted
        self._pending -= 1

    def _leader(self, name: str, inputs: Tensor) -> str:
        """The first target called with this very tensor in this pass."""
        key = (inputs.data_ptr(), inputs.shape, inputs.stride(), inputs.dtype, inputs._version)
        # the tensor is kept beside the name, so that its memory is not given to another meanwhile
        leader, _ = self._seen.setdefault(key, (name, inputs))
        known = self.leaders.setdefault(name, leader)
        if known != leader:
            raise RuntimeError(
                f"targets: {name!r} shared its input with {known!r} before and with {leader!r} in batch "
                f"{self._batch.index if self._batch else '?'}; fit the two separately"
            )
        return leader

    def _accumulate(self, key: str, rows: Tensor, weight: Tensor | None) -> None:
        if rows.dtype not in _ACCEPTED:
            rows = rows.float()
        if key not in self.sums:
            self.sums[key] = tiles.zeros(rows.shape[1], device=rows.device)
        ops.call("syrk_accumulate", self.sums[key], rows, weight)

    def _row_weights(self, batch: Batch, name: str, shape: tuple[int, ...]) -> Tensor | None:
        """0 or 1 per row of a tensor ``(*shape, d)``; None if all count."""
        counts = batch.mask if batch.counts is None else batch.counts[:, slice(*self._slice)]
        size = batch.samples.shape[0]
        if batch.counts is None:
            if self.positions == "first" and len(shape) > 1 and shape[0] == size:
                counts = torch.zeros(shape, dtype=torch.bool, device=batch.samples.device)
                counts[:, 0] = True
            elif counts is None or shape == (size,):
                if shape and shape[0] % size == 0:
                    return None
                counts = None
        if counts is None or shape not in (tuple(counts.shape), (counts.numel(),)):
            expected = (size, "...") if counts is None else tuple(counts.shape)
            raise ValueError(
                f"targets: {name!r} is fed a tensor of leading shape {shape}; expected {expected}, batch and "
                "positions, to tell which rows count; leave this target out"
            )
        return None if bool(counts.all()) else counts.reshape(-1).float()


def _squared_norms(rows: Tensor, weight: Tensor | None) -> Tensor:
    """``|row|^2`` in float32, 0 where the weight is 0, whatever stands there."""
    norms = torch.linalg.vector_norm(rows, dim=-1, dtype=torch.promote_types(rows.dtype, torch.float32))
    squared: Tensor = norms.float().square()
    return squared if weight is None else squared.where(weight > 0, 0.0)
