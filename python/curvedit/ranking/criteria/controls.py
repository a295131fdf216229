"""Controls, whose scores ignore curvature: the weight's singular values, and chance."""

import numpy as np
import torch
from torch import Tensor

from curvedit.checks import require_finite
from curvedit.ranking.criteria.criterion import Criterion
from curvedit.ranking.thresholds import Kept, packed


class _SingularScores:
    """Squared singular values; the leading ones span a square in the weight's singular basis."""

    def __init__(self, name: str, weight: Tensor | None) -> None:
        if weight is None:
            raise ValueError(
                "model: expected the model the factors were fitted on, whose weights the criterion "
                "'svd' reads, got None"
            )
        require_finite(f"model: the weight of {name!r}", weight)
        self.shape = tuple(weight.shape)
        self.values = torch.linalg.svdvals(weight.double()).square().cpu()
        if not float(self.values.sum()) > 0.0:
            raise ValueError(
                f"model: the weight of {name!r} is zero, so it has no singular directions; leave "
                f"out with --skip {name!r}, in Python skip={name!r}"
            )

    def keep(self, share: float) -> Kept:
        """Keep the leading values whose mass reaches the share."""
        cumulative = self.values.cumsum(0)
        number = min(
            int(torch.searchsorted(cumulative, share * cumulative[-1])) + 1, len(self.values)
        )
        rows, columns = self.shape if share == 1.0 else (number, number)
        limits = torch.zeros(self.shape[0], dtype=torch.int32)
        limits[:rows] = columns
        mass = float(cumulative[number - 1] / cumulative[-1])
        return Kept(limits, None, float(self.values[number - 1]), rows * columns, mass)


class _EqualScores:
    """Equal scores in random order."""

    def __init__(self, shape: tuple[int, int], key: list[int]) -> None:
        self.shape, self.key = shape, key

    def keep(self, share: float) -> Kept:
        """Keep that share of the components, rounded up."""
        total = self.shape[0] * self.shape[1]
        number = int(np.ceil(share * total))
        flags = np.zeros(total, dtype=bool)
        flags[np.random.default_rng(self.key).permutation(total)[:number]] = True
        return Kept(
            None,
            packed(torch.from_numpy(flags).view(self.shape)),
            1.0 / total,
            number,
            number / total,
        )


SVD = Criterion(
    "svd",
    None,
    lambda request: _SingularScores(request.name, request.weight),
    spans_targets=False,
    reads_weights=True,
)
RANDOM = Criterion(
    "random",
    ("G", "A"),
    lambda request: _EqualScores(request.shape, [request.seed, request.number]),
    spans_targets=False,
    is_random=True,
)
