"""Stage 4, evaluate: a model and a Suite in, a Report out."""

import platform
from dataclasses import replace
from importlib import metadata

import torch
from torch import nn

from curvedit.evaluation.bootstrap import paired_difference
from curvedit.evaluation.measure import Run
from curvedit.evaluation.suite import Suite
from curvedit.meter import metered
from curvedit.models import device_of, dtype_of, identity_of, measuring, require_causal
from curvedit.report import Metric, Metrics, Report, Stage


def evaluate(
    model: nn.Module, suite: Suite, *, baseline: Report | None = None, progress: bool = True
) -> Report:
    """Measure what a model recites, predicts and classifies.

    Without a baseline the model is the unedited one: the report has ``before`` only and holds the
    reference for nDCG@10. With a baseline the model is an edited one.

    Shapes: the logits of a few windows exist at a time; the reference is (positions, 10) int32.

    Units: perplexity is exp of nats per token; the other metrics are shares or have no unit.

    Args:
        model: In any mode; it is measured in evaluation mode and returned in its own.
        suite: What to measure.
        baseline: The report of the unedited model on the same suite.
        progress: Show how far decoding and reading have come.

    Returns:
        The report: ``before``, and ``after`` where a baseline was given, with 95 % bootstrap
        intervals, paired ones of the differences, what was found of each passage, hashes of the
        data, versions, seconds and peak memory.

    Raises:
        CausalityError: the suite has passages or text, but the model is not a causal language
            model.
        ValueError: the baseline was measured on other data, the data do not fit the model, or its
            logits are not finite.

    Source:
        Merullo et al., arXiv:2510.24256, section 5 and appendix C.

    Example:
        >>> import torch
        >>> data = [(torch.eye(3), torch.tensor([0, 1, 1]))]
        >>> report = evaluate(torch.nn.Identity(), Suite(splits={"toy": data}, resamples=100))
        >>> round(report.before.accuracy["toy"].value, 3)
        0.667
    """
    device = device_of(model)
    run = Run(suite.measures, baseline, suite.batch_size, suite.pad, suite.resamples, suite.seed)
    run.shows_progress, run.decode = progress, suite.decode
    with metered(device) as meter, measuring(model):
        _require_fits(model, run)
        metrics = _measure(model, run)
    stage = Stage(
        round(meter.seconds, 3), meter.peak_bytes, {"torch": f"{device.type}, {dtype_of(model)}"}
    )
    if baseline is None:
        return Report(
            before=metrics,
            model=identity_of(model),
            recipe={"measured_on": run.sources} if run.sources else {},
            hashes=run.hashes,
            data=run.counts,
            tool=_tool(device),
            stages={"evaluate before": stage},
            reference=run.reference,
            details={name: {"before": rows} for name, rows in run.rows.items()},
        )
    return replace(
        baseline,
        after=metrics,
        controls=(),
        stages={**baseline.stages, "evaluate after": stage},
        differences=_differences(baseline.before, metrics, run),
        details={
            name: {**baseline.details.get(name, {}), "after": rows}
            for name, rows in run.rows.items()
        },
    )


def _differences(before: Metrics, after: Metrics, run: Run) -> Metrics:
    """After less before, of every metric whose units both have."""
    found: dict[str, Metric] = {}
    for key, metric in after.items():
        first = before[key].units if key in before else None
        if first is not None and metric.units is not None:
            change = paired_difference(first, metric.units, resamples=run.resamples, seed=run.seed)
            found |= {} if change is None else {key: change}
    return Metrics(found)


def _require_fits(model: nn.Module, run: Run) -> None:
    """Let every measure look at its data, and check once that the model is causal if it must be."""
    probes = [measure.probe(model, run) for measure in run.measures]
    ids = next((ids for ids in probes if ids is not None), None)
    if ids is not None:
        require_causal(model, ids)


def _measure(model: nn.Module, run: Run) -> Metrics:
    found: dict[str, Metric] = {}
    for measure in run.measures:
        values = measure.measure(model, run)
        if set(values) != set(measure.keys):
            raise ValueError(
                f"{type(measure).__name__}: expected the metrics {list(measure.keys)}, "
                f"got {list(values)}"
            )
        found |= values
    return Metrics(found)


def _tool(device: torch.device) -> dict[str, str]:
    versions = {
        name: metadata.version(name)
        for name in ("curvedit", "torch", "transformers")
        if _installed(name)
    }
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        **versions,
        "python": platform.python_version(),
        "device": f"{device.type} ({hardware})",
    }


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True
