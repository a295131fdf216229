"""The verb of the stage: everything a suite asks for, measured of one model."""

import platform
from dataclasses import dataclass, field, replace
from importlib import metadata

import torch
from torch import nn

from curvedit.evaluation.accuracy import measure_split
from curvedit.evaluation.bootstrap import ratio
from curvedit.evaluation.decoding import greedy_continuations
from curvedit.evaluation.recitation import recitation
from curvedit.evaluation.suite import Passages, Suite
from curvedit.evaluation.text import TextMeasurement, measure_text, ndcg, perplexity
from curvedit.meter import metered
from curvedit.models import (
    device_of,
    dtype_of,
    identity_of,
    measuring,
    require_causal,
    require_fits,
)
from curvedit.report import Metric, Metrics, Reference, Report, Stage, require_same_data

_DEPTH = 10  # of nDCG


def evaluate(model: nn.Module, suite: Suite, *, baseline: Report | None = None) -> Report:
    """Measure what a model recites, predicts and classifies.

    Without a baseline the model is the unedited one: the report has ``before`` only and holds the
    reference for nDCG@10. With a baseline the model is the edited one, or a control.

    Shapes: logits exist for some windows at a time only; the reference is (positions, 10) int32.

    Units: perplexity is exp of nats per token; all other metrics are shares or have none.

    Args:
        model: In any mode; measured in evaluation mode and handed back in its own.
        suite: What to measure on.
        baseline: The report of the unedited model on the same suite.

    Returns:
        The report: ``before``, and ``after`` where a baseline was given, with 95 % bootstrap
        intervals, hashes of the data, versions, seconds and peak memory.

    Raises:
        CausalityError: passages or text, but the model is not a causal language model.
        ValueError: the baseline was measured on other data; the data do not fit the model; its
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
    found = _Found(suite, baseline)
    with metered(device) as meter, measuring(model):
        found.measure(model)
    stage = Stage(
        round(meter.seconds, 3), meter.peak_bytes, {"torch": f"{device.type}, {dtype_of(model)}"}
    )
    if baseline is None:
        return Report(
            before=found.metrics(),
            model=identity_of(model),
            hashes=found.hashes,
            data=found.counts,
            tool=_tool(device),
            stages={"evaluate before": stage},
            reference=found.reference,
        )
    stages = {**baseline.stages, "evaluate after": stage}
    return replace(baseline, after=found.metrics(), controls=(), stages=stages)


@dataclass
class _Found:
    """What was measured so far; data that differ from the baseline's are refused at once."""

    suite: Suite
    baseline: Report | None
    values: dict[str, Metric] = field(default_factory=dict)
    accuracy: dict[str, Metric] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    reference: Reference | None = None

    def metrics(self) -> Metrics:
        """All of it."""
        return Metrics(accuracy=self.accuracy, **self.values)

    def measure(self, model: nn.Module) -> None:
        """Everything the suite has data for."""
        suite, draw = self.suite, {"resamples": self.suite.resamples, "seed": self.suite.seed}
        if suite.passages is not None:
            self._identify("passages", suite.passages.sha256(), {"passages": len(suite.passages)})
        self._require_causal(model)
        if suite.passages is not None:
            self._recite(model, suite.passages)
        if suite.text is not None:
            text = measure_text(
                model, suite.text, name="text", depth=0 if suite.ndcg_text is not None else _DEPTH
            )
            self._identify("text", text.sha256, _size(text))
            self.values["perplexity"] = perplexity(text, **draw)
            if suite.ndcg_text is None:
                self._compare(text, "text")
        if suite.ndcg_text is not None:
            text = measure_text(model, suite.ndcg_text, name="ndcg_text", depth=_DEPTH)
            self._identify("ndcg_text", text.sha256, _size(text))
            self._compare(text, "ndcg_text")
        for name, batches in suite.splits.items():
            right, sha256 = measure_split(model, batches, name=name)
            self._identify(f"split {name}", sha256, {"samples": len(right)})
            self.accuracy[name] = ratio(right, **draw)

    def _identify(self, key: str, sha256: str, counts: dict[str, int]) -> None:
        self.hashes[key], self.counts[key] = sha256, counts
        if self.baseline is not None:
            require_same_data(self.baseline.hashes, {key: sha256})

    def _require_causal(self, model: nn.Module) -> None:
        suite = self.suite
        if suite.passages is not None:
            name, (prefix, suffix) = "passages", next(suite.passages.rows())
            ids = torch.tensor([prefix + suffix])
        elif suite.text is not None or suite.ndcg_text is not None:
            name = "text" if suite.text is not None else "ndcg_text"
            batch = next(iter(getattr(suite, name)))
            ids = batch["input_ids"] if not isinstance(batch, torch.Tensor) else batch
        else:
            return
        require_fits(name, model, ids.shape[-1], int(ids.max()))
        require_causal(model, ids.to(device_of(model)))

    def _recite(self, model: nn.Module, passages: Passages) -> None:
        suite = self.suite
        said = greedy_continuations(
            model, passages, batch_size=suite.batch_size, pad_token_id=suite.pad
        )
        suffixes = [suffix for _, suffix in passages.rows()]
        self.values |= recitation(said, suffixes, resamples=suite.resamples, seed=suite.seed)

    def _compare(self, text: TextMeasurement, key: str) -> None:
        """nDCG@10 against the baseline's reference; a baseline is its own."""
        if self.baseline is None:
            reference = Reference(text.top, text.sha256)
        elif self.baseline.reference is None:
            raise ValueError(
                "baseline: expected its reference for nDCG@10, got a report without one; load it from the directory "
                "it was saved to, with the reference beside report.json, or measure the baseline again"
            )
        else:
            reference = self.baseline.reference
        if reference.data_sha256 != text.sha256:
            raise ValueError(
                f"baseline: expected a reference for the suite's {key!r} (SHA-256 {text.sha256[:12]}…), "
                f"got one for other data ({reference.data_sha256[:12]}…)"
            )
        if reference.top.shape != text.top.shape:
            raise ValueError(
                f"baseline: expected a reference of shape {text.top.shape}, got {reference.top.shape}; "
                "do both models have the same vocabulary?"
            )
        self.reference = reference
        self.values["ndcg10"] = ndcg(
            text.top,
            reference.top,
            text.tokens,
            resamples=self.suite.resamples,
            seed=self.suite.seed,
        )


def _size(text: TextMeasurement) -> dict[str, int]:
    return {"windows": len(text.tokens), "tokens": int(text.tokens.sum())}


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
