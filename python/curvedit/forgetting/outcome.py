"""What is recited before and after each step, and whether it is forgotten."""

from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

NEAR = 0.75  # share of the tokens right from which on a passage is recited
FORGOTTEN = 0.35  # mean share of the tokens right at which the passages are forgotten
_FORESEEABLE = 0.5  # share right of ordinary text, from which on it moves these bounds


@dataclass(frozen=True)
class Bounds:
    """Shares of tokens right that tell recited, forgotten and ordinary text apart.

    A model of bytes foresees most of any text. There a passage is recited if it is nearer to
    certain than to ordinary text, and forgotten is what is no more right than ordinary text.
    """

    near: float = NEAR
    forgotten: float = FORGOTTEN

    @classmethod
    def beside(cls, ordinary: float) -> "Bounds":
        """From the share of tokens right of held-out text."""
        return cls() if ordinary < _FORESEEABLE else cls((1 + ordinary) / 2, ordinary)


@dataclass(frozen=True)
class Recited:
    """Teacher-forced recitation of the passages that the unedited model recites, and of the rest.

    A token is right if it is the model's first choice after all those before it.
    """

    near: int  # passages recited now, among all
    right: float  # mean share of tokens right, of those that the unedited model recites
    right_of_rest: float | None  # the same of all others; None if there are none
    is_forgotten: bool  # no passage is near, and the mean share right is down

    @classmethod
    def of(cls, shares: Tensor, recited: Tensor, bounds: Bounds) -> "Recited":
        """From the share of tokens right (passages,), and which the unedited model recites."""
        rest = shares[~recited]
        near, right = int((shares >= bounds.near).sum()), float(shares[recited].mean())
        return cls(
            near,
            right,
            float(rest.mean()) if len(rest) else None,
            near == 0 and right <= bounds.forgotten,
        )

    def to_json(self) -> dict[str, Any]:
        """The entry of the record."""
        found = asdict(self)
        del found["is_forgotten"]
        return {key: value for key, value in found.items() if value is not None}


@dataclass(frozen=True)
class Step:
    """One step that was taken, with what the edit had cost after it, in nats per position."""

    predicted: float  # 1/2 sum lambda mu dC^2
    expected: float  # the same, corrected by the ratio that the step before has shown
    measured: float  # divergence from the unedited model on held-out data
    loss: float  # rise of the loss there
    tries: int  # lengths tried
    recited: Recited  # after it

    def to_json(self) -> dict[str, Any]:
        """The entry of the record."""
        found = {key: value for key, value in asdict(self).items() if key != "recited"}
        return {**found, **self.recited.to_json()}
