"""The record of a finished pass: model, data, coverage, backends, cost and warnings."""

from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import Any

from torch import nn

from curvedit.fitting.run import Run
from curvedit.meter import Meter
from curvedit.models import identity_of, is_linear_map, weight_of


def provenance_of(
    run: Run, batches: Iterable[Any], notes: list[str], meter: Meter
) -> dict[str, Any]:
    """Return the record of a finished pass, as it goes into the manifest."""
    return {
        "tool": f"curvedit {version('curvedit')}",
        "made_by": "fit",
        "model": identity_of(run.model),
        "task": run.task,
        "labels": run.objective.labels,
        "seed": run.objective.seed,
        "data": getattr(batches, "identity", {"source": "batches given in Python"}),
        "samples": run.samples,
        "positions": run.positions,
        "loss_terms": run.loss_terms,
        "coverage": _coverage(run.model, run.observer.targets),
        "backward": run.backward,
        "self_check": None if run.check is None else run.check.to_json(),
        "backend": run.accumulator.record.summary(),
        "seconds": round(meter.seconds, 3),
        "peak_memory_bytes": meter.peak_bytes,
        "warnings": notes,
    }


def notes_of(run: Run) -> list[str]:
    """Return warnings: targets that were never called, and factors that cannot have full rank.

    Raises:
        ValueError: no target was ever called.
    """
    modules, tokens = run.observer.targets, run.observer.tokens
    notes = []
    if run.reason:
        notes.append(f"the model is not run block by block, which takes more memory: {run.reason}")
    idle = [name for name in modules if not tokens[name]]
    if len(idle) == len(modules):
        raise ValueError(
            f"targets: none of the {len(modules)} was called in {run.batches} batches, for example "
            f"{idle[0]!r}; the model does not use them on this data"
        )
    if idle:
        notes.append(
            f"{len(idle)} of {len(modules)} targets were never called and have no factors: "
            f"{', '.join(idle[:4])}"
        )
    short = [name for name in modules if 0 < tokens[name] < max(weight_of(modules[name]).shape)]
    if short:
        name = short[0]
        notes.append(
            f"{len(short)} of {len(modules)} targets saw fewer positions than they have "
            f"dimensions, so their factors are rank-deficient: {name} of shape "
            f"{tuple(weight_of(modules[name]).shape)} saw {tokens[name]}; fit on more data"
        )
    return notes


def _coverage(model: nn.Module, modules: Mapping[str, nn.Module]) -> dict[str, Any]:
    maps = sum(is_linear_map(module) for module in model.modules())
    total = sum(parameter.numel() for parameter in model.parameters())
    covered = sum(weight_of(module).numel() for module in modules.values())
    return {"targets": len(modules), "linear_maps": maps, "parameters": round(covered / total, 4)}
