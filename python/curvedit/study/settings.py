"""What a study does, apart from its model and data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from curvedit.forgetting import DAMPING
from curvedit.study.arms import KINDS


@dataclass(frozen=True)
class Settings:
    """What a study does, apart from its model and data.

    Raises:
        ValueError: a number is out of range, or there is no such criterion.
    """

    places: Mapping[str, Sequence[str]]  # patterns of linear maps, by the name of the place
    fit_tokens: tuple[int, ...] = (8192, 24576)
    kinds: tuple[str, ...] = KINDS
    lost: float = 1 / 3  # share of the right tokens that edits without labels are to lose
    budget: float = 0.02  # nats per token, of the targeted mode
    damping: float = DAMPING  # of the targeted mode, in units of each mean curvature
    checked: int = 8  # windows of each domain that the targeted mode measures its damage on
    searched: int = 36  # passages that strengths are searched on
    mapped: int = 16  # passages, and every so many blocks, of the map; 0 for none
    map_every: int = 1
    tasks: int = 50  # items of each family; 0 for none
    audited: bool = True
    batch_size: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        unknown = [kind for kind in self.kinds if kind not in KINDS]
        if unknown or not self.kinds:
            got = repr(unknown[0]) if unknown else "none"
            raise ValueError(f"kinds: expected some of {list(KINDS)}, got {got}")
        if not self.places:
            raise ValueError("places: expected at least one, got none")
        if not (self.fit_tokens and min(self.fit_tokens) >= 2):
            raise ValueError(f"fit_tokens: expected numbers of at least 2, got {self.fit_tokens}")
        if not 0 < self.lost < 1:
            raise ValueError(f"lost: expected a share between 0 and 1, got {self.lost}")
        if not self.budget > 0:
            raise ValueError(f"budget: expected a positive number of nats, got {self.budget}")
        if not self.damping > 0:
            raise ValueError(f"damping: expected a positive number, got {self.damping}")
        for name in ("checked", "searched", "map_every", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
