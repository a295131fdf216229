"""One pass over passages, teacher-forced, for every measure that needs it."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from curvedit.data import Passages
from curvedit.evaluation.decoding import require_passages_fit
from curvedit.evaluation.measure import Measure, Run
from curvedit.evaluation.teacher_forcing import Forced, Sampling, forced
from curvedit.meter import progress
from curvedit.models import device_of

Kind = TypeVar("Kind", bound=np.generic)


@dataclass(frozen=True, eq=False)
class PassageMeasure(Measure):
    """A measure of a causal language model on passages.

    Measures of one suite that are given the same object share one pass over it.

    Args:
        passages: Prefixes and their true suffixes.

    Raises:
        TypeError: not :class:`Passages`.
    """

    passages: Passages

    whole: ClassVar[bool] = False  # whether the prefix's own tokens are judged too

    def __post_init__(self) -> None:
        if not isinstance(self.passages, Passages):
            raise TypeError(f"passages: expected Passages, got {type(self.passages).__name__}")

    @property
    def samplings(self) -> tuple[Sampling, ...]:
        """The ways of drawing tokens whose chances the measure needs."""
        return ()

    def probe(self, model: nn.Module, run: Run) -> Tensor:  # noqa: ARG002
        """The first passage, once all are known to fit the model."""
        require_passages_fit(model, self.passages)
        prefix, suffix = next(self.passages.rows())
        return torch.tensor([prefix + suffix], device=device_of(model))

    def identify(self, run: Run) -> None:
        """Record the passages, once per run."""

        def identified() -> bool:
            count = {"passages": len(self.passages)}
            run.identify("passages", self.passages.sha256(), count, self.passages.identity)
            for key in ("source", "offset", "split"):
                if any(key in known for known in self.passages.facts):
                    run.tell("passages", key, [known.get(key) for known in self.passages.facts])
            if run.decode is not None:
                for key, rows in (("prefix", self.passages.prefixes), ("true", self.suffixes)):
                    run.tell("passages", key, [run.decode(row) for row in rows])
            return True

        run.shared(("passages", id(self.passages)), identified)

    @property
    def suffixes(self) -> tuple[tuple[int, ...], ...]:
        """The true suffixes."""
        return tuple(suffix for _, suffix in self.passages.rows())

    def read(self, model: nn.Module, run: Run) -> Forced:
        """The pass over the passages, made once per run for all measures that share it."""
        self.identify(run)
        sharing = [
            each
            for each in run.measures
            if isinstance(each, PassageMeasure) and each.passages is self.passages
        ]
        samplings = list(dict.fromkeys(way for each in sharing for way in each.samplings))

        def measured() -> Forced:
            with progress(
                len(self.passages), unit="passage", what="force", shown=run.shows_progress
            ) as shown:
                return forced(
                    model,
                    self.passages,
                    whole=any(each.whole for each in sharing),
                    samplings=samplings,
                    batch_size=run.batch_size,
                    pad_token_id=run.pad_token_id,
                    done=shown.update,
                )

        result: Forced = run.shared(("forced", id(self.passages)), measured)
        return result

    def of_suffixes(self, values: Iterable[npt.NDArray[Kind]]) -> list[npt.NDArray[Kind]]:
        """Of each passage's values those of its suffix."""
        pairs: Any = zip(values, self.suffixes, strict=True)
        return [each[-len(suffix) :] for each, suffix in pairs]
