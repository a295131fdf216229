"""Where the sums of a pass are between its batches: on the device that adds to them, or elsewhere.

All sums of a 7B model's MLP maps take 24 GiB, more than a 24 GB card has beside the weights. On the
host they wait for their turn: a pass asks for them in the same order in every batch, so the next
ones are copied to the device, and those just used back, while the device computes.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from curvedit.factors import Key
from curvedit.meter import total_memory
from curvedit.ops import tiles

_LEAST, _MOST = 4, 32  # slots; two may be in use, so that one more is not enough to copy ahead


class Place(Protocol):
    """Keeps tile-packed float32 sums by key."""

    def lent(self, keys: list[Key], rows: Tensor) -> AbstractContextManager[list[Tensor]]:
        """Lend sums of outer products of ``rows (n, d)``, on their device, to be added to.

        A sum begins at zero when it is first asked for.
        """

    def all(self) -> dict[Key, Tensor]:
        """Return every sum, complete."""

    def fill(self, sums: Mapping[Key, Tensor]) -> None:
        """Take the sums of an earlier pass, in place of those it has."""


class Resident:
    """Sums that stay on the device."""

    def __init__(self) -> None:
        """Start empty."""
        self._sums: dict[Key, Tensor] = {}

    @contextmanager
    def lent(self, keys: list[Key], rows: Tensor) -> Iterator[list[Tensor]]:
        """Lend them."""
        for key in keys:
            if key not in self._sums:
                self._sums[key] = tiles.zeros(rows.shape[1], device=rows.device)
            self._sums[key] = self._sums[key].to(rows.device)
        yield [self._sums[key] for key in keys]

    def all(self) -> dict[Key, Tensor]:
        """Return every sum."""
        return self._sums

    def fill(self, sums: Mapping[Key, Tensor]) -> None:
        """Take them; they come to the device when they are asked for."""
        self._sums = dict(sums)


class Copier(Protocol):
    """Copies between the device and the host, in the background; two directions at a time.

    An event is whatever says that something has happened; None says nothing.
    """

    def upload(self, target: Tensor, source: Tensor, after: Iterable[Any]) -> Any:
        """Copy to the device once these events have happened; return the event of its end."""

    def download(self, target: Tensor, source: Tensor, after: Iterable[Any]) -> Any:
        """Copy to the host once these events have happened; return the event of its end."""

    def computed(self) -> Any:
        """The event of the end of all that the device has been asked to compute so far."""

    def wait(self, event: Any) -> None:
        """Let the device compute nothing more before the event."""

    def settle(self) -> None:
        """Wait for every copy."""


@dataclass
class _Slot:
    """Memory of the device that holds one sum at a time."""

    memory: Tensor  # (numel,) of the largest sum
    free: Any = None  # event: what it held has been copied to the host
    ready: Any = None  # event: what it is to hold has been copied to it

    def view(self, like: Tensor) -> Tensor:
        return self.memory[: like.numel()].view(like.shape)


@dataclass
class _Sum:
    """A sum on the host."""

    value: Tensor
    whole: Any = None  # event: what was added last has been copied to it
    then: Key | None = None  # the sum that was asked for after this one, when it was last asked for


@dataclass
class OnHost:
    """Sums that wait on the host; a few of them at a time are on the device."""

    largest: int  # rows of the largest sum
    slots: int  # sums on the device at a time: one or two in use, the next ones, the last ones
    device: torch.device
    copier: Copier
    pinned: bool = True  # host memory that the device can copy from while it computes
    _sums: dict[Key, _Sum] = field(default_factory=dict)
    _free: deque[_Slot] = field(default_factory=deque)
    _ahead: dict[Key, _Slot] = field(default_factory=dict)  # copied, or being copied, to the device
    _last: Key | None = None

    def __post_init__(self) -> None:
        """Allocate the slots."""
        for _ in range(self.slots):
            memory = torch.empty(tiles.numel(self.largest), device=self.device)
            self._free.append(_Slot(memory, free=self.copier.computed()))

    @classmethod
    def beside(cls, device: torch.device, largest: int, sums: int) -> "OnHost":
        """Copy by streams of a CUDA device."""
        slots = slots_of(total_memory(device), largest, sums)
        return cls(largest, slots, device, _Streams(device))

    @contextmanager
    def lent(self, keys: list[Key], rows: Tensor) -> Iterator[list[Tensor]]:
        """Lend them; the next ones, as far as known, are copied meanwhile."""
        slots = [self._slot(key, rows.shape[1]) for key in keys]
        self._look_ahead(keys)
        yield [slot.view(self._sums[key].value) for key, slot in zip(keys, slots, strict=True)]
        done = self.copier.computed()
        for key, slot in zip(keys, slots, strict=True):
            own = self._sums[key]
            own.whole = slot.free = self.copier.download(own.value, slot.view(own.value), [done])
            self._free.append(slot)

    def all(self) -> dict[Key, Tensor]:
        """Wait for all copies, and return the sums, on the host."""
        self.copier.settle()
        return {key: each.value for key, each in self._sums.items()}

    def fill(self, sums: Mapping[Key, Tensor]) -> None:
        """Copy them to the host."""
        self.copier.settle()
        self._give_up(self._ahead)
        self._sums = {key: _Sum(self._host(each.shape).copy_(each)) for key, each in sums.items()}

    def _host(self, shape: Iterable[int]) -> Tensor:
        return torch.empty(*shape, pin_memory=self.pinned)

    def _slot(self, key: Key, size: int) -> _Slot:
        """The slot that holds a sum, for the device to compute with."""
        if self._last in self._sums:
            self._sums[self._last].then = key
        self._last = key
        if key not in self._sums:
            self._sums[key] = _Sum(self._host((tiles.tile_count(size), tiles.TILE, tiles.TILE)))
            slot = self._take()
            self.copier.wait(slot.free)
            slot.view(self._sums[key].value).zero_()
            return slot
        if key not in self._ahead:
            self._upload(key, self._take())
        slot = self._ahead.pop(key)
        self.copier.wait(slot.ready)
        return slot

    def _take(self) -> _Slot:
        """A slot to fill; if none is free, what was copied ahead first gives way."""
        if not self._free:
            self._give_up(list(self._ahead)[:1])
        return self._free.popleft()

    def _give_up(self, keys: Iterable[Key]) -> None:
        """Free the slots of sums that were copied ahead in vain."""
        for key in list(keys):
            slot = self._ahead.pop(key)
            slot.free = slot.ready
            self._free.append(slot)

    def _upload(self, key: Key, slot: _Slot) -> None:
        own = self._sums[key]
        after = [slot.free, own.whole]
        slot.ready = self.copier.upload(slot.view(own.value), own.value, after)
        self._ahead[key] = slot

    def _look_ahead(self, lent: list[Key]) -> None:
        """Begin to copy the sums that will be asked for next, into the slots that are free."""
        coming: list[Key] = []
        key = self._sums[lent[-1]].then
        while key is not None and key not in (*lent, *coming) and len(coming) < self.slots:
            coming.append(key)
            key = self._sums[key].then
        self._give_up([each for each in self._ahead if each not in coming])
        for key in coming:
            if key not in self._ahead and self._free:
                self._upload(key, self._free.popleft())


def slots_of(memory: int, largest: int, sums: int) -> int:
    """How many of the ``sums`` a device of so much memory holds at a time: a twelfth of it.

    What a transformer's block adds to should fit twice, so that copies have the whole time of a
    block: of a 7B model's MLP that is five sums, or 0.7 GiB. ``largest`` is the most rows of a sum.
    """
    room: int = memory // (12 * 4 * tiles.numel(largest))
    return min(max(_LEAST, room), _MOST, sums)


class _Streams:
    """Copies by two streams of a CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._in, self._out = (torch.cuda.Stream(device) for _ in range(2))

    def upload(self, target: Tensor, source: Tensor, after: Iterable[Any]) -> Any:
        target.record_stream(self._in)
        return self._copy(self._in, target, source, after)

    def download(self, target: Tensor, source: Tensor, after: Iterable[Any]) -> Any:
        source.record_stream(self._out)
        return self._copy(self._out, target, source, after)

    def computed(self) -> Any:
        return torch.cuda.current_stream(self._device).record_event()

    def wait(self, event: torch.cuda.Event | None) -> None:
        if event is not None:
            torch.cuda.current_stream(self._device).wait_event(event)

    def settle(self) -> None:
        self._in.synchronize()
        self._out.synchronize()

    @staticmethod
    def _copy(
        stream: torch.cuda.Stream, target: Tensor, source: Tensor, after: Iterable[Any]
    ) -> Any:
        for event in after:
            if event is not None:
                stream.wait_event(event)
        with torch.cuda.stream(stream):
            target.copy_(source, non_blocking=True)
        return stream.record_event()
