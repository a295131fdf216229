"""Tasks: what a model can still do, family by family, on items made by code."""

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from curvedit.data import Ids, Passages, bare_ids, opening_of
from curvedit.evaluation.decoding import require_passages_fit
from curvedit.evaluation.measure import Measure, Run
from curvedit.evaluation.task_items import FAMILIES, KNOWN_BEFORE, Item
from curvedit.evaluation.teacher_forcing import Sampling, forced
from curvedit.meter import progress
from curvedit.models import device_of
from curvedit.report import Meaning, Metric

_LIKELIHOOD = Sampling()


@dataclass(frozen=True, eq=False)
class Tasks(Measure):
    """``task: FAMILY``: the share of items answered right.

    An item with one answer is right if greedy decoding gives the whole answer; one with several
    (boolean expressions, object tracking) if the right one is the likeliest of them. Facts are
    those that the unedited model knows: it scores 1 by choice, and the edited one the share that
    it still knows. As the choice favours items that were right by luck, a small loss of facts is
    expected of any change.

    Args:
        tokenizer: A Hugging Face tokenizer.
        families: Names of :data:`FAMILIES`; None for all.
        items: Items per family, at most; some families have fewer.
        seed: Seeds the items.
        bos: As for ``token_batches``.

    Raises:
        ValueError: there is no such family, or a number is out of range.
        TypeError: there is no tokenizer.
    """

    tokenizer: Any = field(repr=False)
    families: Sequence[str] | None = None
    items: int = 100
    seed: int = 0
    bos: str = "auto"
    _made: dict[str, tuple[Passages, tuple[int, ...]]] = field(init=False, repr=False)

    meanings: ClassVar[Mapping[str, Meaning]] = {
        "task: {}": Meaning(
            "Task, {}",
            "share",
            "higher",
            "items of {} answered right",
            units="task {}",
            headline=False,
        )
    }

    def __post_init__(self) -> None:
        if self.tokenizer is None:
            raise TypeError("tokenizer: expected one for the tasks, got None")
        if self.items < 1:
            raise ValueError(f"items: expected at least 1, got {self.items}")
        names = list(FAMILIES) if self.families is None else list(self.families)
        unknown = [name for name in names if name not in FAMILIES]
        if unknown or not names:
            got = repr(unknown[0]) if unknown else "none"
            raise ValueError(f"families: expected some of {list(FAMILIES)}, got {got}")
        made = {}
        for name in names:
            generator = random.Random(f"{self.seed} {name}")
            made[name] = self._encoded(FAMILIES[name](generator, self.items))
        object.__setattr__(self, "_made", made)

    @property
    def keys(self) -> tuple[str, ...]:
        """One key per family."""
        return tuple(f"task: {name}" for name in self._made)

    def probe(self, model: nn.Module, run: Run) -> Tensor:  # noqa: ARG002
        """The first item, once all are known to fit the model."""
        for passages, _ in self._made.values():
            require_passages_fit(model, passages)
        prefix, suffix = next(next(iter(self._made.values()))[0].rows())
        return torch.tensor([prefix + suffix], device=device_of(model))

    def measure(self, model: nn.Module, run: Run) -> dict[str, Metric]:
        """Put every item to the model."""
        found = {}
        total = sum(len(passages) for passages, _ in self._made.values())
        with progress(total, unit="answer", what="tasks", shown=run.shows_progress) as shown:
            for name, (passages, counts) in self._made.items():
                whole = json.dumps([passages.sha256(), counts])
                sha256 = hashlib.sha256(whole.encode()).hexdigest()
                run.identify(f"task {name}", sha256, {"items": len(counts)})
                read = forced(
                    model,
                    passages,
                    samplings=() if max(counts) == 1 else (_LIKELIHOOD,),
                    batch_size=run.batch_size,
                    pad_token_id=run.pad_token_id,
                    done=shown.update,
                )
                if max(counts) == 1:
                    right = np.array([each.all() for each in read.right], dtype=np.float64)
                else:
                    logs = [each.sum() for each in read.logs[_LIKELIHOOD]]
                    right = _first_is_best(logs, counts)
                found[f"task: {name}"] = self._metric(name, right, run)
        return found

    def _metric(self, name: str, right: npt.NDArray[np.float64], run: Run) -> Metric:
        if name != KNOWN_BEFORE:
            return run.interval(right)
        run.tell(f"task {name}", "right", right.astype(int).tolist())
        known = right
        if run.baseline is not None:
            rows = run.baseline.details.get(f"task {name}", {}).get("before", {})
            known = np.array(rows.get("right", []), dtype=np.float64)
        if not known.any():
            raise ValueError(
                f"tasks: expected a model that knows some facts, got one that knows none of "
                f"{len(right)}; leave out the family {name!r}"
            )
        return run.interval(right[known > 0])

    def _encoded(self, items: Sequence[Item]) -> tuple[Passages, tuple[int, ...]]:
        """Prompt and answer of every choice, and the number of choices of each item."""
        opening = opening_of(self.tokenizer, self.bos)
        prefixes, suffixes = [], []
        for prompt, answers in items:
            for answer in answers:
                first, rest = self._cut(prompt, answer)
                prefixes.append(opening + first)
                suffixes.append(rest)
        return Passages(prefixes, suffixes), tuple(len(answers) for _, answers in items)

    def _cut(self, prompt: str, answer: str) -> tuple[Ids, Ids]:
        """Ids of prompt and answer as of one text, where the text can be cut between them."""
        first = tuple(bare_ids(self.tokenizer, prompt))
        whole = tuple(bare_ids(self.tokenizer, prompt + answer))
        if whole[: len(first)] == first and len(whole) > len(first):
            return first, whole[len(first) :]
        return first, tuple(bare_ids(self.tokenizer, answer))


def _first_is_best(logs: Sequence[float], counts: Sequence[int]) -> npt.NDArray[np.float64]:
    """Whether the first choice of each item is likelier than all others."""
    parts = np.split(np.array(logs), np.cumsum(counts)[:-1])
    return np.array([bool((part[0] > part[1:]).all()) for part in parts], dtype=np.float64)
