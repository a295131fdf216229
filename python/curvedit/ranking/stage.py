"""Stage 2, rank: Factors in, a Selection out, which says which components to keep."""

import functools
import math
import operator
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

from torch import nn

from curvedit import meter
from curvedit.checks import require_choice, require_share
from curvedit.factors import Factors
from curvedit.models import frozen, maps_of, match_names, weight_of
from curvedit.ranking.criteria import CRITERIA, Criterion, NoCurvatureError, Request
from curvedit.ranking.price import Price, price_of, share_within
from curvedit.ranking.thresholds import ComparableScores, Kept, common_threshold
from curvedit.ranking.trials import Trials
from curvedit.selection import Selection, TargetSelection

SCOPES = ("target", "model")
_LITTLE = 0.1  # a share of the components below which a warning is due


def rank(
    factors: Factors,
    *,
    keep_mass: float | None = None,
    keep_kl: float | None = None,
    criterion: str = "curvature",
    scope: str = "target",
    targets: str | Sequence[str] | None = None,
    skip: str | Sequence[str] | None = None,
    model: nn.Module | None = None,
    holdout: Any = None,
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
    ``keep_kl`` is in nats per position.

    Args:
        factors: What ``fit`` returned.
        keep_mass: Share of the total score to keep, in (0, 1]; 1 leaves every weight unchanged.
        keep_kl: In its place, the KL divergence from the unedited model that the edit may cost: the
            smallest share is kept that is expected to cost no more (``1/2 sum lambda mu C^2`` over
            the removed components, times 2). An order of magnitude, too low where factors are of
            little data: give ``holdout`` too. Needs ``model`` and criterion "curvature". The recipe
            holds the share and ``expected_kl``.
        criterion: "curvature" (the paper); "weighted" (bases and eigenvalues of the norm-weighted
            factors); "ekfac" (the components' own curvature, measured in the curvature basis by
            ``fit(corrected=…)``; keeps any set of components, not a staircase); or a control: "svd"
            (scores are squared singular values; needs ``model``) or "random" (equal scores in
            random order, in the curvature basis).
        scope: "target" applies the share to each weight; "model" uses one threshold for all.
        targets: Patterns that select among the fitted targets; None selects all.
        skip: Patterns of targets to leave out, such as those without curvature; None leaves out
            none.
        model: The model the factors were fitted on; only "svd" and ``keep_kl`` read it.
        holdout: Text, as for ``forget``, on which the divergence of at most 8 edits is measured:
            the share is kept whose edit costs ``keep_kl`` there or up to 15 % less, or of all
            tried the nearest below it. The model is edited meanwhile, and restored bit for bit.
            The recipe then holds ``measured_kl`` and ``measured_positions`` too.
        seed: Seeds "random".
        progress: Show a progress bar while factors are decomposed.

    Returns:
        The selection; each target's ``mass`` is the share of its own total that is actually kept.

    Raises:
        TypeError: ``holdout`` is of an unknown kind, or can be read only once.
        ValueError: an argument is out of range, a pattern matches nothing, a target has no
            curvature, "model" scope is requested for a control, or not one of ``keep_mass`` and
            ``keep_kl`` is given; ``holdout`` is empty, does not fit the model, or is given without
            ``keep_kl``; or even the lightest edit costs more than ``keep_kl`` on it.
        RuntimeError: another thread uses the model while edits are measured.
        KeyError: the factors that the criterion needs were not fitted.

    Warns:
        UserWarning: less than a tenth of a target's components is kept.

    Source:
        Merullo et al., arXiv:2510.24256, section 5; "ekfac": George et al. 2018, arXiv:1806.03884.
    """
    require_one(keep_mass, keep_kl)
    share = require_possible(
        keep_mass, keep_kl, criterion=criterion, scope=scope, measured=holdout is not None
    )
    if keep_kl is not None and model is None:
        raise ValueError("model: expected the fitted model, whose weights keep_kl reads, got None")
    chosen = CRITERIA[criterion]
    names = choose_targets(factors, targets, skip)
    requests = _requests(factors, names, chosen, model, seed)

    def pick(share: float) -> Selection:
        kept = _kept(requests, chosen, share, scope)
        picked = {name: _selected(factors, name, found) for name, found in kept.items()}
        return Selection(picked, {}, factors, chosen.kinds)

    priced: dict[str, Any] = {}
    with _trials(factors, names, model, holdout, progress) as trials:
        if chosen.kinds is not None:
            factors.decompose(
                [(kind, name) for name in names for kind in chosen.kinds], progress=progress
            )
        if keep_kl is not None and model is not None:
            prices = _prices(factors, names, model, scope, progress)
            if trials is None:
                share, expected = share_within(prices, keep_kl)
            else:
                found = trials.search(prices, keep_kl, pick, together=scope == "model")
                share, expected = found.share, found.expected
                priced = {"measured_kl": found.measured, "measured_positions": trials.positions}
            priced = {"keep_kl": keep_kl, "expected_kl": expected, **priced}
    selection = pick(share)
    recipe = {
        "criterion": criterion,
        "keep_mass": share,
        **priced,
        "scope": scope,
        "seed": seed if chosen.is_random else None,
        "factors": {
            key: factors.provenance.get(key)
            for key in ("labels", "seed", "data", "positions", "model")
        },
    }
    _warn_of_little(selection, share)
    return replace(selection, recipe=recipe)


def require_one(keep_mass: float | None, keep_kl: float | None) -> None:
    """Raise ``ValueError`` unless one of the two is given."""
    if (keep_mass is None) == (keep_kl is None):
        given = "neither" if keep_mass is None else "both"
        raise ValueError(f"keep_mass: expected either it or keep_kl, got {given}")


def require_possible(
    keep_mass: float | None,
    keep_kl: float | None = None,
    *,
    criterion: str,
    scope: str,
    measured: bool = False,
) -> float:
    """Return the share, 1 if a divergence is given; raise ``ValueError`` if they cannot be.

    ``measured`` says whether there is held-out text.
    """
    share = 1.0 if keep_mass is None else require_share("keep_mass", keep_mass)
    chosen = CRITERIA[require_choice("criterion", criterion, tuple(CRITERIA))]
    require_choice("scope", scope, SCOPES)
    if scope != "target" and not chosen.spans_targets:
        raise ValueError(f"scope: expected 'target' with the control {criterion!r}, got {scope!r}")
    if keep_kl is not None:
        if not (math.isfinite(keep_kl) and keep_kl > 0):
            raise ValueError(f"keep_kl: expected a positive number of nats, got {keep_kl!r}")
        if criterion != "curvature":
            raise ValueError(f"keep_kl: expected criterion 'curvature' with it, got {criterion!r}")
    elif measured:
        raise ValueError(
            "holdout: expected keep_kl with it, whose edit is measured there, got none"
        )
    return share


@contextmanager
def _trials(
    factors: Factors, names: Sequence[str], model: nn.Module | None, holdout: Any, shown: bool
) -> Iterator[Trials | None]:
    """Yield what measures edits of the model; None without held-out text."""
    if model is None or holdout is None:
        yield None
        return
    with frozen(model):
        yield Trials(model, factors, names, holdout, shown=shown)


def _prices(
    factors: Factors, names: Sequence[str], model: nn.Module, scope: str, shown: bool
) -> list[Price]:
    """What each target's components cost; with scope "model", all targets' together."""
    factors.require_model(model)
    modules = maps_of(model)
    prices = []
    with meter.progress(len(names), unit="target", what="price", shown=shown) as bar:
        for name in names:
            prices.append(price_of(factors, name, weight_of(modules[name])))
            bar.update()
    return [functools.reduce(operator.add, prices)] if scope == "model" else prices


def choose_targets(
    fitted: Iterable[str], targets: str | Sequence[str] | None, skip: str | Sequence[str] | None
) -> list[str]:
    """Return the fitted targets that ``targets`` matches (None: all) and ``skip`` does not.

    Raises:
        ValueError: a pattern matches nothing, or nothing remains.
    """
    known = list(fitted)
    names = known if targets is None else match_names(targets, known)
    if skip is None:
        return names
    try:
        left_out = set(match_names(skip, known))
    except ValueError as error:
        raise ValueError(f"skip: {str(error).removeprefix('targets: ')}") from error
    remaining = [name for name in names if name not in left_out]
    if not remaining:
        raise ValueError(
            f"skip: expected to leave at least one target, got patterns of all {len(names)}"
        )
    return remaining


def _kept(
    requests: Sequence[Request], criterion: Criterion, share: float, scope: str
) -> dict[str, Kept]:
    """Return what each target keeps.

    Raises:
        ValueError: targets have no curvature; the message names them all.
    """
    kept: dict[str, Kept] = {}
    scores: dict[str, ComparableScores] = {}
    flat: list[NoCurvatureError] = []
    alone = scope == "target" or share == 1.0 or len(requests) == 1
    for request in requests:
        meter.beat()
        try:
            found = criterion.scores(request)
        except NoCurvatureError as error:
            flat.append(error)
            continue
        if alone:
            kept[request.name] = found.keep(share)
        else:
            scores[request.name] = cast(ComparableScores, found)
    if flat:
        raise NoCurvatureError(*(name for error in flat for name in error.names))
    if alone:
        return kept
    often = {each.name: each.factors.frequency(each.name) for each in requests}
    threshold = common_threshold(list(scores.values()), list(often.values()), share)
    return {name: each.keep_above(threshold / often[name]) for name, each in scores.items()}


def _warn_of_little(picked: Mapping[str, TargetSelection], share: float) -> None:
    """Warn if less than a tenth of a target's components is kept."""
    little = {name: each.kept_share for name, each in picked.items() if each.kept_share < _LITTLE}
    if little:
        least = min(little, key=lambda name: little[name])
        warnings.warn(
            f"keep_mass: {share:g} keeps less than {_LITTLE:.0%} of the components of "
            f"{len(little)} of {len(picked)} targets, only {little[least]:.2%} of {least!r}; an "
            "edit that deletes so much may ruin the model: measure it, or keep more",
            stacklevel=3,
        )


def _requests(
    factors: Factors, names: Sequence[str], criterion: Criterion, model: nn.Module | None, seed: int
) -> list[Request]:
    """Return one request per target, with its weight if the criterion reads it."""
    weights = {}
    if criterion.reads_weights and model is not None:
        factors.require_model(model)
        modules = maps_of(model)
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
