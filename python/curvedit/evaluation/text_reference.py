"""The baseline's predictions on a text, checked against the text that is measured."""

from curvedit.evaluation.measure import Run
from curvedit.evaluation.text import TextMeasurement
from curvedit.report import Kept, Reference


def reference_of(text: TextMeasurement, run: Run, name: str, kept: Kept | None = None) -> Reference:
    """What the baseline predicted on a text; of a baseline its own predictions.

    It becomes the run's reference, to be saved with the report.

    Args:
        text: What was read.
        run: The evaluation.
        name: What messages call the text.
        kept: Of a baseline, the distributions that it keeps.

    Raises:
        ValueError: the baseline has no reference, or one for another text; or measures of one
            suite compare with the baseline on two texts.
    """
    known = run.reference
    if known is not None and known.data_sha256 != text.sha256:
        raise ValueError(
            f"measures: expected one text to compare with the baseline on, got {name!r} beside "
            "another; give nDCG@10, top-1 agreement and KL divergence the same text"
        )
    if run.baseline is None:
        own = known.kept if known is not None and kept is None else kept
        run.reference = Reference(text.top, text.sha256, own)
        return run.reference
    reference = run.baseline.reference
    if reference is None:
        raise ValueError(
            "baseline: expected its reference for nDCG@10, got a report without one; load it from "
            "the directory it was saved to, with the reference beside report.json, or measure the "
            "baseline again"
        )
    if reference.data_sha256 != text.sha256:
        raise ValueError(
            f"baseline: expected a reference for the suite's {name!r} "
            f"(SHA-256 {text.sha256[:12]}…), got one for other data "
            f"({reference.data_sha256[:12]}…)"
        )
    if reference.top.shape != text.top.shape:
        raise ValueError(
            f"baseline: expected a reference of shape {text.top.shape}, "
            f"got {reference.top.shape}; do both models have the same vocabulary?"
        )
    run.reference = reference
    return reference
