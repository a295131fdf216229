"""Sources of data: text, token ids or a named dataset as packed windows.

Documents are joined by the tokenizer's end-of-sequence token and cut into windows of one length,
which begin as the model was trained to see them; the remainder becomes a last, padded window.
Tokens are cached under a hash of their source.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from curvedit.data.documents import Document, Ids
from curvedit.data.origins import BUFFER, Origin, Source
from curvedit.data.spreading import Sample, spread
from curvedit.data.token_cache import key_of, read_tokens, write_tokens
from curvedit.data.tokenizing import encoded, fingerprint_of, name_of, opening_of
from curvedit.data.windows import Stretch, TokenBatches, opened


def token_batches(
    source: Source,
    *,
    tokenizer: Any = None,
    window: int = 512,
    batch_size: int = 8,
    max_tokens: int | None = None,
    text_field: str = "text",
    split: str = "train",
    cache: str | Path | None = None,
    bos: str = "auto",
    seed: int = 0,
) -> TokenBatches:
    """Windows of tokens from files, a Hugging Face dataset or any iterable.

    Args:
        source: A ``.txt`` or ``.jsonl`` file, a directory of them, or a list of these; "hf:NAME" or
            "hf:NAME:CONFIG" for a dataset, which is streamed; or an iterable of strings, of lists
            of token ids or of rows. A row holds ``text_field``, or ``input_ids``, which need no
            tokenizer.
        tokenizer: A Hugging Face tokenizer; needed for text.
        window: Tokens per window, at least 2.
        batch_size: Windows per batch.
        max_tokens: Take at most this many tokens. Of files and lists, documents and parts of long
            documents that are spread over the whole; of "hf:NAME", the head of the stream shuffled
            within a buffer of 10,000 rows; of an iterator, its head.
        text_field: The field of a row that holds the text.
        split: The split of a dataset to read.
        cache: Directory in which to keep the tokens of files, under a hash of their content.
        bos: "auto" begins each window of text with what the tokenizer itself puts before a text
            (BOS, CLS or nothing) and leaves windows of ``input_ids`` as they are; "always" gives
            both a BOS token, "never" neither. It counts among the ``window`` tokens.
        seed: Seeds the choice of documents where there is ``max_tokens``.

    Returns:
        The batches; their ``identity`` records ``bos`` and, as ``sample``, what was chosen.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: the source is empty, a row is malformed, there is text but no tokenizer, or a
            number is out of range.
    """
    reader = _Reader(tokenizer, opening_of(tokenizer, bos), bos, window, max_tokens, seed)
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
    origin = Origin.of(source, text_field, split)
    kept = None
    if cache is not None and origin.files is not None:
        kept = Path(cache) / f"{key_of(origin.files, [text_field, *reader.settings()])}.tokens"
    found = read_tokens(kept)
    if found is None:
        found = reader.read(origin)
        if kept is not None:
            write_tokens(kept, *found)
    ids, sample = found
    identity = {
        "source": origin.name,
        "sha256": hashlib.sha256(ids.tobytes()).hexdigest(),
        "tokens": len(ids),
        "window": window,
        "tokenizer": name_of(tokenizer),
        "bos": bos,
        "bos_ids": list(reader.opening),
        "sample": sample,
    }
    return TokenBatches(ids, window, batch_size, identity)


@dataclass(frozen=True)
class _Reader:
    """How documents become a stream of windows."""

    tokenizer: Any
    opening: tuple[int, ...]
    bos: str
    window: int
    max_tokens: int | None
    seed: int

    def __post_init__(self) -> None:
        least = max(2, len(self.opening) + 1)
        if self.window < least:
            raise ValueError(f"window: expected at least {least} tokens, got {self.window}")
        if self.max_tokens is not None and self.max_tokens < least:
            raise ValueError(f"max_tokens: expected at least {least}, got {self.max_tokens}")

    def settings(self) -> list[Any]:
        """All that decides which tokens given files become."""
        sampling = None if self.max_tokens is None else [self.max_tokens, self.seed]
        return [fingerprint_of(self.tokenizer), self.opening, self.bos, self.window, sampling]

    def read(self, origin: Origin) -> tuple[Ids, Sample]:
        """The stream of windows, and what was chosen for it."""
        found = None if self.max_tokens is None else self._sampled(origin, self.max_tokens)
        if found is None:
            found = self._whole(origin), "all"
        stretches, sample = found
        total = sum(len(ids) for ids, _ in stretches)
        if total < 2:
            raise ValueError(f"data: expected at least two tokens, got {total} from {origin.name}")
        return opened(stretches, self.window, self.opening)[: self.max_tokens], sample

    def _whole(self, origin: Origin) -> list[Stretch]:
        return [
            (ids, self._opens(document))
            for document in origin.documents()
            for ids in (*self._encode(document), self._separator)
        ]

    def _sampled(self, origin: Origin, budget: int) -> tuple[list[Stretch], Sample] | None:
        """A sample of so many tokens; None if the source does not have them."""
        corpus = origin.corpus()
        if corpus is None:
            return self._head(origin, budget)
        drawn = spread(
            corpus,
            self._encode,
            cost=self._cost,
            budget=budget,
            window=self.window,
            separator=len(self._separator),
            seed=self.seed,
        )
        if drawn is None:
            return None
        parts, sample = drawn
        stretches = []
        for document, ids, is_last in parts:
            stretches.append((ids, self._opens(document)))
            if is_last:
                stretches.append((self._separator, self._opens(document)))
        return stretches, sample

    def _head(self, origin: Origin, budget: int) -> tuple[list[Stretch], Sample]:
        stretches: list[Stretch] = []
        total, count = 0.0, 0
        for document in origin.documents(shuffled=self.seed):
            count += 1
            for ids in (*self._encode(document), self._separator):
                stretches.append((ids, self._opens(document)))
                total += len(ids) * self._cost(document)
            if total >= budget:
                break
        if not origin.is_streamed:
            return stretches, "head"
        return stretches, {"seed": self.seed, "documents": count, "buffer": BUFFER}

    def _encode(self, document: Document) -> list[Ids]:
        return list(encoded(self.tokenizer, document)) if isinstance(document, str) else [document]

    def _opens(self, document: Document) -> bool:
        """Whether windows of a document get the opening; exact ids are left alone by "auto"."""
        return bool(self.opening) and (self.bos == "always" or isinstance(document, str))

    def _cost(self, document: Document) -> float:
        """Tokens of the stream for each token of a document, the openings among them."""
        content = self.window - len(self.opening) * self._opens(document)
        return self.window / content

    @property
    def _separator(self) -> Ids:
        end = getattr(self.tokenizer, "eos_token_id", None)
        return np.asarray([] if end is None else [end], dtype=np.int32)
