"""One pass over the data: batches in; the accumulator's sums and the observer's counts out."""

import gc
from collections import deque
from collections.abc import Iterable, Mapping, Sized
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from curvedit.data import Batch, RowSketch, read_batch
from curvedit.meter import peak_memory, progress
from curvedit.models import Stack, device_of, require_causal, require_fits
from curvedit.ops import Record
from curvedit.passes.fidelity import Fidelity, check_fidelity
from curvedit.passes.loss import Loss
from curvedit.passes.observer import Call, Observer
from curvedit.passes.streaming import NotStreamableError, streamed_backward, whole_backward


class Accumulator(Protocol):
    """What sums over a pass, and the backends that it used."""

    record: Record

    def add(
        self, call: Call, gradients: Tensor, input_norms: Tensor, gradient_norms: Tensor
    ) -> None:
        """Add one call of a target and its output gradients."""


class Keeper(Protocol):
    """Looks at every batch, and keeps what an interrupted run goes on from."""

    def saw(self, raw: Any, run: "Run") -> None:
        """A batch is about to be processed, or passed over."""

    def took(self, run: "Run") -> None:
        """A batch was processed."""


@dataclass
class Run:
    """A pass and its progress.

    With the accumulator's sums and the observer's counts, this is the pass's whole state.
    """

    model: nn.Module  # frozen; the observer is attached to it
    stack: Stack | None  # the model's blocks; None to run the whole model at once
    objective: Loss
    observer: Observer
    accumulator: Accumulator
    inputs_on: torch.device | None  # where block inputs wait; None leaves them where they are
    logits_bytes: int
    task: str = ""
    batches: int = 0
    samples: int = 0
    positions: int = 0
    loss_terms: int = 0
    graph_bytes: int = 0  # bound on the graphs kept besides the last block's
    rows: RowSketch = field(default_factory=RowSketch)  # of the samples
    reason: str = ""  # why the blocks of a model that has them are not run one by one
    per_position: float = 0.0  # bytes of the last block's graph, per position of a batch
    check: Fidelity | None = None  # made on the first batch, unless an earlier pass made it
    share: tuple[int, int] = (0, 1)  # number of this process, of how many that share the batches
    fits: int = 0  # samples that are run at a time since more did not fit into memory; 0 for all

    @property
    def backward(self) -> str:
        """How the gradients are computed."""
        if self.stack is None:
            return f"whole model: {self.reason or 'it has no list of blocks'}"
        return f"block by block through {self.stack.name}, down to block {self.stack.lowest}"

    def over(
        self,
        batches: Iterable[Any],
        task: str | None,
        *,
        shown: bool,
        what: str,
        keeper: Keeper | None = None,
    ) -> None:
        """Process every batch but those that were processed before, by the count in ``batches``.

        Raises:
            TypeError: a batch is of an unknown kind.
            ValueError: there is no batch, or a batch, the model's outputs or its gradients are not
                valid.
            RuntimeError: the loss does not depend on a target.
        """
        device = device_of(self.model)
        total = getattr(batches, "tokens", None)
        done, task = self.batches, self.task or task
        with progress(total, unit="tok", what=what, shown=shown) as bar:
            if done:
                bar.update(self.positions)
            count = 0
            for number, raw in enumerate(batches):
                count = number + 1
                if keeper is not None:
                    keeper.saw(raw, self)
                if number < done:
                    continue
                batch = read_batch(raw, self.batches, self.samples, device, task)
                if batch.task == "language" and isinstance(batch.inputs, Mapping):
                    ids = batch.inputs["input_ids"]
                    least, most = torch.stack(ids.aminmax()).tolist()
                    where = f"batches: batch {batch.index}"
                    require_fits(where, self.model, ids.shape[1], most, least)
                if not self.task:
                    self._begin(batch)
                    task = self.task
                    if bar.total is None and isinstance(batches, Sized):
                        bar.expect(len(batches) * batch.positions)
                own = self._own_share(batch)
                waiting = deque([] if own is None else [own])
                while waiting:
                    self._take(waiting)
                self.observer.require_finite(batch)
                self.observer.require_unchanged(batch)
                self.observer.require_shared(batch)
                self.batches += 1
                self.samples += batch.samples.shape[0]
                self.positions += batch.positions
                self.loss_terms += batch.loss_terms
                self.rows.add(batch)
                bar.note(f"peak {peak_memory(device) / 2**30:.2f} GiB")
                bar.update(batch.positions)
                if keeper is not None:
                    keeper.took(self)
        if count < done:
            raise ValueError(
                f"batches: expected the {done} that were processed before and those that follow, "
                f"got {count}"
            )
        if not self.task:
            raise ValueError(
                "batches: expected at least one batch, got none; check the data source"
            )

    def _begin(self, batch: Batch) -> None:
        self.task = batch.task
        if batch.task == "custom" and self.objective.custom is None:
            raise ValueError(
                "loss: expected a function (output, labels) -> summed loss for these labels, "
                "got none"
            )
        if batch.task == "language" and self.observer.positions != "all":
            raise ValueError(
                f"positions: expected 'all' for a language model, got {self.observer.positions!r}, "
                "which is for classifiers"
            )
        if batch.task == "language" and isinstance(batch.inputs, Mapping):
            require_causal(self.model, batch.inputs["input_ids"])
        if self.check is None:
            self.check = check_fidelity(
                self.model,
                self.stack,
                batch,
                self.objective,
                self.observer,
                logits_bytes=self.logits_bytes,
            )
        self.observer.copied = set(self.check.copied)
        self.observer.alone = set(self.check.alone)
        if self.check.reason:
            self.stack, self.reason = None, self.check.reason

    def _kept(self, batch: Batch) -> int:
        """How many of the last blocks keep their graphs; what one takes is known from the first."""
        if not self.per_position:
            return 1
        return 1 + int(self.graph_bytes / (self.per_position * max(1, _extent(batch))))

    def _own_share(self, batch: Batch) -> Batch | None:
        """The samples of a batch that are this process's to run; None if there are none."""
        number, count = self.share
        if count == 1:
            return batch
        if not batch.divisible or batch.task == "custom":  # whole batches by turns
            return batch if batch.index % count == number else None
        rows = list(range(number, batch.samples.shape[0], count))
        return batch.take(rows) if rows else None

    def _take(self, waiting: deque[Batch]) -> None:
        """Run the first of the waiting parts of a batch, or divide it if it does not fit.

        Raises:
            torch.OutOfMemoryError: not even one sample fits into the device's memory, or the part
                cannot be divided, or memory ran out when some of it was in the sums.
        """
        batch, before = waiting.popleft(), self.observer.summed
        if 0 < self.fits < batch.samples.shape[0]:
            waiting.appendleft(batch.rows(self.fits, batch.samples.shape[0]))
            batch = batch.rows(0, self.fits)
        try:
            if self.stack is not None:
                try:
                    size = streamed_backward(
                        self.model,
                        self.stack,
                        batch,
                        self.objective,
                        self.observer,
                        inputs_on=self.inputs_on,
                        logits_bytes=self.logits_bytes,
                        kept=self._kept(batch),
                        weighed=self.graph_bytes > 0,
                    )
                    self.per_position = size / max(1, _extent(batch))
                    return
                except NotStreamableError as error:
                    self.stack, self.reason = None, str(error)
            whole_backward(self.model, batch, self.objective, self.observer)
            return
        except torch.OutOfMemoryError:
            can_be_divided = batch.divisible and batch.task != "custom"
            if self.observer.summed > before or batch.samples.shape[0] < 2 or not can_be_divided:
                raise
        gc.collect()  # what the error's frames held
        torch.cuda.empty_cache()
        self.fits = batch.samples.shape[0] // 2
        waiting.appendleft(batch)


def _extent(batch: Batch) -> int:
    """Positions of a batch, padding included; samples where it has no positions."""
    return int(batch.samples.shape[0] if batch.terms is None else batch.terms.numel())
