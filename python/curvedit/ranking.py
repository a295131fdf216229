"""Stage 2, rank: Factors become a Selection of the components to keep."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from curvedit import linear, ops
from curvedit.check import require_choice, require_finite, require_share
from curvedit.eigen import singular_bases
from curvedit.factors import Factors
from curvedit.selection import BASES, Basis, Selection, TargetSelection
from curvedit.target import Target

CURVATURE = ("curvature", "weighted")  # scores are products of eigenvalues
CONTROLS = ("svd", "random")
CRITERIA = (*CURVATURE, "ekfac", *CONTROLS)
SCOPES = ("target", "model")


def rank(
    factors: Factors,
    *,
    keep_mass: float,
    criterion: str = "curvature",
    scope: str = "target",
    targets: str | Sequence[str] | None = None,
    model: nn.Module | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Selection:
    """Choose the sharpest weight components, up to a share of the curvature.

    Component ``(i, j)`` of ``W`` is its coefficient on output eigenvector ``i`` and input
    eigenvector ``j``; its curvature is ``lambda_i mu_j``. Kept is the smallest set, in descending
    curvature, whose mass reaches ``keep_mass`` of the total; ties go row by row.

    Shapes: a selection's ``limits`` (d_out,); no (d_out, d_in) array is formed for the curvature
    criteria.

    Units: ``keep_mass`` has none; rescaling a factor changes nothing within one target. Across
    targets (``scope="model"``) curvatures compare because the loss is a sum.

    Args:
        factors: What ``fit`` returned.
        keep_mass: Share of the total score to keep, in (0, 1]; 1 keeps every weight as it is.
        criterion: "curvature" (the paper); "weighted" (basis and eigenvalues of the norm-weighted
            factors); "ekfac" (the components' own curvature, measured in the curvature basis by
            ``fit(corrected=…)``; any set of components, not a staircase); or the controls "svd"
            (score: squared singular value; needs ``model``) and "random" (equal scores in random
            order, in the curvature basis).
        scope: "target" applies the share to each weight matrix; "model" puts one threshold over all.
        targets: Patterns that choose among the fitted targets; None takes all.
        model: The model the factors were fitted on; only "svd" reads it.
        seed: Of "random".
        progress: Show a progress bar while factors are decomposed.

    Returns:
        The selection; each target's ``mass`` is the share of its own total in fact kept.

    Raises:
        ValueError: an argument is out of range, a pattern matches nothing, a target has no
            curvature at all, or "model" scope is asked of a control.
        KeyError: the factors the criterion needs were not fitted.

    Source:
        Merullo et al., arXiv:2510.24256, section 5; George et al. 2018, arXiv:1806.03884, for "ekfac".
    """
    share = require_share("keep_mass", keep_mass)
    require_choice("criterion", criterion, CRITERIA)
    require_choice("scope", scope, SCOPES)
    chosen = _choose(factors, targets)
    recipe = {
        "criterion": criterion,
        "keep_mass": share,
        "scope": scope,
        "seed": seed if criterion == "random" else None,
        "factors": {key: factors.provenance.get(key) for key in ("labels", "seed", "data", "positions", "model")},
    }
    if criterion in BASES:
        kinds = BASES[criterion]
        factors.decompose([(kind, name) for name in chosen for kind in kinds], progress=progress)
    if criterion in CURVATURE:
        spectra = {name: _spectra(factors, name, *BASES[criterion]) for name in chosen}
        found = _staircases(spectra, share, scope)
        picked = {name: _curved(factors, name, BASES[criterion], spectra[name], *found[name]) for name in chosen}
        return Selection(picked, recipe)
    if criterion == "ekfac":
        return Selection(_corrected(factors, chosen, share, scope), recipe)
    if scope != "target":
        raise ValueError(f"scope: expected 'target' with the control {criterion!r}, got {scope!r}")
    if criterion == "random":
        return Selection(
            {name: _random(factors, name, share, [seed, number]) for number, name in enumerate(chosen)}, recipe
        )
    if model is None:
        raise ValueError("model: the criterion 'svd' reads the weights; pass the factors' model")
    factors.require_model(model)
    modules = dict(model.named_modules())
    return Selection(
        {name: _svd(factors.targets[name], name, linear.weight_of(modules[name]), share) for name in chosen}, recipe
    )


def _choose(factors: Factors, targets: str | Sequence[str] | None) -> list[str]:
    if targets is None:
        return list(factors)
    return linear.match_names(targets, list(factors))


def _spectra(factors: Factors, name: str, output: str, inputs: str) -> tuple[Tensor, Tensor]:
    """Eigenvalues of the output and input factor, float64."""
    lam, mu = factors.basis(output, name).values, factors.basis(inputs, name).values
    if not float(lam.sum()) * float(mu.sum()) > 0.0:
        raise ValueError(
            f"factors: {name!r} has no curvature at all (an all-zero factor); the loss does not depend on it. "
            "Leave it out with targets="
        )
    return lam, mu


Found = tuple[Tensor, float, int, float]  # limits, threshold, kept, mass


def _staircases(spectra: Mapping[str, tuple[Tensor, Tensor]], share: float, scope: str) -> dict[str, Found]:
    if scope == "target" or share == 1.0 or len(spectra) == 1:
        return {name: ops.call("staircase_limits", lam, mu, share) for name, (lam, mu) in spectra.items()}
    threshold = _common_threshold(list(spectra.values()), share)
    found: dict[str, Found] = {}
    for name, (lam, mu) in spectra.items():
        limits = _at_or_above(lam, mu, threshold)
        mass = float((lam * _cumulative(mu)[limits]).sum() / (lam.sum() * mu.sum()))
        found[name] = (limits.int(), threshold, int(limits.sum()), mass)
    return found


def _common_threshold(spectra: list[tuple[Tensor, Tensor]], share: float) -> float:
    """Largest threshold at which the kept mass of all targets together reaches the share.

    Non-negative float64 sort like their bit patterns, so bisecting the bits is exact. Components
    that tie with it are all kept: across targets no order of rows is natural.
    """
    target = share * sum(float(lam.sum() * mu.sum()) for lam, mu in spectra)
    cumulative = [_cumulative(mu) for _, mu in spectra]

    def mass(threshold: float) -> float:
        return sum(
            float((lam * sums[_at_or_above(lam, mu, threshold)]).sum())
            for (lam, mu), sums in zip(spectra, cumulative, strict=True)
        )

    low, high = 0, int(np.float64(max(float(lam[0] * mu[0]) for lam, mu in spectra)).view(np.int64))
    while low < high:
        middle = low + (high - low + 1) // 2
        if mass(float(np.int64(middle).view(np.float64))) >= target:
            low = middle
        else:
            high = middle - 1
    return float(np.int64(low).view(np.float64))


def _at_or_above(lam: Tensor, mu: Tensor, threshold: float) -> Tensor:
    """Per output eigenvector, how many products ``lam_i mu_j`` are at least the threshold: int64 (m,)."""
    low = torch.zeros(lam.shape[0], dtype=torch.int64)
    high = torch.full_like(low, mu.shape[0])
    while bool((low < high).any()):  # the products themselves are compared, not mu with a rounded quotient
        middle = (low + high) // 2
        above = lam * mu[middle.clamp(max=mu.shape[0] - 1)] >= threshold
        inside = low < high
        low = torch.where(inside & above, middle + 1, low)
        high = torch.where(inside & ~above, middle, high)
    return low


def _cumulative(mu: Tensor) -> Tensor:
    return torch.cat([mu.new_zeros(1), mu.cumsum(0)])


def _curved(
    factors: Factors,
    name: str,
    kinds: tuple[str, str],
    spectra: tuple[Tensor, Tensor],
    limits: Tensor,
    threshold: float,
    kept: int,
    mass: float,
) -> TargetSelection:
    def bases(_: Tensor) -> tuple[Basis, Basis]:
        return factors.basis(kinds[0], name), factors.basis(kinds[1], name)

    return _selected(factors.targets[name], name, limits, None, threshold, kept, mass, bases, spectra)


def _corrected(factors: Factors, names: list[str], share: float, scope: str) -> dict[str, TargetSelection]:
    """The largest scores, as bit masks; ties go row by row, or are all kept under one threshold for all targets."""
    threshold = None
    if scope == "model" and share < 1.0 and len(names) > 1:
        threshold = _threshold_of_scores(factors, names, share)
    picked = {}
    for name in names:
        target, scores = factors.targets[name], factors.corrections(name).cpu().flatten()
        total = float(scores.sum(dtype=torch.float64))
        if not total > 0.0:
            raise ValueError(f"factors: {name!r} has no curvature at all; leave it out with targets=")
        if threshold is not None:
            flags = scores >= threshold
        else:
            descending, order = scores.sort(descending=True, stable=True)
            cumulative = descending.double().cumsum(0)
            number = int(torch.searchsorted(cumulative, share * cumulative[-1])) + 1
            flags = torch.zeros(len(scores), dtype=torch.bool)
            flags[order[: len(scores) if share == 1.0 else number]] = True
        kept, mass = int(flags.sum()), float(scores[flags].sum(dtype=torch.float64)) / total
        least = float(scores[flags].min()) if kept else float("inf")
        mask = torch.from_numpy(np.packbits(flags.view(target.shape).numpy(), axis=1))
        picked[name] = _selected(target, name, None, mask, least, kept, mass, _curvature_bases(factors, name), None)
    return picked


def _threshold_of_scores(factors: Factors, names: list[str], share: float) -> float:
    """Largest score at which what is kept of all targets reaches the share; float32 sort like their bits."""
    scores = [factors.corrections(name).cpu().flatten().sort().values for name in names]
    sums = [torch.cat([each.new_zeros(1, dtype=torch.float64), each.double().cumsum(0)]) for each in scores]
    wanted = share * float(sum(its[-1] for its in sums))
    low, high = 0, int(np.float32(max(float(each[-1]) for each in scores)).view(np.int32))
    while low < high:
        middle = low + (high - low + 1) // 2
        value = torch.tensor(float(np.int32(middle).view(np.float32)))
        mass = sum(
            float(its[-1] - its[torch.searchsorted(each, value)]) for each, its in zip(scores, sums, strict=True)
        )
        low, high = (middle, high) if mass >= wanted else (low, middle - 1)
    return float(np.int32(low).view(np.float32))


def _curvature_bases(factors: Factors, name: str) -> Callable[[Tensor], tuple[Basis, Basis]]:
    return lambda _: (factors.basis("G", name), factors.basis("A", name))


def _random(factors: Factors, name: str, share: float, key: list[int]) -> TargetSelection:
    """Equal scores: a share of all components, in the curvature basis."""
    target = factors.targets[name]
    total = target.shape[0] * target.shape[1]
    kept = int(np.ceil(share * total))
    flags = np.zeros(total, dtype=bool)
    flags[np.random.default_rng(key).permutation(total)[:kept]] = True
    mask = torch.from_numpy(np.packbits(flags.reshape(target.shape), axis=1))
    return _selected(target, name, None, mask, 1.0 / total, kept, kept / total, _curvature_bases(factors, name), None)


def _svd(target: Target, name: str, weight: Tensor, share: float) -> TargetSelection:
    """Squared singular values as scores: the leading ones, in the weight's own singular basis."""
    require_finite(f"model: the weight of {name!r}", weight)
    scores = torch.linalg.svdvals(weight.double()).square().cpu()
    cumulative = scores.cumsum(0)
    number = min(int(torch.searchsorted(cumulative, share * cumulative[-1])) + 1, len(scores))
    kept = target.shape[0] * target.shape[1] if share == 1.0 else number * number
    limits = torch.zeros(target.shape[0], dtype=torch.int32)
    limits[: target.shape[0] if share == 1.0 else number] = target.shape[1] if share == 1.0 else number
    mass = float(cumulative[number - 1] / cumulative[-1])
    return _selected(target, name, limits, None, float(scores[number - 1]), kept, mass, singular_bases, None)


def _selected(
    target: Target,
    name: str,
    limits: Tensor | None,
    mask: Tensor | None,
    threshold: float,
    kept: int,
    mass: float,
    bases: Any,
    spectra: tuple[Tensor, Tensor] | None,
) -> TargetSelection:
    return TargetSelection(
        name=name,
        shape=target.shape,
        limits=limits,
        mask=mask,
        threshold=threshold,
        kept=kept,
        mass=mass,
        weight_sha256=target.weight_sha256,
        weight_dtype=target.weight_dtype,
        values_out=None if spectra is None else spectra[0],
        values_in=None if spectra is None else spectra[1],
        bases=bases,
    )
