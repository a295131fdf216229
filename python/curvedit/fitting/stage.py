"""Stage 1, fit: a model and batches of data in, Factors out."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed import ProcessGroup

from curvedit.checks import is_finite, require_choice
from curvedit.data import TASKS, TokenBatches
from curvedit.factors import Factors, Target, fingerprint
from curvedit.fitting.memory import require_memory
from curvedit.fitting.moments import Moments
from curvedit.fitting.objective import Objective
from curvedit.fitting.places import OnHost, Place, Resident
from curvedit.fitting.processes import add_up, require_alike, share_of
from curvedit.fitting.provenance import (
    left_out,
    notes_of,
    provenance_of,
    require_coverage,
)
from curvedit.fitting.second_pass import PER, correct
from curvedit.fitting.snapshots import Snapshots
from curvedit.meter import metered
from curvedit.models import (
    ExpertMap,
    default_logits_bytes,
    device_of,
    find_stack,
    find_targets,
    frozen,
    holder_of,
    is_quantised,
    is_repacked,
    require_fits,
    shape_of,
    weight_of,
    weights_fingerprint,
)
from curvedit.passes import LossFunction, Observer, Run


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
    min_coverage: float = 0.0,
    inputs_on: str | torch.device | None = None,
    sums_on: str | torch.device | None = None,
    logits_bytes: int | None = None,
    graph_bytes: int = 0,
    snapshots: str | Path | None = None,
    snapshot_every: float = 600.0,
    group: ProcessGroup | None = None,
    progress: bool = True,
) -> Factors:
    """Fit Kronecker factors of the Fisher information of a model's linear maps.

    For each target ``y = W a`` with ``g = dL/dy``, one pass over the data accumulates the uncentred
    second moments ``A = E[a a^T]`` and ``G = E[g g^T]`` over the contributing positions; ``L`` is
    the **sum** of the loss over them. A model with a list of blocks is run block by block down to
    the lowest target, with the graph of one block at a time in memory. The model is unchanged.

    Shapes: ``A (d_in, d_in)``, ``G (d_out, d_out)``, accumulated in float32.

    Units: ``G`` is in (loss / output)^2, for a summed loss; it does not depend on batch size.

    Args:
        model: Any module; Hugging Face decoders and classifiers work as they are.
        batches: Token ids ``(B, T)``, mappings of model inputs (``input_ids``, ``attention_mask``,
            ``labels``, ``pixel_values``, …; ``sample_index`` keys the label draws), or pairs
            ``(inputs, labels)``. A language model's loss has a term at a position whose next token
            exists, is not padding and is not labelled -100; a position contributes if it is not
            padding and a term lies there or later.
        targets: Name patterns: ``*`` matches anything, ``{gate,up}`` lists, ``{3..5}`` counts.
        labels: "sampled" draws one label per loss term from the model (true Fisher), keyed by
            (seed, sample, position); "data" uses the labels in the data (empirical Fisher).
        seed: Seeds the label draws.
        weighted: Also accumulate ``A_w = E[|g|^2 a a^T]`` and ``G_w = E[|a|^2 g g^T]``.
        corrected: Measure the components' own squared gradients, for ``rank(criterion="ekfac")``,
            in a second pass: of each "sequence", whose mean over sampled labels is the diagonal of
            the Fisher, or of each "position", as if positions were independent, which is what the
            factors assume. Either way the result is per contributing position.
        task: "language", "classification" or "custom"; None infers it from the first batch.
        loss: For "custom": maps (model output, labels) to the summed loss.
        positions: For classifiers: "all" but padding, or the "first" (CLS), as the paper for ViT.
        min_coverage: Least share of the model's parameters that the targets must hold, from 0 to 1;
            tied parameters count once.
        inputs_on: Device that keeps block inputs until the backward pass; None: the model's own.
        sums_on: Device that keeps the sums between batches: None for the model's own, "cpu" to let
            those of a model on a GPU wait in host memory, from where they are copied in time. The
            factors are bit-identical, and on the CPU.
        logits_bytes: Bound on the memory of logits and what the loss makes of them; None means
            96 MiB on a CPU, and elsewhere a sixteenth of the device's memory, at most 4 GiB.
        graph_bytes: Bound on the memory of graphs that are kept besides the last block's, rather
            than built again, which takes about a fifth of the time of a fit.
        snapshots: Directory for snapshots of the unfinished fit. A fit of the same model, data and
            settings that finds some there goes on from the last good one, and its factors are
            bit-identical to those of a fit that was never stopped. They stay until
            ``fitting.discard`` removes them, once the factors are saved.
        snapshot_every: Seconds between two of them, at the end of a batch.
        group: Processes that share the fit, as ``torchrun`` starts them: each runs some rows of
            every batch, and all return the factors of all, equal to those of one process up to
            rounding. All are given the same model, data and settings.
        progress: Show a progress bar with positions/s, time left and peak memory.

    Returns:
        The factors; ``provenance`` records labels, data, coverage, seconds and peak memory.

    Raises:
        TypeError: a batch is of an unknown kind.
        ValueError: a pattern matches nothing, too little is covered, the sums cannot fit into
            memory, the data is empty or does not fit the model, a batch has no loss term, a target
            is no plain ``y = W a + b``, weights, activations or gradients are not finite, or the
            model is not causal; snapshots are of another fit; processes of a group were given
            different models, data or settings; or, with ``corrected``, ``batches`` is not
            re-iterable or changes between passes, or there is a group.
        RuntimeError: the loss does not depend on a target, or another thread uses the model.

    Source:
        Martens & Grosse 2015, arXiv:1503.05671, section 3; Merullo et al., arXiv:2510.24256,
        section 3.2; for ``corrected``, George et al. 2018, arXiv:1806.03884, section 3.

    Example:
        >>> import torch
        >>> from torch.nn import Linear, Sequential, Tanh
        >>> model = Sequential(Linear(3, 4), Tanh(), Linear(4, 2))
        >>> data = [(torch.randn(8, 3), torch.randint(2, (8,)))]
        >>> fit(model, data, targets="*", progress=False)["2"].G.shape
        torch.Size([2, 2])
    """
    if torch.is_inference_mode_enabled():
        raise RuntimeError(
            "fit: expected a place where gradients can be computed, got torch.inference_mode(); "
            "call it outside"
        )
    if type(seed) is not int or not -(2**63) <= seed < 2**63:
        raise ValueError(f"seed: expected an integer of 64 bits, got {seed!r}")
    require_choice("labels", labels, ("sampled", "data"))
    require_choice("positions", positions, ("all", "first"))
    if task is not None:
        require_choice("task", task, TASKS)
    if corrected is not None:
        require_choice("corrected", corrected, PER)
        if group is not None:
            raise ValueError(
                "group: expected None with corrected eigenvalues, which one process measures"
            )
        if iter(batches) is batches:
            raise ValueError(
                "batches: expected a re-iterable, such as a list, for corrected eigenvalues, "
                f"got {type(batches).__name__}"
            )
    if loss is not None:
        if labels == "sampled":
            raise ValueError(
                "labels: expected 'data' with a custom loss, which defines no distribution to "
                "sample from, got 'sampled'"
            )
        task = "custom"
    modules = find_targets(model, targets, quantised=True)
    require_coverage(model, modules, min_coverage)
    _require_whole_sequences(modules, corrected)
    _require_weights(modules)
    device = device_of(model)
    place = _place(sums_on, device, modules, weighted=weighted, corrected=corrected)
    if isinstance(batches, TokenBatches):
        require_fits("batches", model, batches.longest, batches.largest)
    where = None if inputs_on is None else _device("inputs_on", inputs_on)
    bound = default_logits_bytes(device) if logits_bytes is None else logits_bytes
    moments = Moments(place, weighted=weighted)
    observer = Observer(modules, moments.add, positions=positions)
    stack = find_stack(model, list(modules))
    objective = Objective(labels, seed, loss)
    run = Run(model, stack, objective, observer, moments, where, bound, graph_bytes=graph_bytes)
    run.share = share_of(group)
    keeper = None
    if snapshots is not None or group is not None:
        made_by = _made_by(run, objective, batches, task, weighted)
        require_alike(group, made_by, what="model, data and settings")
    if snapshots is not None:
        keeper = Snapshots(snapshots, made_by, snapshot_every, moments, share=run.share)
        keeper.restore(run)
    with metered(device) as meter, frozen(model), observer.attached():
        run.over(batches, task, shown=progress, what="fit", keeper=keeper)
    if keeper is not None:
        meter.seconds += keeper.seconds
    sums = add_up(group, run, place.all())
    notes = notes_of(run, targets)
    missing = left_out(run)
    coverage = require_coverage(model, modules, min_coverage, missing)
    factors = Factors(
        _fitted(observer, missing),
        {key: each for key, each in sums.items() if key.target not in missing},
        provenance_of(run, objective, batches, coverage, notes, meter),
    )
    for note in notes if run.share[0] == 0 else ():
        warnings.warn(note, stacklevel=2)
    if corrected is not None:
        correct(factors, run, batches, per=corrected, progress=progress)
    return factors


def _place(
    sums_on: str | torch.device | None,
    device: torch.device,
    modules: Mapping[str, nn.Module],
    *,
    weighted: bool,
    corrected: str | None,
) -> Place:
    """Where the sums are kept, which must have room for them."""
    where = device if sums_on is None else _device("sums_on", sums_on)
    stays = where.type == device.type and where.index in (None, device.index)
    if not stays and (where.type != "cpu" or device.type != "cuda"):
        own = f"{str(device)!r}, where the model is"
        raise ValueError(
            f"sums_on: expected {own}{', or cpu' if device.type == 'cuda' else ''}, "
            f"got {str(sums_on)!r}"
        )
    holders = [holder_of(module) for module in modules.values()]
    apart = {str(each.device) for holder in holders for each in holder.parameters()}
    if not stays and len(apart) > 1:
        raise ValueError(
            f"sums_on: expected None for a model on several devices, {sorted(apart)}, "
            f"got {str(sums_on)!r}"
        )
    if not stays and corrected is not None:
        raise ValueError(
            "sums_on: expected the model's own device for corrected eigenvalues, whose bases are "
            f"all there at a time, got {str(sums_on)!r}"
        )
    needs = {"weighted": weighted, "corrected": corrected is not None}
    require_memory(modules, device if stays else where, **needs)
    if stays:
        return Resident()
    largest = max(max(shape_of(module)) for module in modules.values())
    return OnHost.beside(device, largest, sums=(4 if weighted else 2) * len(modules))


def _device(name: str, given: str | torch.device) -> torch.device:
    try:
        return torch.device(given)
    except RuntimeError as error:
        raise ValueError(f"{name}: expected a device such as 'cpu', got {given!r}") from error


def _made_by(
    run: Run, objective: Objective, batches: Any, task: str | None, weighted: bool
) -> dict[str, Any]:
    """What decides the sums of a pass, for snapshots."""
    return {
        "model": weights_fingerprint(run.model),
        "targets": list(run.observer.targets),
        "data": getattr(batches, "identity", "batches given in Python"),
        "labels": objective.labels,
        "seed": objective.seed,
        "loss": getattr(objective.custom, "__qualname__", str(objective.custom)),
        "task": task,
        "positions": run.observer.positions,
        "weighted": weighted,
        "logits_bytes": run.logits_bytes,
        "version": version("curvedit"),
    }


def _require_whole_sequences(modules: Mapping[str, nn.Module], corrected: str | None) -> None:
    expert = next((name for name, each in modules.items() if isinstance(each, ExpertMap)), None)
    if corrected == "sequence" and expert is not None:
        raise ValueError(
            "corrected: expected 'position' for experts, which see parts of sequences, got "
            f"'sequence' with {expert!r} among the targets"
        )


def _require_weights(modules: Mapping[str, nn.Module]) -> None:
    """Refuse weights that are not in memory, or not finite."""
    for name, module in modules.items():
        if is_repacked(module):
            raise ValueError(
                f"model: expected weights that gradients can pass, got that of {name!r} repacked "
                "for inference by bitsandbytes; load the model anew"
            )
        if is_quantised(module):
            continue
        weight = weight_of(module)
        if weight.is_inference():
            raise ValueError(
                f"model: expected weights that gradients can pass, got that of {name!r} made in "
                "torch.inference_mode(); load the model outside"
            )
        if weight.is_meta:
            raise ValueError(
                f"model: expected weights in memory, got that of {name!r} on the meta device; "
                "load the model without offloading it to disk"
            )
        if not is_finite(weight):
            raise ValueError(
                f"model: the weight of {name!r} is not finite; load an intact checkpoint"
            )


def _fitted(observer: Observer, missing: Mapping[str, str]) -> dict[str, Target]:
    """Return the record of every target that has factors."""
    found = {}
    for name, module in observer.targets.items():
        if name not in missing:
            group, tokens = observer.leaders[name], observer.tokens[name]
            found[name] = Target(shape_of(module), group, tokens, *fingerprint(module))
    return found
