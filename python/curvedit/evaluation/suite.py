"""What an evaluation measures on: passages, text and labelled splits."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from curvedit.calls import LOGITS_BYTES


@dataclass(frozen=True)
class Passages:
    """Texts that a model may recite: token ids of what it is given, and of what follows.

    Lengths may differ between passages.
    """

    prefixes: Sequence[Sequence[int]]
    suffixes: Sequence[Sequence[int]]

    def __post_init__(self) -> None:
        """Check the passages.

        Raises:
            ValueError: there is none, the numbers differ, or one is empty.
        """
        if not len(self.prefixes) or len(self.prefixes) != len(self.suffixes):
            raise ValueError(
                f"passages: expected as many suffixes as prefixes, at least one, got {len(self.prefixes)} "
                f"prefixes and {len(self.suffixes)} suffixes"
            )
        for number, (prefix, suffix) in enumerate(zip(self.prefixes, self.suffixes, strict=True)):
            if not len(prefix) or not len(suffix):
                raise ValueError(f"passages: expected tokens before and after the cut, got an empty part in passage {number}")

    def __len__(self) -> int:
        """Number of passages."""
        return len(self.prefixes)


@dataclass(frozen=True)
class Suite:
    """What to measure; a part that is left out is not measured.

    Args:
        passages: For recitation.
        text: Batches of token ids, as ``fit`` takes them, for perplexity and nDCG@10.
        splits: Name to labelled batches, for a classifier's accuracy.
        batch_size: Passages at a time.
        ndcg_positions: nDCG@10 is taken over the first so many positions of the text.
        resamples: Of the bootstrap.
        logits_bytes: Bound on the memory of logits.
    """

    passages: Passages | None = None
    text: Iterable[Any] | None = None
    splits: Mapping[str, Iterable[Any]] = field(default_factory=dict)
    batch_size: int = 16
    ndcg_positions: int = 200_000
    resamples: int = 1000
    logits_bytes: int = LOGITS_BYTES

    def __post_init__(self) -> None:
        """Check that there is something to measure.

        Raises:
            ValueError: there is not.
        """
        if self.passages is None and self.text is None and not self.splits:
            raise ValueError("suite: expected passages, text or splits, got none of them")
