"""A suite: the measures to run on a model, and the settings they share."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from curvedit.data import Passages
from curvedit.evaluation.accuracy import Accuracy
from curvedit.evaluation.measure import Measure
from curvedit.evaluation.ndcg import NDCG
from curvedit.evaluation.perplexity import Perplexity
from curvedit.evaluation.recitation import Recitation


@dataclass(frozen=True, init=False)
class Suite:
    """Everything a model is measured on: a list of measures, or the data of the usual ones.

    ``Suite([Recitation(passages), Perplexity(text), NDCG(text)])`` is the same as
    ``Suite(passages=passages, text=text)``. Where both forms are mixed, the listed measures are
    taken first.

    Args:
        measures: What to measure, in this order.
        passages: For ``Recitation``: ``strict``, ``loose`` and ``avg_levenshtein``.
        text: For ``Perplexity``, and for ``NDCG`` unless ``ndcg_text`` is given. Windows of token
            ids (lists, 1-D tensors, or a tensor (N, T)), or batches as ``fit`` takes them; a
            re-iterable, such as a list.
        ndcg_text: For ``NDCG`` on a text of its own; the same kinds.
        splits: For ``Accuracy`` of a classifier: name to labelled batches, which are mappings
            with ``labels`` or pairs ``(inputs, labels)``.
        batch_size: Passages or windows per batch.
        pad_token_id: The id to pad with; any id will do, since padding is masked. None is 0.
        resamples: Number of bootstrap samples.
        seed: Seeds the bootstrap.
        decode: Turns token ids into text; the report then shows passages and continuations.

    Raises:
        ValueError: there is nothing to measure, two measures own one metric, or an argument is
            out of range.
        TypeError: an argument is of the wrong kind, or its data can be read only once.
    """

    measures: tuple[Measure, ...]
    passages: Passages | None
    text: Any
    ndcg_text: Any
    splits: Mapping[str, Iterable[Any]]
    batch_size: int
    pad_token_id: int | None
    resamples: int
    seed: int
    decode: Callable[[Sequence[int]], str] | None

    def __init__(
        self,
        measures: Sequence[Measure] = (),
        *,
        passages: Passages | None = None,
        text: Any = None,
        ndcg_text: Any = None,
        splits: Mapping[str, Iterable[Any]] | None = None,
        batch_size: int = 16,
        pad_token_id: int | None = None,
        resamples: int = 1000,
        seed: int = 0,
        decode: Callable[[Sequence[int]], str] | None = None,
    ) -> None:
        for name, value in (("batch_size", batch_size), ("resamples", resamples)):
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        if pad_token_id is not None and pad_token_id < 0:
            raise ValueError(
                f"pad_token_id: expected an id of at least 0 or None, got {pad_token_id}"
            )
        usual = _usual(passages, text, ndcg_text, splits)
        values: dict[str, Any] = {
            "measures": (*_checked(measures), *usual),
            "passages": passages,
            "text": text,
            "ndcg_text": ndcg_text,
            "splits": splits or {},
            "batch_size": batch_size,
            "pad_token_id": pad_token_id,
            "resamples": resamples,
            "seed": seed,
            "decode": decode,
        }
        for name in values:
            object.__setattr__(self, name, values[name])
        _require_distinct(self.measures)

    @property
    def pad(self) -> int:
        """The id to pad with."""
        return 0 if self.pad_token_id is None else self.pad_token_id


def _checked(measures: Any) -> Sequence[Measure]:
    if not isinstance(measures, Sequence):
        raise TypeError(f"measures: expected a list of measures, got {type(measures).__name__}")
    for number, measure in enumerate(measures):
        if not isinstance(measure, Measure):
            raise TypeError(
                "measures: expected a list of measures, such as Perplexity(text), "
                f"got {type(measure).__name__} as number {number}"
            )
    return measures


def _usual(
    passages: Passages | None,
    text: Any,
    ndcg_text: Any,
    splits: Mapping[str, Iterable[Any]] | None,
) -> Iterator[Measure]:
    """The measures that the keyword arguments stand for."""
    if passages is not None:
        yield Recitation(passages)
    if text is not None:
        yield Perplexity(text)
    if text is not None or ndcg_text is not None:
        yield NDCG(text if ndcg_text is None else ndcg_text)
    if splits:
        yield Accuracy(splits)


def _require_distinct(measures: tuple[Measure, ...]) -> None:
    keys = [key for measure in measures for key in measure.keys]
    if not keys:
        raise ValueError(
            "suite: expected passages, text, ndcg_text, splits or a list of measures, got none"
        )
    for key in keys:
        if keys.count(key) > 1:
            raise ValueError(f"measures: expected each metric from one measure, got {key!r} twice")
