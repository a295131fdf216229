"""Train a model that recites; fit, rank, project and evaluate it; compare with controls."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from curvedit.demo.corpus import PREFIX, WINDOW, load_corpus, windows
from curvedit.demo.training import STEPS, trained_model
from curvedit.evaluation import Passages, Suite, evaluate, recites
from curvedit.factors import Factors
from curvedit.fitting import fit
from curvedit.meter import metered
from curvedit.projection import project
from curvedit.ranking import rank
from curvedit.report import Report
from curvedit.selection import Selection

TARGETS = "model.layers.*"  # every linear map of every block
CRITERION = "weighted"
CONTROLS = {
    "curvature": "curvature (plain K-FAC)",
    "svd": "SVD truncation",
    "random": "random components",
}
FORGOTTEN = 0.05  # every method is brought down to this strict recitation, or less
_FIT_BATCHES, _BATCH = 40, 32
_HELD_OUT = 768  # windows
_COARSE, _FINE = 0.02, 0.0025  # step sizes of the search for the largest share that forgets


@dataclass(frozen=True)
class Windows:
    """Random windows of the training text, the same on every iteration."""

    text: Tensor
    batches: int
    seed: int

    @property
    def tokens(self) -> int:
        """Positions that contribute to the loss."""
        return self.batches * _BATCH * (WINDOW - 1)

    @property
    def identity(self) -> dict[str, Any]:
        """Where the data comes from, for provenance."""
        return {
            "source": "random windows of the standard library's sources",
            "seed": self.seed,
            "batches": self.batches,
        }

    def __iter__(self) -> Iterator[Tensor]:
        """Yield token ids ``(32, 112)``."""
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(self.batches):
            yield windows(self.text, _BATCH, generator)


def run_demo(out: Path, *, steps: int = STEPS, progress: bool = True) -> Report:
    """Run the whole workflow in ``out``.

    Writes ``model/``, ``edited/``, ``factors/``, ``report.json`` and ``report.html``. For each
    criterion, the share kept is the largest that brings strict recitation down to ``FORGOTTEN``,
    so that perplexities are compared at the same amount of forgetting. A model already trained in
    ``out/model`` by the same recipe is reused; other output of an earlier demo is replaced.

    Args:
        out: Working directory.
        steps: Number of training steps.
        progress: Show progress bars.

    Returns:
        The report, as saved in ``out``.

    Raises:
        FileNotFoundError: the sources of the standard library are not installed.
        RuntimeError: a criterion forgets too little at every share.
    """
    from transformers import AutoModelForCausalLM

    corpus = load_corpus()
    with metered(torch.device("cpu")) as training:
        is_new = trained_model(out / "model", corpus, steps=steps, progress=progress)
    model = AutoModelForCausalLM.from_pretrained(out / "model", dtype=torch.float32)
    passages = Passages.cut(corpus.passages, prefix=PREFIX, suffix=WINDOW - PREFIX)
    suite = Suite(
        passages=passages, text=list(corpus.held_out[:_HELD_OUT].split(_BATCH)), batch_size=64
    )
    before = evaluate(model, suite)
    for name in ("factors", "edited"):
        _remove_own(out / name)
    factors = fit(
        model, Windows(corpus.training, _FIT_BATCHES, 1), targets=TARGETS, progress=progress
    )
    factors.save(out / "factors")
    with metered(torch.device("cpu")) as searching:
        selection = largest_that_forgets(model, factors, passages, CRITERION)
        others = {name: largest_that_forgets(model, factors, passages, name) for name in CONTROLS}
    with project(model, selection) as edit:
        report = evaluate(model, suite, baseline=before)
    for name, control in others.items():
        with project(model, control):
            report = report.with_control(CONTROLS[name], evaluate(model, suite, baseline=before))
    with metered(torch.device("cpu")) as projecting:
        project(out / "model", selection, out=out / "edited")
    report = report.with_edit(selection, edit.targets, factors.provenance)
    train = "train" if is_new else "train (found, kept)"
    for name, meter in ((train, training), ("rank", searching), ("project", projecting)):
        report = report.with_stage(name, seconds=meter.seconds, peak_memory_bytes=meter.peak_bytes)
    report = report.with_title("64 passages of the Python standard library, forgotten")
    report.save(out)
    return report


def largest_that_forgets(
    model: nn.Module, factors: Factors, passages: Passages, criterion: str
) -> Selection:
    """The selection with the largest ``keep_mass`` that leaves at most ``FORGOTTEN`` recited.

    Recitation is not monotone in the share kept, so bisection would not do. Shares are tried from
    the top: in coarse steps down to the first that forgets, then in fine steps from the share
    above it.

    Raises:
        RuntimeError: no share forgets enough.
    """

    def forgets(share: float) -> Selection | None:
        selection = rank(factors, keep_mass=share, criterion=criterion, model=model)
        with project(model, selection):
            recited = recites(model, passages)
        return selection if recited.mean() <= FORGOTTEN else None

    coarse = [1 - _COARSE * step for step in range(1, round(1 / _COARSE))]
    reached = next((share for share in coarse if forgets(share)), None)
    if reached is None:
        raise RuntimeError(f"demo: no share of {criterion!r} components forgets the passages")
    fine = [reached + _COARSE - _FINE * step for step in range(1, round(_COARSE / _FINE))] + [
        reached
    ]
    return next(found for found in map(forgets, fine) if found is not None)


def _remove_own(directory: Path) -> None:
    """Empty a directory if an earlier demo wrote it, as its files show."""
    if directory.is_dir() and any(
        (directory / name).is_file() for name in ("manifest.json", "curvedit.json")
    ):
        for path in directory.iterdir():
            path.unlink()
