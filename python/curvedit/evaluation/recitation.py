"""Recitation: how close greedy continuations come to the true suffixes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from torch import nn

from curvedit.data import Ids
from curvedit.evaluation.decoding import greedy_continuations
from curvedit.evaluation.measure import Run
from curvedit.evaluation.passage_measure import PassageMeasure
from curvedit.report import Meaning, Metric


@dataclass(frozen=True, eq=False)
class Recitation(PassageMeasure):
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

    def measure(self, model: nn.Module, run: Run) -> dict[str, Metric]:
        """Continue every prefix greedily and compare with the suffixes."""
        self.identify(run)
        said = greedy_continuations(
            model,
            self.passages,
            batch_size=run.batch_size,
            pad_token_id=run.pad_token_id,
            progress=run.shows_progress,
        )
        distance = _distances(said, self.suffixes)
        run.tell("passages", "distance", distance.astype(int).tolist())
        if run.decode is not None:
            run.tell("passages", "said", [run.decode(words) for words in said])
        length = np.array([len(suffix) for suffix in self.suffixes], dtype=np.float64)
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
