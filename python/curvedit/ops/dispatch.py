"""Which implementation of an op runs: the only place that decides.

``choose`` checks an op's arguments against its contract and returns the implementation that runs them: call it
with the same arguments. ``explain`` says why each backend would or would not be chosen.

A backend can be asked for by name, with the argument ``backend`` or the environment variable
``CURVEDIT_BACKEND``. ``CURVEDIT_BACKEND=syrk_accumulate=wgmma,staircase_project=torch`` names one op each:
such a backend runs or raises. A bare name, ``CURVEDIT_BACKEND=wgmma``, applies to every op that has it and to
every call that it takes; a warning says which ops and calls it does not. A machine that cannot run it is an error.
"""

import functools
import importlib
import os
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from curvedit.ops.table import TABLE, Backend

VARIABLE = "CURVEDIT_BACKEND"


class Implementation(functools.partial[Any]):
    """One implementation of one op: call it with the op's arguments. A partial, so that a call adds no frame."""

    op: str
    backend: str
    variant: str  # the instruction set, for the CPU's kernels; else ""

    def __new__(cls, op: str, row: Backend, variant: str) -> "Implementation":
        """The implementation of a row of the table."""
        self = super().__new__(cls, _load(row.module, op))
        self.op, self.backend, self.variant = op, row.name, variant
        return self

    @property
    def label(self) -> str:
        """Backend and variant, as results record them."""
        return f"{self.backend} ({self.variant})" if self.variant else self.backend


class Record:
    """Which backends ran, for results to say so."""

    def __init__(self) -> None:
        """Begin with none."""
        self._labels: dict[str, dict[str, None]] = {}

    def used(self, implementation: Implementation) -> None:
        """Note an implementation."""
        self._labels.setdefault(implementation.op, {})[implementation.label] = None

    def summary(self) -> dict[str, str]:
        """Op to the labels of its backends, in the order in which they first ran."""
        return {op: ", ".join(labels) for op, labels in self._labels.items()}


class Wish(NamedTuple):
    """A backend that is asked for."""

    backend: str
    source: str  # who asks, for messages
    is_strict: bool  # asked for this op: it runs or raises


def operations() -> list[str]:
    """Names of all ops."""
    return list(TABLE)


def backends(op: str) -> list[str]:
    """Backends of ``op``, fastest first. Tests and benchmarks are parametrised over this list."""
    return [row.name for row in TABLE[op].backends]


def choose(
    op: str, *args: Any, backend: str | None = None, trusted: bool = False
) -> Implementation:
    """The implementation that runs ``op`` on these arguments.

    Args:
        op: One of :func:`operations`.
        args: The op's own arguments, all of them; a tensor comes first.
        backend: Asked for by name: it runs, or this raises. None asks the environment variable, then walks
            down the list.
        trusted: The caller vouches for what the arguments hold (weights >= 0, ascending offsets), so that
            they are not read: reading makes a GPU wait. Shapes are checked all the same.

    Raises:
        TypeError: a dtype is not the op's.
        ValueError: a shape, device or value is not the op's, or the environment variable makes no sense.
        RuntimeError: no backend can run this, or the one asked for cannot; the message gives every reason.
    """
    TABLE[op].check(*args, values=not trusted)
    wish = _wish(op) if backend is None else Wish(backend, "backend", is_strict=True)
    if wish is not None:
        row = _asked_for(op, args, wish)
        if row is not None:
            return Implementation(op, row, row.variant(*args))
    reasons = []
    for row in TABLE[op].backends:
        why = row.by_name_only or _refusal(row, args)
        if not why:
            return Implementation(op, row, row.variant(*args))
        reasons.append(f"{row.name} {why}")
    raise RuntimeError(f"{op}: {'; '.join(reasons)}")


def call(op: str, *args: Any, backend: str | None = None) -> Any:
    """Run ``op`` on ``args`` with the implementation that :func:`choose` picks."""
    return choose(op, *args, backend=backend)(*args)


def explain(op: str, *args: Any) -> dict[str, str]:
    """Every backend of ``op`` and why it cannot run these arguments, or "" where it can.

    Raises:
        TypeError: a dtype is not the op's.
        ValueError: a shape, device or value is not the op's.
    """
    TABLE[op].check(*args, values=True)
    return {row.name: _refusal(row, args) for row in TABLE[op].backends}


def why_by_name_only(op: str, backend: str) -> str:
    """Why an unforced choice passes a backend over, or ""."""
    return next(row.by_name_only for row in TABLE[op].backends if row.name == backend)


def parse_backends(text: str, name: str = VARIABLE) -> tuple[str, dict[str, str]]:
    """Take ``"wgmma"``, ``"syrk_accumulate=wgmma,staircase_project=torch"`` or a mixture apart.

    Args:
        text: Names, separated by commas; at most one of them bare.
        name: Where the text comes from, for messages.

    Returns:
        The bare name, or "", and the backend that is asked for by op.

    Raises:
        ValueError: an op or a backend does not exist, or more than one name is bare.
    """
    bare, by_op = "", dict[str, str]()
    for part in filter(None, map(str.strip, text.split(","))):
        op, separator, backend = map(str.strip, part.partition("="))
        if separator:
            if op not in TABLE:
                raise ValueError(f"{name}: expected one of the ops {operations()}, got {op!r}")
            if backend not in backends(op):
                raise ValueError(
                    f"{name}: expected a backend of {op}, one of {backends(op)}, got {backend!r}"
                )
            by_op[op] = backend
        elif bare:
            raise ValueError(
                f"{name}: expected one bare backend at most, got {bare!r} and {part!r}"
            )
        elif not any(part in backends(each) for each in TABLE):
            known = sorted({each for op in TABLE for each in backends(op)})
            raise ValueError(f"{name}: expected one of {known} or OP=BACKEND, got {part!r}")
        else:
            bare = part
    return bare, by_op


def _wish(op: str) -> Wish | None:
    """What the environment variable asks of an op; None where it leaves the choice to the op."""
    text = os.environ.get(VARIABLE, "")
    if not text:
        return None
    bare, by_op = _parsed(text)
    if op in by_op:
        return Wish(by_op[op], VARIABLE, is_strict=True)
    return Wish(bare, VARIABLE, is_strict=False) if bare and bare in backends(op) else None


@functools.cache
def _parsed(text: str) -> tuple[str, Mapping[str, str]]:
    """The variable's meaning; says once which ops a bare name does not apply to."""
    bare, by_op = parse_backends(text)
    others = [op for op in TABLE if bare and op not in by_op and bare not in backends(op)]
    if others:
        _say(
            f"{VARIABLE}={text}: no backend {bare!r} in {', '.join(others)}, which choose for themselves"
        )
    return bare, by_op


def _asked_for(op: str, args: tuple[Any, ...], wish: Wish) -> Backend | None:
    """The row that is asked for; None where a bare name does not take this call, which is said once."""
    row = next((row for row in TABLE[op].backends if row.name == wish.backend), None)
    if row is None:
        raise RuntimeError(f"{op}: has no backend {wish.backend!r}; it has {backends(op)}")
    why = row.unavailable(args[0].device)
    refused = "" if why else row.refuses(*args)
    if why or (refused and wish.is_strict):
        raise RuntimeError(f"{op}: {row.name} {why or refused}")
    if refused:
        _say(f"{wish.source}: {op} chooses for itself where {row.name} {refused}")
        return None
    return row


def _refusal(row: Backend, args: tuple[Any, ...]) -> str:
    return row.unavailable(args[0].device) or row.refuses(*args)


@functools.cache
def _say(message: str) -> None:
    """Warn once."""
    warnings.warn(message, stacklevel=2)


@functools.cache
def _load(module: str, op: str) -> Callable[..., Any]:
    loaded: Callable[..., Any] = getattr(importlib.import_module(module), op)
    return loaded
