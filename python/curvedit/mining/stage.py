"""Mine: a model and a corpus in, the passages out that the model recites."""

import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from curvedit.checks import require_share
from curvedit.data import name_of, opening_of
from curvedit.evaluation import Passages
from curvedit.files import held_file
from curvedit.meter import metered
from curvedit.mining.screening import screen
from curvedit.mining.search import Search
from curvedit.mining.splitting import SIDES
from curvedit.mining.windows import Corpus
from curvedit.models import device_of, measuring

FEW = 20  # passages on a side below which intervals are too wide to say much


@dataclass(frozen=True)
class Mined:
    """What was found: the passages, and how much was looked at for them."""

    passages: Passages | None  # None where the model recites none
    windows: int  # that were screened
    tokens: int  # of the corpus
    sources: int
    near: int  # windows of which the model gets the wanted share right, before overlaps went
    share: float  # that share
    seconds: float

    @property
    def exact(self) -> int:
        """Passages whose suffix the model continues to the letter."""
        return sum(bool(each["exact"]) for each in self._facts())

    def side(self, split: str) -> int:
        """Number of passages on one side of the split, "tune" or "test"."""
        return sum(each["split"] == split for each in self._facts())

    def summary(self) -> str:
        """What was found, in a few lines."""
        found = 0 if self.passages is None else len(self.passages)
        right = [each["right"] for each in self._facts()]
        lines = [
            f"{self.windows:,} windows of {self.tokens:,} tokens from {self.sources:,} sources in "
            f"{self.seconds:,.1f} s ({self.windows / max(self.seconds, 1e-9):,.1f} windows/s)",
            f"{self.near:,} windows recited, {found:,} passages without overlaps and repeats, "
            f"{self.exact:,} of them to the letter",
        ]
        if right:
            sides = ", ".join(f"{self.side(each):,} {each}" for each in SIDES)
            lines.append(f"mean share of tokens right {np.mean(right):.3f}; {sides}")
        return "\n".join(lines)

    def _facts(self) -> Sequence[Any]:
        return () if self.passages is None else self.passages.facts


def mine(
    model: nn.Module,
    corpus: Any,
    *,
    out: str | Path | None = None,
    tokenizer: Any = None,
    prefix: int = 32,
    suffix: int = 24,
    stride: int | None = None,
    near: float = 0.75,
    batch_size: int = 16,
    bos: str = "auto",
    text_field: str = "text",
    split: str = "train",
    seed: int = 0,
    progress: bool = True,
) -> Mined:
    """Find the passages of a corpus that a model recites.

    Every window of ``prefix + suffix`` tokens is read once with the true tokens as context. Those
    of which the model gets the share ``near`` of the suffix right are continued greedily. Of
    windows that overlap the best is kept, and of equal suffixes the first. Suffixes that repeat
    themselves or their prefix are left out, since a model continues those without knowing the text.
    The passages are split into "tune" and "test" by source, so that no text is on both sides.

    Args:
        model: A causal language model, in any mode.
        corpus: As for ``token_batches``, or a mapping from name to text or token ids. A ``.txt``
            file is one source; rows are sources of their own unless they name their ``source``.
        out: New ``.jsonl`` file for the passages, as :meth:`Passages.read` takes it. What has been
            screened is kept in ``OUT.screening`` until the file is written, and an interrupted run
            goes on from there.
        tokenizer: A Hugging Face tokenizer; needed for text.
        prefix: Tokens that the model is given, besides the opening.
        suffix: Tokens that it should recite.
        stride: Tokens from one window to the next; None for half a suffix.
        near: Least share of the suffix tokens right.
        batch_size: Windows per batch.
        bos: As for ``token_batches``; the opening is not counted in ``prefix``.
        text_field: The field of rows that holds the text.
        split: The split of a dataset to read.
        seed: Seeds the split.
        progress: Show how far it has come.

    Returns:
        The passages, with ``source``, ``offset`` (tokens into the document), ``split``, ``right``
        (share of the suffix right, teacher-forced), ``exact`` and ``near`` (greedily: the whole
        suffix, and with at most a quarter edited) as their facts.

    Raises:
        FileExistsError: ``out`` exists, or another process is writing it.
        ValueError: a number is out of range, the corpus is empty or shorter than a window, there
            is text but no tokenizer, the windows do not fit the model, or what an interrupted run
            left belongs to another model, corpus or settings.
        CausalityError: the model is not a causal language model.

    Source:
        Carlini et al., arXiv:2202.07646, section 3; Merullo et al., arXiv:2510.24256, section 5.1.
    """
    step = max(1, suffix // 2) if stride is None else stride
    numbers = (("prefix", prefix), ("suffix", suffix), ("stride", step), ("batch_size", batch_size))
    for name, number in numbers:
        if number < 1:
            raise ValueError(f"{name}: expected at least 1, got {number}")
    require_share("near", near)
    opening = opening_of(tokenizer, bos)
    identity = {"source": "mine", "tokenizer": name_of(tokenizer), "bos": bos}
    with (
        nullcontext() if out is None else held_file("out", Path(out)) as part,
        metered(device_of(model)) as meter,
        measuring(model),
    ):
        read = Corpus.read(corpus, tokenizer, text_field=text_field, split=split, shown=progress)
        search = Search(model, read, opening, bos, prefix, suffix, step)
        search.require_fits()
        state = None if out is None else search.state(Path(out), tokenizer)
        right = screen(search, state=state, batch_size=batch_size, shown=progress)
        found, count = search.recited(right, near)
        passages = None
        if found:
            passages = search.verified(found, right, batch_size=batch_size, shown=progress)
            passages = search.split(passages, found, seed)
            passages = replace(passages, identity={**identity, "bos_ids": list(opening)})
            if part is not None:
                passages.write(part, tokenizer=tokenizer)
        if state is not None:
            state.remove()
    sources = len(set(read.names))
    mined = Mined(passages, len(search.windows), search.total, sources, count, near, meter.seconds)
    _warn(mined)
    return mined


def _warn(mined: Mined) -> None:
    counts = {side: mined.side(side) for side in SIDES}
    if mined.passages is None:
        warnings.warn(
            f"corpus: the model recites none of {mined.windows:,} windows; there are no passages "
            "to forget, and no file was written",
            stacklevel=3,
        )
    elif min(counts.values()) < FEW:
        spelled = " and ".join(f"{count} {side}" for side, count in counts.items())
        warnings.warn(
            f"corpus: the model recites next to nothing of it ({spelled} passages); intervals over "
            f"fewer than {FEW} a side say little: add texts, of several sources",
            stacklevel=3,
        )
