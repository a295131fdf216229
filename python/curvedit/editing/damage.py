"""The damage that an edit does: divergence from the unedited model on held-out data."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from curvedit.data import Batch, read_batch, require_rereadable, right_padded, token_ids
from curvedit.editing.value import Original, as_before
from curvedit.models import (
    Stack,
    bypassed,
    cached_rows,
    call,
    device_of,
    find_stack,
    logits_of,
    require_fits,
    vocabulary_of,
)

_BYTES = 1 << 27  # of the float32 logits of one model that exist at once, one window at least


@dataclass(frozen=True)
class Damage:
    """What an edit cost on held-out data: sums over its loss terms, by window or sample, float64.

    ``divergence`` is ``KL(unedited || edited)``; the losses are cross-entropies of the data's own
    labels, 0 if it has none. All in nats.
    """

    divergence: Tensor  # (windows,)
    loss_before: Tensor  # (windows,)
    loss_after: Tensor  # (windows,)
    terms: Tensor  # (windows,)

    @property
    def nats(self) -> float:
        """Mean divergence per loss term."""
        return float(self.divergence.sum() / self.terms.sum())

    @property
    def loss(self) -> float:
        """Mean rise of the loss per loss term."""
        return float((self.loss_after - self.loss_before).sum() / self.terms.sum())


class Unedited:
    """The logits of the model as it was, on held-out data.

    The blocks run once, with the original weights. Of each part the output of the last block is
    kept, and later only what follows it runs: norm and head, which no step changes.
    """

    def __init__(
        self, model: nn.Module, originals: Sequence[Original], stack: Stack | None
    ) -> None:
        """Begin with nothing kept; with ``stack`` None the whole model runs each time."""
        self.model, self.originals, self.stack = model, originals, stack
        self._kept: dict[int, Any] = {}  # output of the last block, by part

    @classmethod
    def of(cls, model: nn.Module, originals: Sequence[Original]) -> "Unedited":
        """The model as these originals make it; its blocks run once if they hold all of them."""
        names = [each.name for each in originals]
        stack = find_stack(model, names)
        inside = stack is not None and all(name.startswith(f"{stack.name}.") for name in names)
        return cls(model, originals, stack if inside else None)

    def logits(self, number: int, batch: Batch) -> Tensor:
        """Logits of the loss terms of a part, (terms, classes)."""
        if self.stack is not None and number in self._kept:
            return self._tail(self.stack, self._kept[number], batch)
        with as_before(self.originals):
            if self.stack is None:
                return _logits(self.model, batch)
            outputs: list[Any] = []
            last = self.stack.blocks[-1]
            handle = last.register_forward_hook(lambda _, __, output: outputs.append(output))
            try:
                whole = _logits(self.model, batch)
            finally:
                handle.remove()
        if len(outputs) != 1 or not self._follows(self.stack, outputs[0], batch, whole):
            self.stack = None
            self._kept.clear()
        else:
            self._kept[number] = outputs[0]
        return whole

    def _follows(self, stack: Stack, output: Any, batch: Batch, whole: Tensor) -> bool:
        """Whether the last block's output gives the same logits; checked on the first part."""
        if self._kept:
            return True
        apart = (self._tail(stack, output, batch) - whole).abs().max()
        return bool(apart <= 16 * torch.finfo(whole.dtype).eps * whole.abs().max())

    def _tail(self, stack: Stack, output: Any, batch: Batch) -> Tensor:
        with bypassed(stack.blocks, output):
            return _logits(self.model, batch)


@torch.no_grad()
def measure_damage(
    model: nn.Module,
    unedited: Unedited,
    batches: Iterable[Any],
    task: str | None,
    done: Callable[[int], None] = lambda _: None,
) -> Damage:
    """Compare the edited model with itself before the edit.

    Args:
        model: In evaluation mode, edited.
        unedited: Gives the unedited model's logits; it keeps what it needs for the next time.
        batches: Held-out data, as ``fit`` takes it; a language model's windows may be padded.
        task: As for ``read_batch``.
        done: Told the number of loss terms that were compared, after each part.

    Raises:
        TypeError: a batch is of an unknown kind.
        ValueError: there is no batch, or the model's logits do not fit it or are not finite.
    """
    rows: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    for number, batch in enumerate(_parts(model, batches, task)):
        before = unedited.logits(number, batch)
        rows += _compare(before, _logits(model, batch), batch)
        done(batch.loss_terms)
    if not rows:
        raise ValueError("holdout: expected at least one batch, got none")
    return Damage(*(torch.cat(column).cpu() for column in zip(*rows, strict=True)))


def count_terms(model: nn.Module, batches: Iterable[Any], task: str | None) -> int:
    """Count the loss terms of held-out data, and check that it fits the model.

    Raises:
        TypeError: a batch is of an unknown kind.
        ValueError: there is no batch, or one does not fit the model.
    """
    terms = 0
    for batch in _parts(model, batches, task):
        ids = batch.inputs.get("input_ids") if isinstance(batch.inputs, dict) else None
        if ids is not None:
            require_fits("holdout", model, ids.shape[1], int(ids.max()), int(ids.min()))
        terms += batch.loss_terms
    if not terms:
        raise ValueError("holdout: expected at least one batch, got none")
    return terms


@torch.no_grad()
def share_right(model: nn.Module, batches: Iterable[Any], task: str | None) -> float:
    """Share of a language model's loss terms whose token is its first choice."""
    right, terms = 0, 0
    for batch in _parts(model, batches, task):
        if batch.terms is None or batch.labels is None:
            continue
        right += int((_logits(model, batch).argmax(-1) == batch.labels[batch.terms]).sum())
        terms += batch.loss_terms
    return right / terms if terms else 0.0


def held_out(given: Any, batch_size: int, pad: int) -> Iterable[Any]:
    """Batches of held-out data from windows of token ids; batches as they are.

    Raises:
        TypeError: it can be read only once.
        ValueError: it is empty, or a window is.
    """
    require_rereadable("holdout", given)
    if isinstance(given, Tensor):
        return [{"input_ids": part} for part in given.split(batch_size)]
    if not (isinstance(given, Sequence) and _is_window(given[0])):
        batches: Iterable[Any] = given
        return batches
    rows = [token_ids("holdout", number, row) for number, row in enumerate(given)]
    return [
        right_padded(rows[start : start + batch_size], pad)
        for start in range(0, len(rows), batch_size)
    ]


def _parts(model: nn.Module, batches: Iterable[Any], task: str | None) -> Iterator[Batch]:
    device, seen = device_of(model), 0
    for index, raw in enumerate(batches):
        try:
            batch = read_batch(raw, index, seen, device, task)
        except (TypeError, ValueError) as error:
            raise type(error)(str(error).replace("batches: ", "holdout: ", 1)) from error
        size = batch.samples.shape[0]
        seen += size
        step = size
        if batch.terms is not None and batch.divisible:
            row = 4 * batch.terms.shape[1] * (vocabulary_of(model) or 1)
            step = max(1, _BYTES // row)
        for start in range(0, size, step):
            part = batch.rows(start, start + step)
            if part.loss_terms:
                yield part


def _logits(model: nn.Module, batch: Batch) -> Tensor:
    """Logits of the loss terms, (terms, classes)."""
    logits = logits_of(call(model, batch.inputs))
    leading = batch.samples.shape if batch.terms is None else batch.terms.shape
    if logits.shape[:-1] != leading:
        raise ValueError(
            f"holdout: expected logits of shape {tuple(leading)} and classes from the model, "
            f"got {tuple(logits.shape)} in batch {batch.index}"
        )
    return logits if batch.terms is None else logits[batch.terms]


def _compare(
    before: Tensor,  # (terms, classes)
    after: Tensor,
    batch: Batch,
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    size = batch.samples.shape[0]
    labels = batch.labels
    if batch.terms is None:
        owners = torch.arange(size, device=before.device)
    else:
        owners = batch.terms.nonzero()[:, 0]
        labels = None if labels is None else labels[batch.terms]
    found = torch.zeros(4, size, dtype=torch.float64, device=before.device)
    step = cached_rows(before)
    for start in range(0, len(before), step):
        part = slice(start, start + step)
        p, q = (logits[part].float().log_softmax(-1) for logits in (before, after))
        apart = (p - q).where(p != -torch.inf, 0.0)  # what neither model can say
        divergence = (p.exp() * apart).sum(-1, dtype=torch.float64)
        if not divergence.isfinite().all():
            raise ValueError(
                f"model: the logits are not finite on holdout batch {batch.index}; check the data"
            )
        terms = [divergence, torch.zeros_like(divergence), torch.zeros_like(divergence)]
        if labels is not None:
            own = labels[part, None]
            terms[1:] = [-each.gather(-1, own)[:, 0].double() for each in (p, q)]
        terms.append(torch.ones_like(divergence))
        for row, values in zip(found, terms, strict=True):
            row.index_add_(0, owners[part], values)
    divergence, first, second, counts = found
    yield divergence, first, second, counts


def _is_window(row: Any) -> bool:
    if isinstance(row, Tensor):
        return row.ndim == 1
    return isinstance(row, Sequence) and all(isinstance(each, int) for each in row)
