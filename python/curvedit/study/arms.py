"""The edits that a study compares: criteria, controls and the targeted mode, at any strength."""

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from curvedit.data import Ids, Passages
from curvedit.editing import Edit, Original, TargetEdit, editable, restored_on_error
from curvedit.factors import Factors
from curvedit.forgetting import forget
from curvedit.models import maps_of, weight_hash, weight_of
from curvedit.projection import project
from curvedit.ranking import rank

CRITERIA = ("curvature", "weighted")  # need factors, forget without labels
CONTROLS = ("svd", "random", "noise")
TARGETED = "targeted"
KINDS = (*CRITERIA, *CONTROLS, TARGETED)
WHAT = {
    "curvature": "share of the curvature removed",
    "weighted": "share of the weighted curvature removed",
    "svd": "share of the squared singular values removed",
    "random": "share of the components removed",
    "noise": "norm of the noise over that of the weight",
    TARGETED: "nats per token allowed",
}


@dataclass(frozen=True)
class Arm:
    """One edit of a study: what is done, where, and with factors from how much text."""

    criterion: str  # of KINDS
    place: str
    fit_tokens: int | None  # None for controls, which factors only give the bases

    @property
    def name(self) -> str:
        """Its name in files and tables."""
        parts = [self.criterion, self.place]
        return ", ".join([*parts, f"{self.fit_tokens:,} tokens"] if self.fit_tokens else parts)

    @property
    def file(self) -> str:
        """The stem of its files."""
        return file_of(self.name)


@dataclass(frozen=True)
class Editor:
    """Edits a model, in place and undoable."""

    model: nn.Module
    factors: Mapping[int, Factors]  # by tokens fitted on
    places: Mapping[str, Sequence[str]]  # names of linear maps
    passages: Passages  # to forget by name, in the targeted mode
    damping: float  # of the targeted mode
    checked_on: Sequence[Ids]  # windows on which the targeted mode measures its damage
    seed: int
    batch_size: int
    shows_progress: bool

    def edit(self, arm: Arm, strength: float) -> Edit:
        """Apply an arm; what ``strength`` means is said in :data:`WHAT`."""
        names = self.places[arm.place]
        factors = self.factors[arm.fit_tokens or max(self.factors)]
        if arm.criterion == "noise":
            return add_noise(self.model, factors, names, strength, seed=self.seed)
        if arm.criterion == TARGETED:
            return forget(
                self.model,
                factors,
                self.passages,
                holdout=list(self.checked_on),
                targets=list(names),
                budget=strength,
                damping=self.damping,
                batch_size=self.batch_size,
                progress=self.shows_progress,
            )
        selection = rank(
            factors,
            keep_mass=1.0 - strength,
            criterion=arm.criterion,
            targets=list(names),
            model=self.model,
            seed=self.seed,
            progress=False,
        )
        return project(self.model, selection)


def add_noise(
    model: nn.Module, factors: Factors, names: Sequence[str], size: float, *, seed: int
) -> Edit:
    """Add Gaussian noise of a size to weights.

    Args:
        model: Edited in place.
        factors: Of the model; they say which weights these are.
        names: The linear maps.
        size: Norm of the noise over that of each weight.
        seed: Seeds the noise, together with each name.

    Returns:
        The edit, with ``undo()``.
    """
    start = time.perf_counter()
    modules = editable(model, {name: factors.targets[name] for name in names})
    edited: dict[str, TargetEdit] = {}
    with restored_on_error() as originals:
        for name, module in modules.items():
            weight = weight_of(module)
            before, norm = weight_hash(weight), weight.float().norm()
            key = hashlib.sha256(f"{seed} {name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(key[:7], "big"))
            noise = torch.randn(weight.shape, generator=generator).to(weight.device)
            originals.append(Original.of(name, module))
            weight.copy_((weight.float() + noise * (size * norm / noise.norm())).to(weight.dtype))
            edited[name] = TargetEdit(1.0, size, "torch", before, weight_hash(weight))
    return Edit(edited, time.perf_counter() - start, _originals=originals)


def change_of(edit: Edit, model: nn.Module) -> float:
    """Norm of the change of all edited weights over the norm of those weights."""
    modules = maps_of(model)
    norms = {name: float(weight_of(modules[name]).float().norm()) for name in edit.targets}
    total = sum(norm**2 for norm in norms.values())
    changed = sum((each.change * norms[name]) ** 2 for name, each in edit.targets.items())
    return float((changed / total) ** 0.5)


def arms_of(places: Sequence[str], fit_tokens: Sequence[int], kinds: Sequence[str]) -> list[Arm]:
    """Every arm of a study: factors of each size for what needs them, controls once."""
    return [
        Arm(kind, place, tokens)
        for place in places
        for kind in kinds
        for tokens in ((None,) if kind in CONTROLS else sorted(fit_tokens, reverse=True))
    ]


def file_of(name: str) -> str:
    """The name of an arm as the stem of a file's."""
    return name.replace(", ", "--").replace(",", "").replace(" ", "-")
