"""Selections and decompositions as text, for ``rank`` and ``inspect``."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from curvedit.factors import Factors
from curvedit.meter import peak_memory
from curvedit.ops import plan
from curvedit.selection import Selection

_SMALL = 0.005  # share of the parameters
_EXPERT = re.compile(r"\.experts\.\d+\.")


def coverage_table(coverage: Mapping[str, Any]) -> str:
    """One line for each kind of parameter: its share of the model, and why it is not fitted.

    What is not fitted and holds less than half a percent is summed up in the last line.
    """
    total = max(1, sum(row["parameters"] for row in coverage["table"]))
    lines, rest = [], 0
    for row in coverage["table"]:
        share = row["parameters"] / total
        if row["fitted"] or share >= _SMALL:
            state = "fitted" if row["fitted"] else f"not fitted: {row['why']}"
            lines.append(f"{share:6.1%}  {row['name']} ({row['kind']})  {state}")
        else:
            rest += row["parameters"]
    return "\n".join([*lines, f"{rest / total:6.1%}  all others  not fitted"])


def selection_table(selection: Selection) -> str:
    """The recipe, then one line per target, or per layer of experts: what is kept of it."""
    shown = ("criterion", "keep_mass", "scope", "keep_kl", "expected_kl", "measured_kl")
    lines = [f"{key}: {selection.recipe[key]}" for key in shown if key in selection.recipe]
    for name, targets in _rows(selection).items():
        shares = [each.kept_share for each in targets]
        masses = [each.mass for each in targets]
        kept, mass = _range(shares, "{:.2%}"), _range(masses, "{:.4f}")
        lines.append(f"{name}  {_size(targets)}  keeps {kept} of its components, mass {mass}")
    return "\n".join(lines)


def _rows(targets: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Targets by name, the experts of a layer together."""
    found: dict[str, list[Any]] = {}
    for name, target in targets.items():
        found.setdefault(_EXPERT.sub(".experts.*.", name), []).append(target)
    return found


def _size(targets: Sequence[Any]) -> str:
    rows, columns = targets[0].shape
    number = f", {len(targets)} of them" if len(targets) > 1 else ""
    return f"{rows} x {columns}{number}"


def _range(values: Sequence[float], spelling: str) -> str:
    least, most = spelling.format(min(values)), spelling.format(max(values))
    return least if least == most else f"{least} to {most}"


def sweep_table(selections: list[Selection]) -> str:
    """One line per share: what is kept, and the operations of its edit beside a dense one's."""
    recipe = selections[0].recipe
    lines = [f"{key}: {recipe[key]}" for key in ("criterion", "scope")] + [
        "keep_mass  components  operations of dense"
    ]
    for selection in selections:
        targets = selection.values()
        kept = sum(target.kept for target in targets) / sum(
            target.shape[0] * target.shape[1] for target in targets
        )
        plans = [
            plan(target.limits.numpy(), target.shape[1])
            for target in targets
            if target.limits is not None
        ]
        cost = (
            sum(found.operations for found in plans) / sum(found.dense for found in plans)
            if plans
            else 1.0
        )
        lines.append(f"{selection.recipe['keep_mass']:9g}  {kept:10.2%}  {cost:19.2%}")
    return "\n".join(lines)


def selection_facts(selection: Selection) -> dict[str, Any]:
    """The same for programs."""
    targets = {
        name: {"shape": target.shape, "kept": target.kept_share, "mass": target.mass}
        for name, target in selection.items()
    }
    return {"recipe": dict(selection.recipe), "targets": targets}


def factors_table(factors: Factors) -> str:
    """One line per target, or per layer of experts: its shape and positions."""
    return "\n".join(
        f"{name}  {_size(each)}  {_range([target.tokens for target in each], '{:,}')} positions"
        for name, each in _rows(factors.targets).items()
    )


def edit_table(record: Mapping[str, Any]) -> str:
    """The recipe of an edited checkpoint, then one line per target or layer of experts."""
    lines = [f"{key}: {value}" for key, value in record["recipe"].items() if key != "factors"]
    lines = [f"edited from: {record.get('source', 'unknown')}", *lines]
    for name, targets in _rows(record["targets"]).items():
        shape = " x ".join(map(str, targets[0].get("shape") or ["?"]))
        said = [
            f"{words} {_range(shares, '{:.2%}')}"
            for key, words in (("kept", "keeps"), ("change", "changed by"))
            if (
                shares := [each[key] for each in targets if isinstance(each.get(key), (int, float))]
            )
        ]
        lines.append(f"{name}  {shape}  {', '.join(said)}")
    return "\n".join(lines)


def decomposition_facts(factors: Factors, selection: Selection) -> dict[str, Any]:
    """The worst values among the bases' certificates, and which factors are singular."""
    names = {
        factors.targets[name].key(kind, name): (kind, name)
        for name in selection
        for kind in selection.kinds or ()
    }
    certificates = {pair: factors.certificate(*pair) for pair in names.values()}
    worst = {
        key: max((each[key] for each in certificates.values()), default=0.0)
        for key in ("residual", "orthogonality")
    }
    singular = {
        f"{kind} of {name}": each["rank"]
        for (kind, name), each in certificates.items()
        if each["condition"] is None
    }
    retried = sum(each["retried"] for each in certificates.values())
    return {"number": len(certificates), **worst, "retried": retried, "singular": singular}


def decomposition_summary(factors: Factors, selection: Selection, seconds: float) -> str:
    """Seconds, peak memory, the worst values among the certificates, and what is singular."""
    text = f"ranked in {seconds:.1f} s, peak {peak_memory(torch.device('cpu')) / 2**30:.2f} GiB"
    facts = decomposition_facts(factors, selection)
    if not facts["number"]:
        return text
    text = (
        f"{text}; {facts['number']} bases: residual at most {facts['residual']:.0e}, "
        f"orthogonality {facts['orthogonality']:.0e}, {facts['retried']} decomposed twice"
    )
    singular = facts["singular"]
    if not singular:
        return text
    named = ", ".join(f"{name} (rank {rank})" for name, rank in list(singular.items())[:3])
    more = f" and {len(singular) - 3} more" if len(singular) > 3 else ""
    return (
        f"{text}\n{len(singular)} of the {facts['number']} factors are singular: {named}{more}; "
        "the data left some directions without curvature (fewer positions than dimensions, or "
        "idle units), and components along them are the first to go"
    )
