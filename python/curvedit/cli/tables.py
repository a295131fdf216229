"""Selections and decompositions as text, for ``rank`` and ``inspect``."""

import torch

from curvedit.factors import Factors
from curvedit.meter import peak_memory
from curvedit.ops import plan
from curvedit.selection import Selection


def selection_table(selection: Selection) -> str:
    """The recipe, then one line per target: what is kept of it."""
    lines = [f"{key}: {selection.recipe[key]}" for key in ("criterion", "keep_mass", "scope")]
    for name, target in selection.items():
        rows, columns = target.shape
        share = target.kept / (rows * columns)
        lines.append(
            f"{name}  {rows} x {columns}  "
            f"keeps {share:.2%} of its components, mass {target.mass:.4f}"
        )
    return "\n".join(lines)


def sweep_table(selections: list[Selection]) -> str:
    """One line per share: what is kept, and the operations of its edit beside a dense one's."""
    recipe = selections[0].recipe
    lines = [f"{key}: {recipe[key]}" for key in ("criterion", "scope")] + [
        "keep_mass  components  operations of dense"
    ]
    for selection in selections:
        targets = selection.values()
        kept = sum(target.kept for target in targets) / sum(
            target.shape[0] * target.shape[1] for target in targets
        )
        plans = [
            plan(target.limits.numpy(), target.shape[1])
            for target in targets
            if target.limits is not None
        ]
        cost = (
            sum(found.operations for found in plans) / sum(found.dense for found in plans)
            if plans
            else 1.0
        )
        lines.append(f"{selection.recipe['keep_mass']:9g}  {kept:10.2%}  {cost:19.2%}")
    return "\n".join(lines)


def decomposition_summary(factors: Factors, selection: Selection, seconds: float) -> str:
    """Seconds, peak memory, and the worst values among the bases' certificates."""
    certificates = [
        factors.certificate(kind, name) for name in selection for kind in selection.kinds or ()
    ]
    text = f"ranked in {seconds:.1f} s, peak {peak_memory(torch.device('cpu')) / 2**30:.2f} GiB"
    if not certificates:
        return text
    worst = {key: max(each[key] for each in certificates) for key in ("residual", "orthogonality")}
    singular = sum(each["condition"] is None for each in certificates)
    retried = sum(each["retried"] for each in certificates)
    return (
        f"{text}; {len(certificates)} bases: residual at most {worst['residual']:.0e}, "
        f"orthogonality {worst['orthogonality']:.0e}, "
        f"{singular} singular, {retried} decomposed twice"
    )
