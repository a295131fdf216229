"""One pass over a text: token losses and top tokens, for every measure that needs them."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from curvedit.data import (
    Batch,
    Ids,
    TokenBatches,
    positions_of,
    read_batch,
    require_rereadable,
    right_padded,
    token_ids,
)
from curvedit.evaluation.measure import Measure, Run
from curvedit.meter import progress
from curvedit.models import (
    accepts,
    cached_rows,
    call,
    counts_from_zero,
    device_of,
    language_logits,
    require_fits,
    vocabulary_of,
)

_LOGITS_BYTES = 1 << 28  # of one forward pass, unless a single window needs more
_POSITIONS = 1024  # whose logits are held in float32 at once

# Sees the logits (n, V) of the next positions, and their logsumexp (n,).
Watch = Callable[[Tensor, Tensor], None]


@dataclass(frozen=True)
class TextMeasurement:
    """One pass over text; windows and positions in the order of the data."""

    loss: npt.NDArray[np.float64]  # (windows,) summed over its terms, nats
    tokens: npt.NDArray[np.int64]  # (windows,) loss terms
    top: npt.NDArray[np.int32]  # (positions, depth) most likely ids, best first
    sha256: str  # of the tokens and of which positions contribute


@dataclass(frozen=True, eq=False)
class TextMeasure(Measure):
    """A measure of a causal language model on text.

    Measures of one suite that are given the same object share one pass over it. The report calls
    a text by the ``own_name`` of the measure that reads it, and "text" if one of those is "text".

    Args:
        text: Windows of token ids (lists, 1-D tensors, or a tensor (N, T)), or batches as ``fit``
            takes them; a re-iterable, such as a list.

    Raises:
        ValueError: the text is empty, or a window has fewer than two tokens.
        TypeError: the text can be read only once, or a window holds anything but integers.
    """

    text: Any = field(repr=False)
    _windows: tuple[Ids, ...] | None = field(init=False, repr=False)  # None for batches

    own_name: ClassVar[str] = "text"
    depth: ClassVar[int] = 0  # top tokens needed per position

    def __post_init__(self) -> None:
        name, text = self.own_name, self.text
        require_rereadable(name, text)
        if isinstance(text, Tensor) and text.ndim != 2:
            raise ValueError(
                f"{name}: expected windows of token ids (N, T), got shape {tuple(text.shape)}"
            )
        windows = None
        if isinstance(text, Sequence) and text and _is_window(text[0]):
            windows = tuple(token_ids(name, number, row) for number, row in enumerate(text))
            for number, window in enumerate(windows):
                if len(window) < 2:
                    raise ValueError(
                        f"{name}: expected windows of at least 2 tokens, got 1 as row {number}"
                    )
        object.__setattr__(self, "_windows", windows)

    def name(self, run: Run) -> str:
        """What messages and the report's ``data`` and ``hashes`` call the text in this run."""
        names = [each.own_name for each in self._sharing(run)]
        return "text" if "text" in names else names[0]

    def probe(self, model: nn.Module, run: Run) -> Tensor:
        """The first batch; all windows are checked where that needs no pass over the text."""
        name, text = self.name(run), self.text
        if self._windows is not None:
            require_fits(name, model, max(map(len, self._windows)), max(map(max, self._windows)))
        elif isinstance(text, Tensor):
            require_fits(name, model, text.shape[1], int(text.max()))
        elif isinstance(text, TokenBatches):
            require_fits(name, model, text.longest, text.largest)

        def first() -> Tensor:
            return _ids(next(_batches(model, self._raw_batches(run), name)))

        found: Tensor = run.shared(("probe", id(text)), first)
        return found

    def watch(self, run: Run) -> Watch | None:  # noqa: ARG002
        """What is to see all positions in order, piece by piece."""
        return None

    def read(self, model: nn.Module, run: Run) -> TextMeasurement:
        """The pass over the text, made once per run for all measures that share it."""
        name, depth = self.name(run), max(each.depth for each in self._sharing(run))

        def measured() -> TextMeasurement:
            batches = self._raw_batches(run)
            watches = [watch for each in self._sharing(run) if (watch := each.watch(run))]
            with progress(
                _total(batches), unit="tok", what=f"read {name}", shown=run.shows_progress
            ) as shown:
                found = measure_text(
                    model, batches, name=name, depth=depth, watches=watches, done=shown.update
                )
            counts = {"windows": len(found.tokens), "tokens": int(found.tokens.sum())}
            source = getattr(self.text, "identity", None)
            run.identify(name, found.sha256, counts, source if isinstance(source, dict) else None)
            return found

        result: TextMeasurement = run.shared(("text", id(self.text)), measured)
        return result

    def windows(self, model: nn.Module, run: Run) -> Iterator[Ids]:
        """The token ids of every window, without padding."""
        for batch in _batches(model, self._raw_batches(run), self.own_name):
            ids = _ids(batch).cpu()
            real = torch.ones_like(ids).bool() if batch.mask is None else batch.mask.cpu()
            for row, kept in zip(ids, real, strict=True):
                yield tuple(row[kept].tolist())

    def _sharing(self, run: Run) -> list["TextMeasure"]:
        return [
            each
            for each in run.measures
            if isinstance(each, TextMeasure) and each.text is self.text
        ]

    def _raw_batches(self, run: Run) -> Iterable[Any]:
        """Batches of the run's size from windows; batches as they are."""
        size = run.batch_size
        if isinstance(self.text, Tensor):
            return [
                {"input_ids": self.text[start : start + size]}
                for start in range(0, len(self.text), size)
            ]
        if self._windows is None:
            batches: Iterable[Any] = self.text
            return batches
        return [
            right_padded(self._windows[start : start + size], run.pad_token_id)
            for start in range(0, len(self._windows), size)
        ]


def measure_text(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    name: str,
    depth: int,
    watches: Sequence[Watch] = (),
    done: Callable[[int], None] = lambda _: None,
) -> TextMeasurement:
    """Losses per window and the ``depth`` most likely tokens per loss term.

    Logits exist for a few windows at a time, in float32 for a few positions.

    Args:
        model: A causal language model in evaluation mode.
        batches: As ``fit`` takes them.
        name: What messages call the text.
        depth: 0 keeps no tokens.
        watches: See all positions in order, piece by piece.
        done: Told the number of tokens that were read, after each piece.

    Raises:
        ValueError: a batch has no loss term, a window does not fit the model, or
            logits are not finite.
    """
    losses, tokens, top = [], [], []
    digest = hashlib.sha256()
    for batch in _batches(model, batches, name):
        _update(digest, batch)
        for part in _parts(model, batch):
            where = f"{name}: batch {batch.index}"
            loss, best = _measure_part(model, part, depth, where, watches)
            losses.append(loss)
            tokens.append(_terms(part).sum(1).cpu())
            top.append(best)
            done(int(tokens[-1].sum()))
    if not losses:
        raise ValueError(f"{name}: expected at least one batch, got none")
    return TextMeasurement(
        torch.cat(losses).numpy(),
        torch.cat(tokens).numpy(),
        torch.cat(top).numpy(),
        digest.hexdigest(),
    )


def _total(batches: Iterable[Any]) -> int | None:
    """Tokens to predict, where that is known before they are read."""
    if isinstance(batches, TokenBatches):
        return batches.tokens
    if not isinstance(batches, list) or not all(isinstance(each, dict) for each in batches):
        return None
    ids = [each.get("input_ids") for each in batches]
    if not all(isinstance(each, Tensor) and each.ndim == 2 for each in ids):
        return None
    real = [each.get("attention_mask", torch.ones(1)) for each in batches]
    counts = (
        int(mask.expand_as(each).sum()) - len(each) for each, mask in zip(ids, real, strict=True)
    )
    return sum(counts)


def _is_window(row: Any) -> bool:
    if hasattr(row, "ndim"):
        return bool(row.ndim == 1)
    return (
        isinstance(row, Sequence)
        and not isinstance(row, str)
        and all(isinstance(each, int) for each in row)
    )


def _batches(model: nn.Module, batches: Iterable[Any], name: str) -> Iterator[Batch]:
    device = device_of(model)
    seen = 0
    for index, raw in enumerate(batches):
        try:
            batch = read_batch(raw, index, seen, device, "language")
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name}: {error}") from error
        ids = _ids(batch)
        require_fits(name, model, ids.shape[1], int(ids.max()))
        seen += batch.samples.shape[0]
        yield batch


def _ids(batch: Batch) -> Tensor:
    ids: Tensor = batch.inputs["input_ids"] if isinstance(batch.inputs, dict) else batch.inputs[0]
    return ids


def _terms(batch: Batch) -> Tensor:
    if batch.terms is None:
        raise ValueError("text: expected token ids (B, T), got a batch without positions")
    return batch.terms


def _parts(model: nn.Module, batch: Batch) -> Iterator[Batch]:
    """A batch in pieces whose logits fit the bound; single windows for an unknown vocabulary."""
    size, length = _terms(batch).shape
    vocabulary = vocabulary_of(model)
    rows = 1 if vocabulary is None else max(1, _LOGITS_BYTES // (4 * length * vocabulary))
    for start in range(0, size, rows):
        part = batch.rows(start, start + rows)
        if _terms(part).any():
            yield part


def _measure_part(
    model: nn.Module,
    part: Batch,
    depth: int,
    where: str,
    watches: Sequence[Watch],
) -> tuple[Tensor, Tensor]:
    """Summed loss per window (float64) and top tokens per loss term, on the CPU."""
    counted = _terms(part)
    inputs = dict(part.inputs) if isinstance(part.inputs, dict) else {"input_ids": part.inputs[0]}
    if (
        part.mask is not None
        and not part.mask[:, 0].all()
        and accepts(model, "position_ids")
        and counts_from_zero(model)
    ):
        inputs.setdefault("position_ids", positions_of(part.mask))
    keep = counted.shape[1] - int(counted.any(0).nonzero()[0])
    logits = language_logits(model, call(model, inputs, logits_to_keep=keep), len(counted))
    offset = counted.shape[1] - logits.shape[1]
    row, position = counted.nonzero(as_tuple=True)
    labels = _labels(part)[row, position]
    loss = torch.zeros(len(counted), dtype=torch.float64, device=logits.device)
    best = []
    for start in range(0, len(row), _POSITIONS):
        here = slice(start, start + _POSITIONS)
        piece = logits[row[here], position[here] - offset]
        piece = piece.float() if piece.dtype.itemsize < 4 else piece
        total = torch.cat([few.logsumexp(-1) for few in piece.split(cached_rows(piece))])
        terms = total - piece.gather(1, labels[here][:, None])[:, 0]
        if not terms.isfinite().all():
            raise ValueError(f"{where}: the model's logits are not finite there; check its weights")
        loss.index_add_(0, row[here], terms.double())
        for watch in watches:
            watch(piece, total)
        best.append(_likeliest(piece, min(depth, piece.shape[-1])).int().cpu())
    return loss.cpu(), torch.cat(best)


def _likeliest(logits: Tensor, depth: int) -> Tensor:
    """Ids of the largest logits, best first, (n, depth)."""
    if depth == 1:  # about twice as fast
        return logits.max(-1, keepdim=True).indices
    return logits.topk(depth, dim=-1).indices


def _labels(batch: Batch) -> Tensor:
    if batch.labels is None:
        raise ValueError("text: expected labels beside token ids, got none")
    return batch.labels


def _update(digest: Any, batch: Batch) -> None:
    """Feed a batch's tokens, window by window, so that batching and padding do not matter."""
    labels, terms = _labels(batch).cpu(), _terms(batch).cpu()
    real = torch.ones_like(terms) if batch.mask is None else batch.mask.cpu()
    rows = zip(_ids(batch).cpu(), real, terms, labels, strict=True)
    for window, kept, counted, label in rows:
        digest.update(f"{int(kept.sum())}:".encode())
        digest.update(window[kept].long().numpy().tobytes())
        digest.update(counted[kept].numpy().tobytes())
        digest.update(label[counted].long().numpy().tobytes())
