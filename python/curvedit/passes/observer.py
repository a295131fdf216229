"""Watches the targets in a model's passes: inputs ``a`` and output gradients ``g``.

Hooks on the targets pair the inputs of each call with its output gradients and pass both to an
accumulator. They also find targets that are called with the very same tensor, which share one
input factor, and targets whose inputs are changed in place after they were seen.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from curvedit.data import Batch
from curvedit.models import ExpertMap, Rows, routed


@dataclass(frozen=True)
class Call:
    """One forward call of a target."""

    name: str
    inputs: Tensor  # (rows, d_in)
    leads: bool  # whether this is the first target called with this very input
    weight: Tensor | None  # (rows,) float32: 1 in contributing rows, else 0; None if all contribute
    contributing: int  # number of contributing rows
    sequences: int  # number of whole sequences that the rows form; 0 if they are parts of sequences


# Takes a call, its output gradients (rows, d_out), and the squared norms (rows,) of its inputs and
# gradients, both 0 in rows that do not contribute.
Sink = Callable[[Call, Tensor, Tensor, Tensor], None]


class NoGradientError(RuntimeError):
    """A target was called, but the loss does not depend on it."""


class Observation:
    """The targets' calls in one forward pass, each waiting for its gradient."""

    def __init__(self, batch: Batch, start: int, stop: int | None) -> None:
        """Observe a pass over positions ``start … stop - 1`` of the batch."""
        self.batch = batch
        self.positions = slice(start, stop)
        self.leaves: list[Tensor] = []  # leaves of the graph, besides the inputs given to it
        self.seen: dict[tuple[Any, ...], tuple[str, Tensor]] = {}
        self.inputs: dict[str, Counter[tuple[Any, ...]]] = {}  # keys of ``seen``, of each target
        self.weights: dict[tuple[int, ...], tuple[Tensor | None, int]] = {}
        self.pending: list[str] = []

    def close(self) -> None:
        """Release every tensor.

        Raises:
            NoGradientError: a target was called but received no gradient.
        """
        self.leaves.clear()
        self.seen.clear()
        self.inputs.clear()
        if self.pending:
            raise NoGradientError(
                f"targets: the loss does not depend on {self.pending[-1]!r} "
                f"in batch {self.batch.index}; leave it out"
            )


class Observer:
    """Passes every call of the targets, with its gradients, to a sink."""

    def __init__(self, targets: Mapping[str, nn.Module], sink: Sink, *, positions: str) -> None:
        """Prepare to observe these linear maps; ``positions`` is "all" or "first" (classifiers)."""
        self.targets = dict(targets)
        self.sink = sink
        self.positions = positions
        self.copied: set[str] = set()  # targets whose inputs are copied when they are seen
        self.changed: set[str] = set()  # targets whose inputs were changed in place since
        self.alone: set[str] = set()  # targets that never share an input factor
        self.apart: dict[str, str] = {}  # target -> leader, whose inputs are the same in part only
        self.tokens = dict.fromkeys(targets, 0)  # contributing positions of each target
        self.summed = 0  # calls that were passed to the sink
        self.leaders: dict[str, str] = {}  # target -> first target fed by the same tensor
        self._observation: Observation | None = None
        self._totals: list[tuple[str, str, Tensor]] = []

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Register hooks on the targets inside the block; they act only while observing."""
        with ExitStack() as stack:
            stack.enter_context(routed(self.targets))
            for name, module in self.targets.items():
                handle = module.register_forward_hook(self._hook(name), with_kwargs=True)
                stack.callback(handle.remove)
            yield

    @contextmanager
    def observing(
        self, batch: Batch, start: int = 0, stop: int | None = None
    ) -> Iterator[Observation]:
        """Record the targets' calls inside the block.

        Yields:
            The observation; close it after the backward pass.
        """
        self._observation = Observation(batch, start, stop)
        try:
            yield self._observation
            self._compare_inputs(self._observation)
        finally:
            self._observation = None

    def require_finite(self, batch: Batch) -> None:
        """Refuse NaN and infinity in the activations and gradients since the last call.

        Raises:
            ValueError: some value is not finite; the message names the target and the batch.
        """
        if not self._totals:
            return
        finite = torch.stack([total.isfinite() for _, _, total in self._totals]).tolist()
        for (name, what, _), good in zip(self._totals, finite, strict=True):
            if not good:
                raise ValueError(
                    f"model: the {what} of {name!r} are not finite in batch {batch.index}; check "
                    "the weights, the inputs and the dtype (float16 overflows where bfloat16 does "
                    "not)"
                )
        self._totals.clear()

    def require_unchanged(self, batch: Batch) -> None:
        """Refuse inputs that were changed in place after they were seen, and not copied.

        Raises:
            RuntimeError: there are some, which the first batch did not show.
        """
        if changed := sorted(self.changed - self.copied):
            raise RuntimeError(
                f"targets: the input of {changed[0]!r} was changed in place after the target had "
                f"used it, in batch {batch.index} but not in the first; leave the target out"
            )

    def require_shared(self, batch: Batch) -> None:
        """Refuse targets that share a factor but not, or no longer, all of their inputs.

        Raises:
            RuntimeError: there are some, which the first batch did not show.
        """
        if apart := sorted(self.apart.keys() - self.alone):
            raise RuntimeError(
                f"targets: {apart[0]!r} and {self.apart[apart[0]]!r} share only some of their "
                f"inputs in batch {batch.index}, unlike in the first; fit the two separately"
            )

    def _hook(self, name: str) -> Any:
        def hook(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
        ) -> None:
            if self._observation is not None and torch.is_grad_enabled():
                inputs = args[0] if args else next(iter(kwargs.values()))
                rows = module.rows if isinstance(module, ExpertMap) else None
                self._forward(self._observation, name, inputs, output, rows)

        return hook

    def _forward(
        self,
        observation: Observation,
        name: str,
        inputs: Tensor,
        output: Tensor,
        rows: Rows | None,
    ) -> None:
        inputs = inputs.detach()
        leading = tuple(inputs.shape[:-1])
        if rows is not None:
            weight, contributing = self._expert_weights(observation, name, rows)
        else:
            if leading not in observation.weights:
                observation.weights[leading] = self._row_weights(observation, name, leading)
            weight, contributing = observation.weights[leading]
        leads = self._leader(observation, name, inputs) == name
        version = inputs._version
        original = inputs
        if name in self.copied:
            inputs = inputs.clone()
        whole = observation.positions == slice(0, None) and rows is None
        sequences = observation.batch.samples.shape[0] if whole else 0
        call = Call(
            name, inputs.reshape(-1, inputs.shape[-1]), leads, weight, contributing, sequences
        )
        observation.pending.append(name)

        def backward(gradient: Tensor) -> None:
            if original._version != version:
                self.changed.add(name)
            gradients = gradient.detach().reshape(-1, gradient.shape[-1])
            input_norms, gradient_norms = (
                _squared_norms(each, weight) for each in (call.inputs, gradients)
            )
            self._totals.append((name, "inputs", input_norms.sum()))
            self._totals.append((name, "output gradients", gradient_norms.sum()))
            self.summed += 1
            self.sink(call, gradients, input_norms, gradient_norms)
            self.tokens[name] += contributing
            observation.pending.remove(name)

        if not output.requires_grad:
            # The graph starts here. Its leaf is an added scalar rather than the output itself,
            # because later code may modify the output in place.
            leaf = torch.zeros((), dtype=output.dtype, device=output.device, requires_grad=True)
            observation.leaves.append(leaf)
            output.add_(leaf)
        output.register_hook(backward)

    def _leader(self, observation: Observation, name: str, inputs: Tensor) -> str:
        """Return the first target that was called with this very tensor in this pass."""
        if name in self.alone:
            return self.leaders.setdefault(name, name)
        key = (inputs.data_ptr(), inputs.shape, inputs.stride(), inputs.dtype, inputs._version)
        # The tensor is kept with the name, so that its memory cannot be reused for another tensor.
        leader, _ = observation.seen.setdefault(key, (name, inputs))
        observation.inputs.setdefault(name, Counter())[key] += 1
        known = self.leaders.setdefault(name, leader)
        if known != leader:
            self.apart[name] = leader if known == name else known
        return leader

    def _compare_inputs(self, observation: Observation) -> None:
        """Find targets that share an input with a leader that was also called with others."""
        for name, leader in self.leaders.items():
            if observation.inputs.get(name) != observation.inputs.get(leader):
                self.apart.setdefault(name, leader)

    def _row_weights(
        self, observation: Observation, name: str, shape: tuple[int, ...]
    ) -> tuple[Tensor | None, int]:
        """Return ``Call.weight`` and ``Call.contributing`` for a tensor ``(*shape, d)``."""
        batch = observation.batch
        contributing = batch.contributing
        if contributing is not None:
            contributing = contributing[:, observation.positions]
        size, rows = batch.samples.shape[0], math.prod(shape)
        if batch.terms is None:
            if self.positions == "first" and len(shape) > 1 and shape[0] == size:
                first = torch.zeros(shape, device=batch.samples.device)
                first[:, 0] = 1.0
                return (None if shape[1] == 1 else first.reshape(-1)), rows // shape[1]
            if contributing is None or shape == (size,):
                if shape and shape[0] % size == 0:
                    return None, rows
                contributing = None
        spread = None if contributing is None else _spread(contributing, shape)
        held = batch.contributing_on_host  # counts do not wait for a GPU
        if spread is None or held is None:
            expected = (size, "...") if contributing is None else tuple(contributing.shape)
            raise ValueError(
                f"targets: {name!r}: expected inputs of leading shape {expected}, batch and "
                f"positions, to tell which rows contribute, got {shape}; leave this target out"
            )
        held = held[:, observation.positions]
        number = int(held.sum()) * (rows // max(1, held.numel()))
        return (None if number == rows else spread.reshape(-1).float()), number

    def _expert_weights(
        self, observation: Observation, name: str, rows: Rows
    ) -> tuple[Tensor | None, int]:
        """The same for the rows that an expert was given."""
        batch = observation.batch
        if self.positions == "first":
            raise ValueError(
                f"targets: {name!r}: expected inputs of all positions, to tell the first ones, got "
                "those of an expert; leave the experts out"
            )
        contributing, held = batch.contributing, batch.contributing_on_host
        if contributing is None or held is None:
            return None, len(rows.index)
        contributing = contributing[:, observation.positions].reshape(-1)
        held = held[:, observation.positions].reshape(-1)
        if len(contributing) != rows.positions:
            raise ValueError(
                f"targets: {name!r}: expected experts chosen for {len(contributing)} positions, to "
                f"tell which rows contribute, got {rows.positions}; leave the experts out"
            )
        number = int(held[rows.on_host].sum())
        return (None if number == len(rows.index) else contributing[rows.index].float()), number


def _spread(contributing: Tensor, shape: tuple[int, ...]) -> Tensor | None:
    """Bring ``(B, T)`` to ``(B, T, ...)`` or ``(B T,)``; None if ``shape`` is neither."""
    if shape == (contributing.numel(),):
        return contributing.reshape(shape)
    if shape[:2] != tuple(contributing.shape):
        return None
    return contributing.reshape(shape[:2] + (1,) * (len(shape) - 2)).expand(shape)


def _squared_norms(rows: Tensor, weight: Tensor | None) -> Tensor:
    """Return ``|row|^2`` in float32; 0 where the weight is 0, even if the row holds NaN."""
    norms = torch.linalg.vector_norm(
        rows, dim=-1, dtype=torch.promote_types(rows.dtype, torch.float32)
    )
    squared: Tensor = norms.float().square()
    return squared if weight is None else squared.where(weight > 0, 0.0)
