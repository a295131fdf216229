"""Stage 1, fit: a model and batches of data become Factors."""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from curvedit import linear, ops
from curvedit.batches import TASKS, Batch, LossFunction, read_batch
from curvedit.calls import call, default_logits_bytes
from curvedit.causality import require_causal
from curvedit.check import is_finite, require_choice
from curvedit.collector import Collector
from curvedit.correction import PER, EigenvalueCollector
from curvedit.factors import Factors
from curvedit.meter import metered, peak_memory
from curvedit.objective import Objective
from curvedit.streaming import NotStreamableError, Stack, find_stack, streamed_backward
from curvedit.target import Target, fingerprint


def fit(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    targets: str | Sequence[str],
    labels: str = "sampled",
    seed: int = 0,
    weighted: bool = True,
    corrected: str | None = None,
    task: str | None = None,
    loss: LossFunction | None = None,
    positions: str = "all",
    inputs_on: str | torch.device | None = None,
    logits_bytes: int | None = None,
    progress: bool = True,
) -> Factors:
    """Kronecker factors of the Fisher information of a model's linear maps, in one pass over the data.

    For a target ``y = W a`` and ``g = dL/dy``: ``A = E[a a^T]`` and ``G = E[g g^T]``, uncentred, over
    the positions that count, with ``L`` the **sum** of the loss over them. A model with a list of
    blocks is run block by block, so that the graph of one block at most is in memory, and no
    further down than the lowest target. The model itself is not changed.

    Shapes: ``A (d_in, d_in)``, ``G (d_out, d_out)``, accumulated in float32.

    Units: ``G`` has those of (loss / output)^2, for a summed loss; it does not depend on batch size.

    Args:
        model: Any module; a Hugging Face decoder or classifier works as it is.
        batches: Token ids ``(B, T)``, mappings of model inputs (``input_ids``, ``attention_mask``,
            ``labels``, ``pixel_values``, …; ``sample_index`` keys the label draws), or pairs
            ``(inputs, labels)``. For a language model a position counts when its next token exists,
            is not padding and is not labelled -100.
        targets: Name patterns of linear maps: ``*`` matches anything, ``{gate,up}`` lists, ``{3..5}`` counts.
        labels: "sampled" draws one label per loss term from the model (true Fisher), keyed by (seed,
            sample, position); "data" takes the data's own (empirical Fisher).
        seed: Of the label draws.
        weighted: Also accumulate ``A_w = E[|g|^2 a a^T]`` and ``G_w = E[|a|^2 g g^T]``.
        corrected: "sequence" or "position" measures, in a second pass, the squared gradients of the
            components themselves, for ``rank(criterion="ekfac")``: of each sequence, whose mean over
            sampled labels is the Fisher's own diagonal, or of single positions, as if those were
            independent, which is what the factors assume. Per position that counts, either way.
        task: "language", "classification" or "custom"; None tells it from the first batch.
        loss: For "custom": takes (model output, labels), returns the summed loss.
        positions: Of a classifier: "all" that are not padding, or the "first" (CLS) only, as the
            paper does for ViT.
        inputs_on: Where block inputs wait for the backward pass; None leaves them on the model's device.
        logits_bytes: Bound on the memory of logits and what the loss makes of them; None takes 96 MiB
            on a CPU and 256 MiB elsewhere.
        progress: Show a progress bar with positions/s, time left and peak memory.

    Returns:
        The factors, with ``provenance`` on labels, data, coverage, seconds and peak memory.

    Raises:
        TypeError: a batch of an unknown kind.
        ValueError: a pattern matches nothing, the data is empty, a batch has no position that
            counts, weights, activations or gradients are not finite, or the model is not causal;
            or, for ``corrected``, batches cannot be gone through twice or change in between.
        RuntimeError: the loss does not depend on a target.

    Source:
        Martens & Grosse 2015, arXiv:1503.05671, section 3; Merullo et al., arXiv:2510.24256, section 3.2;
        George et al. 2018, arXiv:1806.03884, section 3, for ``corrected``.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
        >>> data = [(torch.randn(8, 3), torch.randint(2, (8,)))]
        >>> fit(model, data, targets="*", progress=False)["2"].G.shape
        torch.Size([2, 2])
    """
    require_choice("labels", labels, ("sampled", "data"))
    require_choice("positions", positions, ("all", "first"))
    if task is not None:
        require_choice("task", task, TASKS)
    if corrected is not None:
        require_choice("corrected", corrected, PER)
        if iter(batches) is batches:
            raise ValueError(
                "batches: expected what can be gone through twice, such as a list, for corrected eigenvalues, "
                f"got {type(batches).__name__}"
            )
    if loss is not None:
        if labels == "sampled":
            raise ValueError("labels: expected 'data' with a custom loss, which has no distribution to sample from")
        task = "custom"
    modules = linear.find_targets(model, targets)
    for name, module in modules.items():
        if not is_finite(linear.weight_of(module)):
            raise ValueError(f"model: the weight of {name!r} is not finite; load a sound checkpoint")
    device = next(model.parameters()).device
    where = None if inputs_on is None else torch.device(inputs_on)
    logits_bytes = default_logits_bytes(device) if logits_bytes is None else logits_bytes
    collector = Collector(modules, weighted=weighted, positions=positions)
    run = _Run(model, find_stack(model, list(modules)), Objective(labels, seed, loss), collector, where, logits_bytes)
    with metered(device) as meter, _frozen(model), collector.attached():
        run.over(batches, device, task, progress)
    notes = _notes(modules, collector)
    provenance = {
        "tool": f"curvedit {version('curvedit')}",
        "made_by": "fit",
        "model": _identity(model),
        "task": run.task,
        "labels": labels,
        "seed": seed,
        "data": getattr(batches, "identity", {"source": "batches given in Python"}),
        "samples": run.samples,
        "positions": run.positions,
        "coverage": _coverage(model, modules),
        "backward": run.backward,
        "backend": {"syrk_accumulate": ops.choose("syrk_accumulate", next(iter(collector.sums.values()))).backend},
        "seconds": round(meter.seconds, 3),
        "peak_memory_bytes": meter.peak_bytes,
        "warnings": notes,
    }
    fitted = {
        name: Target(_shape(module), collector.leaders[name], collector.tokens[name], *fingerprint(module))
        for name, module in modules.items()
        if collector.tokens[name]
    }
    for note in notes:
        warnings.warn(note, stacklevel=2)
    factors = Factors(fitted, collector.sums, provenance)
    if corrected is not None:
        _correct(factors, {name: modules[name] for name in fitted}, run, batches, corrected, progress)
    return factors


def _correct(
    factors: Factors, modules: Mapping[str, nn.Module], first: "_Run", batches: Iterable[Any], per: str, progress: bool
) -> None:
    """The second pass; adds its sums to the factors."""
    device = next(first.model.parameters()).device
    factors.decompose([(kind, name) for name in modules for kind in ("G", "A")], progress=progress)
    bases = {name: (factors.basis("G", name), factors.basis("A", name)) for name in modules}
    vectors = {name: (out.vectors.to(device), inputs.vectors.to(device)) for name, (out, inputs) in bases.items()}
    collector = EigenvalueCollector(modules, vectors, per=per, positions=first.collector.positions)
    run = _Run(first.model, first.stack, first.objective, collector, first.inputs_on, first.logits_bytes)
    with metered(device) as meter, _frozen(first.model), collector.attached():
        run.over(batches, device, first.task, progress, what="correct")
    if (run.samples, run.positions) != (first.samples, first.positions):
        raise ValueError(
            f"batches: expected the same data in the second pass, {first.samples} samples with {first.positions} "
            f"positions, got {run.samples} with {run.positions}"
        )
    factors.add_corrections(collector.sums, per=per, seconds=round(meter.seconds, 3))


class _Run:
    """One pass over the data."""

    def __init__(
        self,
        model: nn.Module,
        stack: Stack | None,
        objective: Objective,
        collector: Collector,
        inputs_on: torch.device | None,
        logits_bytes: int,
    ) -> None:
        self.model, self.stack, self.objective, self.collector = model, stack, objective, collector
        self.inputs_on, self.logits_bytes = inputs_on, logits_bytes
        self.samples = self.positions = 0
        self.task = ""
        self.backward = "whole model: it has no list of blocks"

    def over(
        self, batches: Iterable[Any], device: torch.device, task: str | None, progress: bool, *, what: str = "fit"
    ) -> None:
        """Feed every batch to the collector.

        Raises:
            ValueError: there is no batch.
        """
        bar = tqdm(
            total=getattr(batches, "tokens", None),
            unit="tok",
            unit_scale=True,
            desc=what,
            disable=None if progress else True,
        )
        with bar:
            for index, raw in enumerate(batches):
                batch = read_batch(raw, index, self.samples, device, task)
                if not self.task:
                    self._begin(batch, batches, bar)
                task = self.task
                self._one(batch)
                self.collector.require_finite(batch)
                self.samples += batch.samples.shape[0]
                self.positions += batch.positions
                bar.update(batch.positions)
                bar.set_postfix_str(f"peak {peak_memory(device) / 2**30:.2f} GiB", refresh=False)
        if not self.task:
            raise ValueError("batches: expected at least one batch, got none; check the data source")

    def _begin(self, batch: Batch, batches: Iterable[Any], bar: Any) -> None:
        self.task = batch.task
        if batch.task == "custom" and self.objective.custom is None:
            raise ValueError(
                "loss: expected a loss function for these labels, (output, labels) -> summed loss, got none"
            )
        if batch.task == "language" and isinstance(batch.inputs, Mapping):
            require_causal(self.model, batch.inputs["input_ids"])
        if bar.total is None and isinstance(batches, Sized):
            bar.total = len(batches) * batch.positions

    def _one(self, batch: Batch) -> None:
        if self.stack is not None:
            try:
                streamed_backward(
                    self.model,
                    self.stack,
                    batch,
                    self.objective,
                    self.collector,
                    inputs_on=self.inputs_on,
                    logits_bytes=self.logits_bytes,
                )
            except NotStreamableError as reason:
                self.stack = None
                self.backward = f"whole model: {reason}"
            else:
                self.backward = f"block by block through {self.stack.name}, down to block {self.stack.lowest}"
                return
        with torch.enable_grad(), self.collector.observing(batch) as observation:
            end, at_end = self.objective.differentiate(call(self.model, batch.inputs), batch)
        if observation.leaves:
            torch.autograd.grad(end, observation.leaves, at_end, allow_unused=True)
        observation.close()


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no parameter gradients inside; both restored after."""
    training = {module: module.training for module in model.modules()}
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.eval()
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)
        for module, mode in training.items():
            module.training = mode


def _shape(module: nn.Module) -> tuple[int, int]:
    rows, columns = linear.weight_of(module).shape
    return rows, columns


def _identity(model: nn.Module) -> dict[str, Any]:
    path = getattr(getattr(model, "config", None), "_name_or_path", "")
    return {
        "class": type(model).__name__,
        "name_or_path": path,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }


def _coverage(model: nn.Module, modules: Mapping[str, nn.Module]) -> dict[str, Any]:
    maps = sum(linear.is_linear_map(module) for module in model.modules())
    total = sum(parameter.numel() for parameter in model.parameters())
    covered = sum(linear.weight_of(module).numel() for module in modules.values())
    return {"targets": len(modules), "linear_maps": maps, "parameters": round(covered / total, 4)}


def _notes(modules: Mapping[str, nn.Module], collector: Collector) -> list[str]:
    """What the user should know: targets never called, and factors that cannot have full rank."""
    notes = []
    idle = [name for name in modules if not collector.tokens[name]]
    if idle:
        notes.append(
            f"{len(idle)} of {len(modules)} targets were never called and have no factors: {', '.join(idle[:4])}"
        )
    short = [name for name in modules if 0 < collector.tokens[name] < max(_shape(modules[name]))]
    if short:
        name = short[0]
        notes.append(
            f"{len(short)} of {len(modules)} targets saw fewer positions than they have dimensions, so their "
            f"factors are rank-deficient: {name} of shape {_shape(modules[name])} saw "
            f"{collector.tokens[name]}; fit on more data"
        )
    return notes
