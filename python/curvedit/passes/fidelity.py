"""The self-check before a fit: what is assumed about a model is compared with what it does.

A small slice of the first batch is run twice, once with the whole model's graph and once block by
block, and the factors of every target are compared, as ``A P`` and ``G P`` with a few random
columns ``P``. They differ if the blocks do not form a chain: a key-value cache that stays on, keys
shared between layers, a sum over the outputs of all layers. The labels of the slice are drawn
uniformly, so that rounding of the logits cannot change them.
"""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from curvedit.data import Batch
from curvedit.models import Stack, is_quantised, owners_of, weight_of
from curvedit.passes.loss import Loss
from curvedit.passes.observer import Call, Observer
from curvedit.passes.streaming import NotStreamableError, streamed_backward, whole_backward

_POSITIONS = 32  # of a sequence
_CONTEXT = 8  # of them before the first loss term
_COLUMNS = 4  # of the random matrix
_ROUNDING = 1  # times the epsilon of the dtype, for a relative difference of norms
_EXPERTS = 8  # likewise, of a layer of experts, whose sums may be in another order
_LEAK = 1e-2  # of the largest gradient, that may reach a position after the last loss term
_LEAST = 1e-4  # relative difference that is never counted, whatever the dtype


@dataclass(frozen=True)
class Fidelity:
    """What the self-check found."""

    reason: str | None  # why the model cannot be run block by block; None if it can
    copied: frozenset[str]  # targets whose inputs are changed in place after they were seen
    alone: frozenset[str]  # targets that share only some of their inputs with others
    difference: float  # largest relative difference of a factor, |streamed - whole| / |whole|
    seconds: float

    def to_json(self) -> dict[str, float | str | list[str]]:
        """The entry of the provenance."""
        return {
            "difference": float(f"{self.difference:.3g}"),
            "seconds": round(self.seconds, 3),
            **({"reason": self.reason} if self.reason else {}),
            **({"inputs_copied": sorted(self.copied)} if self.copied else {}),
            **({"inputs_apart": sorted(self.alone)} if self.alone else {}),
        }


def check_fidelity(
    model: nn.Module,
    stack: Stack | None,
    batch: Batch,
    objective: Loss,
    observer: Observer,
    *,
    logits_bytes: int,
) -> Fidelity:
    """Run a slice of a batch, and tell how the model has to be run.

    Args:
        model: Frozen.
        stack: Its blocks; None if there are none.
        batch: The first batch.
        objective: The loss.
        observer: Of the targets, not attached; nothing is added to its sums.
        logits_bytes: Bound on the memory of logits and what the loss makes of them.

    Raises:
        ValueError: a target does not compute ``y = W a + b``.
        NoGradientError: the loss does not depend on a target.
    """
    start = time.perf_counter()
    part = _small_slice(batch)
    objective = objective.for_check()
    whole = _Sketch(observer)
    with whole.observer.attached(), _computing(observer.targets):
        whole_backward(model, part, objective, whole.observer)
    whole.require_order(part)
    reason, difference, alone = None, 0.0, whole.observer.apart
    if stack is not None:
        streamed = _Sketch(observer)
        try:
            with streamed.observer.attached():
                streamed_backward(
                    model,
                    stack,
                    part,
                    objective,
                    streamed.observer,
                    inputs_on=None,
                    logits_bytes=logits_bytes,
                )
        except NotStreamableError as error:
            reason = str(error)
        except Exception as error:  # noqa: BLE001 - whatever it is, the other way remains
            first = f"{type(error).__name__}: {error}".splitlines()[0]
            reason = f"run block by block it fails ({first[:120]})"
        else:
            difference, at = whole.difference(streamed)
            if not difference <= whole.tolerance:
                reason = (
                    f"run block by block, the factors of {at!r} differ by {difference:.2g} from an "
                    "ordinary backward pass, so something else than the hidden state passes "
                    "between the blocks"
                )
            else:
                alone = streamed.observer.apart
    copied = frozenset(whole.observer.changed)
    return Fidelity(reason, copied, frozenset(alone), difference, time.perf_counter() - start)


class _Sketch:
    """Products of a pass's ``A`` and ``G`` with random columns, by target."""

    def __init__(self, observer: Observer) -> None:
        self.observer = Observer(observer.targets, self.add, positions=observer.positions)
        self.observer.copied = set(observer.targets)
        self.products: dict[tuple[str, str], Tensor] = {}
        self.tolerance = _LEAST
        self.left_out: dict[str, list[tuple[Tensor, Tensor]]] = {}  # gradients, weights of rows

    def add(self, call: Call, gradients: Tensor, *_: Tensor) -> None:
        if call.weight is not None:
            self.left_out.setdefault(call.name, []).append((gradients, call.weight))
        for kind, rows in (("A", call.inputs), ("G", gradients)):
            if rows.dtype.is_floating_point:
                self.tolerance = max(self.tolerance, _ROUNDING * torch.finfo(rows.dtype).eps)
            counted = rows.double()
            if call.weight is not None:
                counted = counted.where(call.weight[:, None] > 0, 0.0)
            product = counted.T @ (counted @ _random_columns(counted))
            key = kind, call.name
            self.products[key] = self.products.get(key, 0.0) + product

    def require_order(self, batch: Batch) -> None:
        """Refuse targets whose rows are as many as the positions, but in another order.

        Raises:
            ValueError: a gradient reaches a row that would be a position after the last loss term.
        """
        if batch.terms is None or batch.mask is not None:  # padding may leak into the positions
            return
        for name, calls in self.left_out.items():
            for gradients, weight in calls:
                norms = gradients.double().norm(dim=1)
                if not norms[weight == 0].max() <= _LEAK * norms.max():
                    raise ValueError(
                        f"targets: expected the rows of {name!r} in the order of batch and "
                        "positions, got another (time first, or sorted by expert); leave it out"
                    )

    def difference(self, other: "_Sketch") -> tuple[float, str]:
        """The largest relative difference, and the target it belongs to."""
        names = sorted({*self.products, *other.products})
        if not names:
            return 0.0, ""
        return max((self._difference(other, key), key[1]) for key in names)

    def _difference(self, other: "_Sketch", key: tuple[str, str]) -> float:
        one, two = self.products.get(key), other.products.get(key)
        if one is None or two is None:
            return math.inf
        size = float(one.norm())
        apart = float((one - two).norm())
        return apart / size if size else math.inf if apart else 0.0


def _random_columns(rows: Tensor) -> Tensor:
    """A matrix ``(d, 4)`` that depends on ``d`` alone."""
    generator = torch.Generator().manual_seed(0)
    columns = torch.randn(rows.shape[1], _COLUMNS, dtype=torch.float64, generator=generator)
    return columns.to(rows.device)


@contextmanager
def _computing(targets: Mapping[str, nn.Module]) -> Iterator[None]:
    """Inside, refuse targets whose output is not ``W a + b``."""

    def checking(name: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if is_quantised(module):
                return
            inputs = args[0] if args else next(iter(kwargs.values()))
            expected = F.linear(inputs.detach(), weight_of(module), getattr(module, "bias", None))
            apart = (output.detach() - expected).double().nan_to_num(0.0).norm()
            tolerance = max(_LEAST, 4 * torch.finfo(expected.dtype).eps)
            if not apart <= tolerance * expected.double().nan_to_num(0.0).norm():
                raise ValueError(
                    f"targets: expected {name!r} to compute y = W a + b, got a "
                    f"{type(module).__name__} whose output is another; leave it out"
                )

        return hook

    with ExitStack() as hooks:
        for name, module in targets.items():
            handle = module.register_forward_hook(checking(name), with_kwargs=True)
            hooks.callback(handle.remove)
        for name, owner in owners_of(targets).items():
            handle = owner.register_forward_hook(_routing(name), with_kwargs=True)
            hooks.callback(handle.remove)
        yield


def _routing(name: str) -> Any:
    """A hook that refuses experts which compute something else when they are called one by one."""

    def hook(module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
        with torch.no_grad():
            expected = type(module).forward(module, *args, **kwargs)
        apart = (output.detach() - expected).double().norm()
        tolerance = max(_LEAST, _EXPERTS * torch.finfo(expected.dtype).eps)
        if not apart <= tolerance * expected.double().norm():
            raise ValueError(
                f"targets: expected the experts of {name!r} to compute what each does one by one, "
                f"got a {type(module).__name__} whose output is another; leave the experts out"
            )

    return hook


def _small_slice(batch: Batch) -> Batch:
    """Two rows of the batch, the fullest and the most padded, and 32 positions of them.

    Positions are cut only where it is known how. The tensors are copies, since a model may write
    to its inputs.
    """
    part = batch.take(_two_rows(batch)) if batch.divisible and batch.task != "custom" else batch
    if part.terms is not None:
        first = int(part.terms.any(0).nonzero()[0])
        start = max(0, min(first - _CONTEXT, part.terms.shape[1] - _POSITIONS))
        part = _without_last_terms(part.span(start, start + _POSITIONS) or part)
    return part.copied()


def _without_last_terms(batch: Batch) -> Batch:
    """The last positions of the first row without a loss term, so that they do not count."""
    if batch.terms is None:
        return batch
    terms = batch.terms.clone()
    terms[0, -2:] = False
    return replace(batch, terms=terms) if terms[0].any() else batch


def _two_rows(batch: Batch) -> list[int]:
    size = batch.samples.shape[0]
    if batch.terms is None:
        return list(range(min(size, 1)))
    counts = batch.terms.sum(1)
    fullest = int(counts.argmax())
    emptiest = int(counts.where(counts > 0, counts.max()).argmin())
    if fullest == emptiest and size > 1:  # no padding; one row would not show their order
        emptiest = (fullest + 1) % size
    return sorted({fullest, emptiest})
