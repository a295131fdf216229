"""Stage 2, rank: Factors in, a Selection out, which says which components to keep."""

from collections.abc import Sequence
from typing import cast

from torch import nn

from curvedit.checks import require_choice, require_share
from curvedit.factors import Factors
from curvedit.models import match_names, weight_of
from curvedit.ranking.criteria import CRITERIA, Criterion, Request
from curvedit.ranking.thresholds import ComparableScores, Kept, common_threshold
from curvedit.selection import Selection, TargetSelection

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
    """Select the weight components of highest curvature, up to a share of the total.

    Component ``(i, j)`` of ``W`` is its coefficient on output eigenvector ``i`` and input
    eigenvector ``j``; its curvature is ``lambda_i mu_j``. The smallest set of components, in
    descending curvature, whose mass reaches ``keep_mass`` of the total is kept. Ties are resolved
    row by row.

    Shapes: a target's ``limits`` (d_out,). The curvature criteria form no (d_out, d_in) array.

    Units: ``keep_mass`` is dimensionless; rescaling a factor changes nothing within one target.
    Across targets (``scope="model"``) curvatures are comparable because the loss is a sum.

    Args:
        factors: What ``fit`` returned.
        keep_mass: Share of the total score to keep, in (0, 1]; 1 leaves every weight unchanged.
        criterion: "curvature" (the paper); "weighted" (bases and eigenvalues of the norm-weighted
            factors); "ekfac" (the components' own curvature, measured in the curvature basis by
            ``fit(corrected=…)``; keeps any set of components, not a staircase); or a control: "svd"
            (scores are squared singular values; needs ``model``) or "random" (equal scores in
            random order, in the curvature basis).
        scope: "target" applies the share to each weight; "model" uses one threshold for all.
        targets: Patterns that select among the fitted targets; None selects all.
        model: The model the factors were fitted on; only "svd" reads it.
        seed: Seeds "random".
        progress: Show a progress bar while factors are decomposed.

    Returns:
        The selection; each target's ``mass`` is the share of its own total that is actually kept.

    Raises:
        ValueError: an argument is out of range, a pattern matches nothing, a target has no
            curvature, or "model" scope is requested for a control.
        KeyError: the factors that the criterion needs were not fitted.

    Source:
        Merullo et al., arXiv:2510.24256, section 5; "ekfac": George et al. 2018, arXiv:1806.03884.
    """
    share = require_share("keep_mass", keep_mass)
    chosen = CRITERIA[require_choice("criterion", criterion, tuple(CRITERIA))]
    require_choice("scope", scope, SCOPES)
    names = list(factors) if targets is None else match_names(targets, list(factors))
    if scope != "target" and not chosen.spans_targets:
        raise ValueError(f"scope: expected 'target' with the control {criterion!r}, got {scope!r}")
    requests = _requests(factors, names, chosen, model, seed)
    if chosen.kinds is not None:
        factors.decompose(
            [(kind, name) for name in names for kind in chosen.kinds], progress=progress
        )
    kept: dict[str, Kept]
    if scope == "target" or share == 1.0 or len(names) == 1:
        kept = {request.name: chosen.scores(request).keep(share) for request in requests}
    else:
        scores = {
            request.name: cast(ComparableScores, chosen.scores(request)) for request in requests
        }
        threshold = common_threshold(list(scores.values()), share)
        kept = {name: each.keep_above(threshold) for name, each in scores.items()}
    recipe = {
        "criterion": criterion,
        "keep_mass": share,
        "scope": scope,
        "seed": seed if chosen.is_random else None,
        "factors": {
            key: factors.provenance.get(key)
            for key in ("labels", "seed", "data", "positions", "model")
        },
    }
    picked = {name: _selected(factors, name, found) for name, found in kept.items()}
    return Selection(picked, recipe, factors, chosen.kinds)


def _requests(
    factors: Factors, names: Sequence[str], criterion: Criterion, model: nn.Module | None, seed: int
) -> list[Request]:
    """Return one request per target, with its weight if the criterion reads it."""
    weights = {}
    if criterion.reads_weights and model is not None:
        factors.require_model(model)
        modules = dict(model.named_modules())
        weights = {name: weight_of(modules[name]) for name in names}
    return [
        Request(factors, name, number, weights.get(name), seed) for number, name in enumerate(names)
    ]


def _selected(factors: Factors, name: str, kept: Kept) -> TargetSelection:
    target = factors.targets[name]
    values_out, values_in = kept.spectra or (None, None)
    return TargetSelection(
        name=name,
        shape=target.shape,
        limits=kept.limits,
        mask=kept.mask,
        threshold=kept.threshold,
        kept=kept.number,
        mass=kept.mass,
        weight_sha256=target.weight_sha256,
        weight_dtype=target.weight_dtype,
        values_out=values_out,
        values_in=values_in,
    )
