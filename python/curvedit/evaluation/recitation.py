"""Recitation: how close greedy continuations come to the true suffixes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from curvedit.data import Ids, Passages
from curvedit.evaluation.decoding import greedy_continuations, require_passages_fit
from curvedit.evaluation.measure import Measure, Run
from curvedit.models import device_of
from curvedit.report import Meaning, Metric


@dataclass(frozen=True, eq=False)
class Recitation(Measure):
    """``strict``, ``loose`` and ``avg_levenshtein``: how much of the passages a model recites.

    With the token-level Levenshtein distance d between the greedy continuation and the true
    suffix, and the suffix length L: strict counts d = 0, loose counts 1 - d / L >= 0.75, and the
    mean of d / L is higher where less is recited.

    Args:
        passages: Prefixes to continue and their true suffixes.

    Raises:
        TypeError: not :class:`Passages`.

    Source:
        Merullo et al., arXiv:2510.24256, section 5.1.
    """

    passages: Passages

    meanings: ClassVar[Mapping[str, Meaning]] = {
        "strict": Meaning(
            "Verbatim recitation",
            "share",
            "lower",
            "passages whose whole suffix is reproduced greedily",
            units="passages",
        ),
        "loose": Meaning(
            "Near-verbatim recitation",
            "share",
            "lower",
            "passages reproduced with at most a quarter edited",
            units="passages",
            headline=False,
        ),
        "avg_levenshtein": Meaning(
            "Edit distance",
            "number",
            "higher",
            "mean token edits from the true suffix, as a share of its length",
            units="passages",
            digits=3,
            headline=False,
        ),
    }

    def __post_init__(self) -> None:
        if not isinstance(self.passages, Passages):
            raise TypeError(f"passages: expected Passages, got {type(self.passages).__name__}")

    def probe(self, model: nn.Module, run: Run) -> Tensor:  # noqa: ARG002
        """The first passage, once all are known to fit the model."""
        require_passages_fit(model, self.passages)
        prefix, suffix = next(self.passages.rows())
        return torch.tensor([prefix + suffix], device=device_of(model))

    def measure(self, model: nn.Module, run: Run) -> dict[str, Metric]:
        """Continue every prefix greedily and compare with the suffixes."""
        count = {"passages": len(self.passages)}
        run.identify("passages", self.passages.sha256(), count, self.passages.identity)
        said = greedy_continuations(
            model,
            self.passages,
            batch_size=run.batch_size,
            pad_token_id=run.pad_token_id,
            progress=run.shows_progress,
        )
        suffixes = [suffix for _, suffix in self.passages.rows()]
        distance = _distances(said, suffixes)
        length = np.array([len(suffix) for suffix in suffixes], dtype=np.float64)
        return {
            "strict": run.interval(distance == 0),
            "loose": run.interval(4 * distance <= length),
            "avg_levenshtein": run.interval(distance / length),
        }


def _distances(said: Sequence[Ids], true: Sequence[Ids]) -> npt.NDArray[np.float64]:
    # imported here so that the package, and its kernels, can be used where rapidfuzz is missing
    from rapidfuzz.distance import Levenshtein

    pairs = zip(said, true, strict=True)
    return np.array([Levenshtein.distance(one, other) for one, other in pairs], dtype=np.float64)
