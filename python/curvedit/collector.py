"""From what flows through the targets, inputs ``a`` and output gradients ``g``, to sums.

Hooks on the targets see ``a`` in the forward pass and ``g`` in the backward pass. Each is reduced
at once by ``syrk_accumulate``; targets called with the very same tensor share one ``A``.
"""

import math
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


@dataclass(frozen=True)
class Call:
    """One forward call of a target."""

    name: str
    inputs: Tensor  # (rows, d_in)
    leads: bool  # whether no target was called with this very input before
    weight: Tensor | None  # (rows,) 0 or 1, float32; None if all count
    counted: int
    sequences: int  # that the rows make up, one after the other; 0 where they come in parts


class Observation:
    """The targets' calls in one forward pass, each of which awaits its gradient."""

    def __init__(self, batch: Batch, start: int, stop: int | None) -> None:
        """For a pass over positions ``start … stop - 1`` of the batch."""
        self.batch = batch
        self.positions = slice(start, stop)
        self.leaves: list[Tensor] = []  # where the graph begins, apart from its given inputs
        self.seen: dict[tuple[Any, ...], tuple[str, Tensor]] = {}
        self.weights: dict[tuple[int, ...], tuple[Tensor | None, int]] = {}
        self.pending: list[str] = []

    def close(self) -> None:
        """Let go of every tensor.

        Raises:
            RuntimeError: a target was called but no gradient came back to it.
        """
        self.leaves.clear()
        self.seen.clear()
        if self.pending:
            raise RuntimeError(
                f"targets: the loss does not depend on {self.pending[-1]!r} in batch {self.batch.index}; leave it out"
            )


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
        self._observation: Observation | None = None
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
    def observing(self, batch: Batch, start: int = 0, stop: int | None = None) -> Iterator[Observation]:
        """Act on the targets' calls inside; close what this yields after the backward pass."""
        self._observation = Observation(batch, start, stop)
        try:
            yield self._observation
        finally:
            self._observation = None

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
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
            if self._observation is not None and torch.is_grad_enabled():
                self._forward(self._observation, name, args[0] if args else next(iter(kwargs.values())), output)

        return hook

    def _forward(self, observation: Observation, name: str, inputs: Tensor, output: Tensor) -> None:
        inputs = inputs.detach()
        leading = tuple(inputs.shape[:-1])
        if leading not in observation.weights:
            observation.weights[leading] = self._row_weights(observation, name, leading)
        weight, counted = observation.weights[leading]
        leads = self._leader(observation, name, inputs) == name
        sequences = observation.batch.samples.shape[0] if observation.positions == slice(0, None) else 0
        call = Call(name, inputs.reshape(-1, inputs.shape[-1]), leads, weight, counted, sequences)
        observation.pending.append(name)

        def backward(gradient: Tensor) -> None:
            self._backward(call, gradient)
            observation.pending.remove(name)

        if not output.requires_grad:  # the graph begins here, at a number: what follows may write to the output
            leaf = torch.zeros((), dtype=output.dtype, device=output.device, requires_grad=True)
            observation.leaves.append(leaf)
            output.add_(leaf)
        output.register_hook(backward)

    def _backward(self, call: Call, gradient: Tensor) -> None:
        self.reduce(call, gradient.detach().reshape(-1, gradient.shape[-1]))
        self.tokens[call.name] += call.counted

    def reduce(self, call: Call, rows: Tensor) -> None:
        """Add a call's inputs and output gradients ``(rows, d_out)`` to the sums."""
        of_inputs, of_gradients = (_squared_norms(each, call.weight) for each in (call.inputs, rows))
        self._totals.append((call.name, "inputs", of_inputs.sum()))
        self._totals.append((call.name, "output gradients", of_gradients.sum()))
        name = call.name
        if self.weighted:
            self._accumulate(f"A/{name}" if call.leads else None, f"A_w/{name}", call.inputs, call.weight, of_gradients)
            self._accumulate(f"G/{name}", f"G_w/{name}", rows, call.weight, of_inputs)
        else:
            self._accumulate(f"A/{name}" if call.leads else None, None, call.inputs, call.weight, None)
            self._accumulate(f"G/{name}", None, rows, call.weight, None)

    def _leader(self, observation: Observation, name: str, inputs: Tensor) -> str:
        """The first target called with this very tensor in this pass."""
        key = (inputs.data_ptr(), inputs.shape, inputs.stride(), inputs.dtype, inputs._version)
        # the tensor is kept beside the name, so that its memory is not given to another meanwhile
        leader, _ = observation.seen.setdefault(key, (name, inputs))
        known = self.leaders.setdefault(name, leader)
        if known != leader:
            raise RuntimeError(
                f"targets: {name!r} shared its input with {known!r} before and with {leader!r} in batch "
                f"{observation.batch.index}; fit the two separately"
            )
        return leader

    def _accumulate(
        self, plain: str | None, weighted: str | None, rows: Tensor, mask: Tensor | None, weight: Tensor | None
    ) -> None:
        """Add to one sum or both; each is begun at zero."""
        if rows.dtype not in _ACCEPTED:
            rows = rows.float()
        for key in (plain, weighted):
            if key is not None and key not in self.sums:
                self.sums[key] = tiles.zeros(rows.shape[1], device=rows.device)
        if plain is not None and weighted is not None:
            ops.call("syrk_accumulate_pair", self.sums[plain], self.sums[weighted], rows, weight, mask)
        elif plain is not None:
            ops.call("syrk_accumulate", self.sums[plain], rows, mask)
        elif weighted is not None:
            ops.call("syrk_accumulate", self.sums[weighted], rows, weight)

    def _row_weights(self, observation: Observation, name: str, shape: tuple[int, ...]) -> tuple[Tensor | None, int]:
        """0 or 1 per row of a tensor ``(*shape, d)``, None if all count; and how many count."""
        batch = observation.batch
        counts = batch.mask if batch.counts is None else batch.counts[:, observation.positions]
        size, rows = batch.samples.shape[0], math.prod(shape)
        if batch.counts is None:
            if self.positions == "first" and len(shape) > 1 and shape[0] == size:
                counts = torch.zeros(shape, dtype=torch.bool, device=batch.samples.device)
                counts[:, 0] = True
            elif counts is None or shape == (size,):
                if shape and shape[0] % size == 0:
                    return None, rows
                counts = None
        if counts is None or shape not in (tuple(counts.shape), (counts.numel(),)):
            expected = (size, "...") if counts is None else tuple(counts.shape)
            raise ValueError(
                f"targets: {name!r} is fed a tensor of leading shape {shape}; expected {expected}, batch and "
                "positions, to tell which rows count; leave this target out"
            )
        counted = int(counts.sum())
        return (None if counted == rows else counts.reshape(-1).float()), counted


def _squared_norms(rows: Tensor, weight: Tensor | None) -> Tensor:
    """``|row|^2`` in float32, 0 where the weight is 0, whatever stands there."""
    norms = torch.linalg.vector_norm(rows, dim=-1, dtype=torch.promote_types(rows.dtype, torch.float32))
    squared: Tensor = norms.float().square()
    return squared if weight is None else squared.where(weight > 0, 0.0)
