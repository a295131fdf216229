"""Dispatch: chooses the backend that runs an op, explains the choice and records it.

``choose`` checks the arguments against the op's contract and returns an implementation, to be
called with the same arguments. ``explain`` says for each backend why it cannot run them.

A backend can be requested with the argument ``backend`` or with the environment variable
``CURVEDIT_BACKEND``. ``CURVEDIT_BACKEND=syrk_accumulate=wgmma,staircase_project=torch`` requests
one backend per op, and each runs or raises. A bare name, ``CURVEDIT_BACKEND=wgmma``, applies to
every op that has this backend and every call that the backend accepts; a warning lists the ops and
calls it does not apply to. If the machine cannot run the backend at all, that is an error.
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
    """One implementation of one op, called with the op's arguments.

    It is a ``functools.partial``, so that calling it adds no Python frame.
    """

    op: str
    backend: str
    variant: str  # the instruction set, for compiled CPU kernels; otherwise ""

    def __new__(cls, op: str, row: Backend, variant: str) -> "Implementation":
        """Load the implementation that a row of the table describes."""
        self = super().__new__(cls, _load(row.module, op))
        self.op, self.backend, self.variant = op, row.name, variant
        return self

    @property
    def label(self) -> str:
        """Backend and variant, as recorded in results."""
        return f"{self.backend} ({self.variant})" if self.variant else self.backend


class Record:
    """The backends that ran, to be recorded in results."""

    def __init__(self) -> None:
        """Start empty."""
        self._labels: dict[str, dict[str, None]] = {}

    def used(self, implementation: Implementation) -> None:
        """Record that an implementation ran."""
        self._labels.setdefault(implementation.op, {})[implementation.label] = None

    def summary(self) -> dict[str, str]:
        """Return, per op, the labels of its backends in the order in which they first ran."""
        return {op: ", ".join(labels) for op, labels in self._labels.items()}


class Wish(NamedTuple):
    """A request for a backend."""

    backend: str
    source: str  # the argument or variable it came from, for messages
    is_strict: bool  # requested for this very op, so it runs or raises


def operations() -> list[str]:
    """Return the names of all ops."""
    return list(TABLE)


def backends(op: str) -> list[str]:
    """Return the backends of ``op``, fastest first; tests and benchmarks run over this list."""
    return [row.name for row in TABLE[op].backends]


def choose(
    op: str, *args: Any, backend: str | None = None, trusted: bool = False
) -> Implementation:
    """Return the implementation that will run ``op`` on these arguments.

    Args:
        op: One of :func:`operations`.
        args: All of the op's arguments; the first is a tensor.
        backend: The backend to use; it runs, or this raises. None follows the environment
            variable, and failing that takes the first backend that accepts the arguments.
        trusted: The caller guarantees the values (weights >= 0, ascending offsets), so they are
            not read; reading them would stall a GPU. Shapes and dtypes are still checked.

    Raises:
        TypeError: an argument has a dtype that the op does not accept.
        ValueError: an argument has a shape, device or value that the op does not accept, or the
            environment variable is malformed.
        RuntimeError: no backend, or not the requested one, can run this; the message gives every
            reason.
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
    """Return, for each backend of ``op``, why it cannot run these arguments, or "" if it can.

    Raises:
        TypeError: an argument has a dtype that the op does not accept.
        ValueError: an argument has a shape, device or value that the op does not accept.
    """
    TABLE[op].check(*args, values=True)
    return {row.name: _refusal(row, args) for row in TABLE[op].backends}


def why_by_name_only(op: str, backend: str) -> str:
    """Return why a backend is chosen only when requested by name, or "" if it is not so."""
    return next(row.by_name_only for row in TABLE[op].backends if row.name == backend)


def parse_backends(text: str, name: str = VARIABLE) -> tuple[str, dict[str, str]]:
    """Parse ``"wgmma"``, ``"syrk_accumulate=wgmma,staircase_project=torch"`` or a mixture.

    Args:
        text: Comma-separated names, at most one of them bare.
        name: Where the text comes from, for messages.

    Returns:
        The bare name or "", and a mapping from op to requested backend.

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
                f"{name}: expected at most one bare backend, got {bare!r} and {part!r}"
            )
        elif not any(part in backends(each) for each in TABLE):
            known = sorted({each for op in TABLE for each in backends(op)})
            raise ValueError(f"{name}: expected one of {known} or OP=BACKEND, got {part!r}")
        else:
            bare = part
    return bare, by_op


def _wish(op: str) -> Wish | None:
    """Return what the environment variable requests for an op, or None if nothing."""
    text = os.environ.get(VARIABLE, "")
    if not text:
        return None
    bare, by_op = _parsed(text)
    if op in by_op:
        return Wish(by_op[op], VARIABLE, is_strict=True)
    return Wish(bare, VARIABLE, is_strict=False) if bare and bare in backends(op) else None


@functools.cache
def _parsed(text: str) -> tuple[str, Mapping[str, str]]:
    """Parse the variable; warn once about the ops that a bare name does not apply to."""
    bare, by_op = parse_backends(text)
    others = [op for op in TABLE if bare and op not in by_op and bare not in backends(op)]
    if others:
        _say(
            f"{VARIABLE}={text}: there is no backend {bare!r} for {', '.join(others)}; "
            "the default is used"
        )
    return bare, by_op


def _asked_for(op: str, args: tuple[Any, ...], wish: Wish) -> Backend | None:
    """Return the requested row; None, with one warning, if a bare name's backend refuses."""
    row = next((row for row in TABLE[op].backends if row.name == wish.backend), None)
    if row is None:
        raise RuntimeError(f"{op}: has no backend {wish.backend!r}; it has {backends(op)}")
    why = row.unavailable(args[0].device)
    refused = "" if why else row.refuses(*args)
    if why or (refused and wish.is_strict):
        raise RuntimeError(f"{op}: {row.name} {why or refused}")
    if refused:
        _say(f"{wish.source}: {op} uses its default where {row.name} {refused}")
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
