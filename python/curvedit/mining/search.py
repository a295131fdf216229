"""A search: the windows of one corpus, and what becomes of those that a model recites."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from curvedit.data import fingerprint_of
from curvedit.evaluation import Passages, greedy_continuations
from curvedit.mining.splitting import split_sides
from curvedit.mining.state import State
from curvedit.mining.windows import Corpus, Ids, tells, without_overlaps
from curvedit.models import (
    device_of,
    identity_of,
    require_causal,
    require_fits,
    weights_fingerprint,
)


class Search:
    """The windows of a corpus, and what becomes of those that are recited."""

    def __init__(
        self,
        model: nn.Module,
        corpus: Corpus,
        opening: Ids,
        bos: str,
        prefix: int,
        suffix: int,
        stride: int,
    ) -> None:
        self.model, self.corpus, self.opening, self.bos = model, corpus, opening, bos
        self.prefix, self.suffix, self.stride = prefix, suffix, stride
        self.windows = list(corpus.windows(prefix + suffix, stride))
        self.total = sum(map(len, corpus.ids))

    def require_fits(self) -> None:
        """Refuse a corpus without windows, or one that does not fit the model."""
        size = self.prefix + self.suffix
        if not self.windows:
            longest = max(map(len, self.corpus.ids), default=0)
            raise ValueError(
                f"corpus: expected a document of at least {size} tokens, prefix and suffix, "
                f"got {longest} in the longest"
            )
        largest = max(int(ids.max()) for ids in self.corpus.ids if len(ids))
        largest = max(largest, *self.opening, 0)
        require_fits("corpus", self.model, size + len(self.opening), largest)
        prefix, suffix = self.cut(0)
        ids = torch.tensor([prefix + suffix], device=device_of(self.model))
        require_causal(self.model, ids)

    def state(self, out: Path, tokenizer: Any) -> State:
        """The file of what is screened, made or found."""
        what = {
            "model": {**identity_of(self.model), "sha256": weights_fingerprint(self.model)},
            "corpus": self.corpus.sha256(),
            "tokenizer": fingerprint_of(tokenizer),
            "opening": [list(self.opening), self.bos],
            "windows": [self.prefix, self.suffix, self.stride],
        }
        return State(out.with_name(out.name + ".screening"), what)

    def cut(self, number: int) -> tuple[Ids, Ids]:
        """Prefix, with the opening where it gets one, and suffix of a window."""
        window = self.windows[number]
        ids = self._whole(number)
        gets_it = self.corpus.is_text[window.document] or self.bos == "always"
        opened = gets_it and ids[: len(self.opening)] != self.opening
        first = ids[: self.prefix]
        return (self.opening + first if opened else first), ids[self.prefix :]

    def recited(self, right: npt.NDArray[np.int64], near: float) -> tuple[list[int], int]:
        """Numbers of the windows to keep, in order, and how many are recited with overlaps."""
        numbers = [
            int(number)
            for number in np.flatnonzero(right >= near * self.suffix)
            if tells(*self.cut(int(number)))
        ]
        windows = [self.windows[number] for number in numbers]
        chosen = without_overlaps(
            windows, lambda each: -int(right[numbers[each]]), self.prefix + self.suffix
        )
        kept = sorted(numbers[each] for each in chosen)
        first: dict[Ids, int] = {}
        for number in kept:
            first.setdefault(self.cut(number)[1], number)
        return sorted(first.values()), len(numbers)

    def verified(
        self, numbers: list[int], right: npt.NDArray[np.int64], *, batch_size: int, shown: bool
    ) -> Passages:
        """The windows as passages, with what the model says greedily."""
        # imported here so that the package, and its kernels, can be used where rapidfuzz is missing
        from rapidfuzz.distance import Levenshtein

        cuts = [self.cut(number) for number in numbers]
        passages = Passages([one for one, _ in cuts], [two for _, two in cuts])
        said = greedy_continuations(self.model, passages, batch_size=batch_size, progress=shown)
        facts = []
        for number, words, (_, true) in zip(numbers, said, cuts, strict=True):
            window = self.windows[number]
            distance = Levenshtein.distance(words, true)
            facts.append(
                {
                    "source": self.corpus.names[window.document],
                    "offset": window.offset,
                    "right": round(int(right[number]) / self.suffix, 4),
                    "exact": distance == 0,
                    "near": 4 * distance <= self.suffix,
                }
            )
        return replace(passages, facts=facts)

    def split(self, passages: Passages, numbers: list[int], seed: int) -> Passages:
        """The passages of these windows, each with its side of the split."""
        sides = split_sides(
            [str(each["source"]) for each in passages.facts],
            [self._whole(number) for number in numbers],
            list(zip(self.corpus.names, (ids.tolist() for ids in self.corpus.ids), strict=True)),
            seed=seed,
        )
        pairs = zip(passages.facts, sides, strict=True)
        return replace(passages, facts=[{**known, "split": side} for known, side in pairs])

    def _whole(self, number: int) -> Ids:
        return self.corpus.tokens(self.windows[number], self.prefix + self.suffix)
