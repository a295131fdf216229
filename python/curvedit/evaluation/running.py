"""The verb: measure a model on a suite, beside a baseline."""

from importlib.metadata import version

import torch
from torch import nn

from curvedit.evaluation.accuracy import accuracy
from curvedit.evaluation.likelihood import likelihood
from curvedit.evaluation.recitation import recitation
from curvedit.evaluation.suite import Suite
from curvedit.meter import metered
from curvedit.report import Estimate, Report


def evaluate(model: nn.Module, suite: Suite, *, baseline: Report | None = None) -> Report:
    """Measure what a model recites and what it knows, with 95 % bootstrap intervals.

    Measure the unedited model first; its report is the ``baseline`` of every edited one::

        before = evaluate(model, suite)
        project(model, selection)
        report = evaluate(model, suite, baseline=before)

    Args:
        model: A causal language model for passages and text, a classifier for splits.
        suite: What to measure on; iterated once per call.
        baseline: Report of the unedited model on the same suite; holds the nDCG@10 reference.

    Returns:
        A report with ``before`` alone, or with the baseline's ``before`` and this model's ``after``.

    Raises:
        ValueError: data is empty, the model is not causal, or the baseline is of another suite.

    Source:
        Recitation and nDCG@10: Merullo et al., arXiv:2510.24256, section 5 and appendix C.
    """
    device = next(model.parameters()).device
    modes = {module: module.training for module in model.modules()}
    model.eval()
    measured: dict[str, Estimate] = {}
    reference = None if baseline is None else baseline.reference
    try:
        with metered(device) as meter:
            if suite.passages is not None:
                measured |= recitation(
                    model, suite.passages, batch_size=suite.batch_size, resamples=suite.resamples
                )
            if suite.text is not None:
                if baseline is not None and reference is None:
                    raise ValueError("baseline: expected a report made in this process, which holds the nDCG@10 reference")
                estimates, reference = likelihood(
                    model,
                    suite.text,
                    reference,
                    ndcg_positions=suite.ndcg_positions,
                    resamples=suite.resamples,
                    logits_bytes=suite.logits_bytes,
                )
                measured |= estimates
            for name, batches in suite.splits.items():
                measured[f"accuracy/{name}"] = accuracy(model, name, batches, resamples=suite.resamples)
    finally:
        for module, mode in modes.items():
            module.training = mode
    stage = {"seconds": round(meter.seconds, 3), "peak_memory_bytes": meter.peak_bytes}
    if baseline is None:
        provenance = {"tool": f"curvedit {version('curvedit')}", "torch": torch.__version__, "device": str(device)}
        return Report(before=measured, stages={"evaluate before": stage}, provenance=provenance, reference=reference)
    if set(measured) != set(baseline.before):
        raise ValueError(f"baseline: expected a report on the same suite, got {sorted(baseline.before)}")
    return Report(
        before=baseline.before,
        after=measured,
        stages={**baseline.stages, "evaluate after": stage},
        provenance=baseline.provenance,
        reference=reference,
    )
