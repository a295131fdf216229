"""The record of a finished pass: model, data, coverage, backends, cost and warnings."""

from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from torch import nn

from curvedit.fitting.objective import Objective
from curvedit.meter import Meter
from curvedit.models import (
    ExpertMap,
    coverage_rows,
    fitted_share,
    identity_of,
    is_quantised,
    maps_of,
    passed_over,
    shape_of,
)
from curvedit.passes import Run

_RARE = "too few positions chose it"
_NONE: Mapping[str, str] = {}


def provenance_of(
    run: Run,
    objective: Objective,
    batches: Iterable[Any],
    coverage: Mapping[str, Any],
    notes: list[str],
    meter: Meter,
) -> dict[str, Any]:
    """Return the record of a finished pass, as it goes into the manifest."""
    return {
        "tool": f"curvedit {version('curvedit')}",
        "made_by": "fit",
        "model": identity_of(run.model),
        "task": run.task,
        "labels": objective.labels,
        "seed": objective.seed,
        "data": getattr(batches, "identity", {"source": "batches given in Python"}),
        "samples": run.samples,
        "positions": run.positions,
        "loss_terms": run.loss_terms,
        "rows": run.rows.to_json(),
        "coverage": coverage,
        "backward": run.backward,
        "self_check": None if run.check is None else run.check.to_json(),
        "backend": run.accumulator.record.summary(),
        "seconds": round(meter.seconds, 3),
        "peak_memory_bytes": meter.peak_bytes,
        **({"processes": run.share[1]} if run.share[1] > 1 else {}),
        "warnings": notes,
    }


def notes_of(run: Run, targets: str | Sequence[str]) -> list[str]:
    """Return warnings about what was left out, and factors that cannot have full rank.

    Raises:
        ValueError: no target was ever called.
    """
    modules, tokens = run.observer.targets, run.observer.tokens
    notes = []
    if run.reason:
        notes.append(f"the model is not run block by block, which takes more memory: {run.reason}")
    if run.fits:
        notes.append(
            f"batches did not fit into the device's memory and were run {run.fits} samples at a "
            "time, after memory had run out; give smaller ones, or see curvedit plan"
        )
    if left := passed_over(run.model, targets):
        name, reason = next(iter(left.items()))
        notes.append(
            f"{len(left)} of the weights that the patterns match cannot be fitted and stay as they "
            f"are, for example {name}: {reason}; the coverage in the manifest lists them"
        )
    stored = [name for name, module in modules.items() if is_quantised(module)]
    if stored:
        notes.append(
            f"{len(stored)} of {len(modules)} targets are quantised, for example {stored[0]}: "
            "edit the unquantised checkpoint, of which it cannot be verified that these factors "
            "are its own"
        )
    idle = [name for name in modules if not tokens[name]]
    rare = [name for name, reason in left_out(run).items() if reason == _RARE]
    if len(idle) == len(modules):
        raise ValueError(
            f"targets: none of the {len(modules)} was called in {run.batches} batches, for example "
            f"{idle[0]!r}; the model does not use them on this data"
        )
    if len(idle) + len(rare) == len(modules):
        raise ValueError(
            f"targets: expected experts that more positions choose than they have dimensions, got "
            f"{tokens[rare[0]]} of {run.positions} positions for {rare[0]!r}; fit on more data"
        )
    if rare:
        name = rare[0]
        notes.append(
            f"{len(rare)} of {len(modules)} targets are experts that fewer positions chose than "
            f"they have dimensions, and have no factors: {name} of shape "
            f"{shape_of(modules[name])} saw {tokens[name]} of {run.positions}; fit on more data"
        )
    if idle:
        notes.append(
            f"{len(idle)} of {len(modules)} targets were never called and have no factors: "
            f"{', '.join(idle[:4])}"
        )
    short = [
        name
        for name in modules
        if name not in rare and 0 < tokens[name] < max(shape_of(modules[name]))
    ]
    if short:
        name = short[0]
        notes.append(
            f"{len(short)} of {len(modules)} targets saw fewer positions than they have "
            f"dimensions, so their factors are rank-deficient: {name} of shape "
            f"{shape_of(modules[name])} saw {tokens[name]}; fit on more data"
        )
    return notes


def left_out(run: Run) -> dict[str, str]:
    """Targets that have no factors after a pass, with the reason.

    An expert that saw fewer positions than it has dimensions, on data that has enough of them, is
    one: what it did not see would look flat, and be the first to go.
    """
    found = {}
    for name, module in run.observer.targets.items():
        tokens = run.observer.tokens[name]
        if not tokens:
            found[name] = "it was never called"
        elif isinstance(module, ExpertMap) and tokens < max(shape_of(module)) <= run.positions:
            found[name] = _RARE
    return found


def require_coverage(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    least: float,
    left_out: Mapping[str, str] = _NONE,
) -> dict[str, Any]:
    """Return how much of a model is fitted, and what of it is not and why.

    Args:
        model: Any module; tied parameters count once.
        modules: The targets.
        least: Share of the parameters that they must hold, from 0 to 1.
        left_out: Names of targets that have no factors and so do not count, with the reason.

    Returns:
        The entry of the provenance: ``targets`` and ``linear_maps`` count, ``parameters`` is a
        share, ``table`` lists all parameters by module and kind.

    Raises:
        ValueError: the targets hold less; the message names the largest parameters left out.
    """
    if not 0 <= least <= 1:
        raise ValueError(f"min_coverage: expected a share from 0 to 1, got {least!r}")
    rows = coverage_rows(model, modules, left_out)
    share = fitted_share(rows)
    if share < least:
        left = [row for row in rows if not row.fitted][:3]
        listed = "; ".join(f"{row.name} ({row.parameters:,}): {row.why}" for row in left)
        raise ValueError(
            f"min_coverage: expected targets with at least {least:.1%} of the parameters, "
            f"got {share:.1%}; not fitted are {listed}"
        )
    return {
        "targets": len(modules),
        "linear_maps": len(maps_of(model, quantised=True)),
        "parameters": round(share, 4),
        "table": [row.to_json() for row in rows],
    }
