"""Train a model that recites; fit, rank, project and evaluate it; compare with controls."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from curvedit.demo.corpus import PREFIX, WINDOW, load_corpus, windows
from curvedit.demo.forgetting import Curve, Search, cost
from curvedit.demo.training import STEPS, trained_model
from curvedit.evaluation import Passages, Suite, evaluate
from curvedit.factors import Factors
from curvedit.fitting import fit
from curvedit.meter import metered
from curvedit.meter import progress as progress_of
from curvedit.projection import project
from curvedit.ranking import rank
from curvedit.report import Meaning, Metric, Metrics, Report, register
from curvedit.selection import Selection

TARGETS = "model.layers.*"  # every linear map of every block
CRITERION = "weighted"
CONTROLS = {
    "curvature": "curvature (plain K-FAC)",
    "svd": "SVD truncation",
    "random": "random components",
}
FORGOTTEN = 0.05  # every method is brought down to this strict recitation, or less
DRAWS = {"random": 5}  # of a criterion that depends on a seed
_FIT_BATCHES, _BATCH = 40, 32
_HELD_OUT = 768  # windows
_EVERY = 8  # of those, the windows on which many edits are compared

_COST = "matched_increase"
register(
    {
        _COST: Meaning(
            f"Perplexity increase at {100 * FORGOTTEN:g} % recited",
            "share",
            "lower",
            "read from a curve where that share of the passages is still recited verbatim; "
            f"random components: median and range of {DRAWS['random']} draws",
            headline=False,
        )
    },
    owner="the demo",
)


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


def run_demo(
    out: Path,
    *,
    steps: int = STEPS,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> Report:
    """Run the whole workflow in ``out``.

    Writes ``model/``, ``edited/``, ``factors/``, ``report.json`` and ``report.html``. For each
    criterion, the share kept is about the largest that brings strict recitation down to
    ``FORGOTTEN``. Such single edits overshoot differently, so criteria are compared by what they
    cost at exactly that recitation, interpolated along the share removed. A model already trained
    in ``out/model`` by the same recipe is reused; other output of an earlier demo is replaced.

    Args:
        out: Working directory.
        steps: Number of training steps.
        device: Where the model is trained and edited.
        progress: Show progress bars.

    Returns:
        The report, as saved in ``out``.

    Raises:
        FileNotFoundError: the sources of the standard library are not installed.
        RuntimeError: a criterion forgets too little at every share.
    """
    from transformers import AutoModelForCausalLM

    corpus, device = load_corpus(), torch.device(device)
    with metered(device) as training:
        is_new = trained_model(out / "model", corpus, steps=steps, device=device, progress=progress)
    model: nn.Module = AutoModelForCausalLM.from_pretrained(out / "model", dtype=torch.float32)
    model.to(device)
    passages = Passages.cut(corpus.passages, prefix=PREFIX, suffix=WINDOW - PREFIX)
    suite = Suite(
        passages=passages,
        text=list(corpus.held_out[:_HELD_OUT].split(_BATCH)),
        batch_size=64,
        decode=lambda ids: bytes(ids).decode(errors="replace"),
    )
    before = evaluate(model, suite, progress=progress)
    for name in ("factors", "edited"):
        _remove_own(out / name)
    factors = fit(
        model, Windows(corpus.training, _FIT_BATCHES, 1), targets=TARGETS, progress=progress
    )
    factors.save(out / "factors")
    with (
        metered(device) as searching,
        progress_of(None, unit="edit", what="compare", shown=progress) as shown,
    ):
        text = corpus.held_out[:_HELD_OUT:_EVERY]
        search = Search(model, passages, text, level=FORGOTTEN, tried=shown.update)
        curves = {name: drawn_curves(search, factors, name) for name in (CRITERION, *CONTROLS)}
    costs = {name: cost(found, level=FORGOTTEN) for name, found in curves.items()}

    def measured(name: str, selection: Selection) -> Report:
        with project(model, selection):
            found = evaluate(model, suite, baseline=before, progress=progress)
        return _with_cost(found, costs[name])

    selection = curves[CRITERION][0].selection
    report = measured(CRITERION, selection)
    for name, title in CONTROLS.items():
        report = report.with_control(title, measured(name, curves[name][0].selection))
    with metered(torch.device("cpu")) as projecting:
        edit = project(out / "model", selection, out=out / "edited")
    report = report.with_edit(selection, edit.targets, factors.provenance)
    train = "train" if is_new else "train (found, kept)"
    for name, meter in ((train, training), ("rank", searching), ("project", projecting)):
        report = report.with_stage(name, seconds=meter.seconds, peak_memory_bytes=meter.peak_bytes)
    report = report.with_title("64 passages of the Python standard library, forgotten")
    report.save(out)
    return report


def drawn_curves(search: Search, factors: Factors, criterion: str) -> list[Curve]:
    """The curves of a criterion, one per draw.

    Raises:
        RuntimeError: no share forgets enough.
    """
    found: list[Curve] = []
    for seed in range(DRAWS.get(criterion, 1)):
        select = partial(_kept, factors=factors, criterion=criterion, model=search.model, seed=seed)
        found.append(search.curve(select, near=found[0].first if found else None))
    return found


def _kept(share: float, **options: Any) -> Selection:
    return rank(keep_mass=share, progress=False, **options)


def _with_cost(report: Report, value: Metric) -> Report:
    after = {} if report.after is None else dict(report.after)
    return replace(report, after=Metrics({**after, _COST: value}))


def _remove_own(directory: Path) -> None:
    """Empty a directory if an earlier demo wrote it, as its files show."""
    if directory.is_dir() and any(
        (directory / name).is_file() for name in ("manifest.json", "curvedit.json")
    ):
        for path in directory.iterdir():
            path.unlink()
