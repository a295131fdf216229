"""What an edit should reach: the goals that a study judges itself by."""

from collections.abc import Mapping, Sequence
from typing import Any

from curvedit.study.auditing import UNRELATED

_RIGHT, _RELATED, _PERPLEXITY, _KL, _RETURN, _RATIO = 0.35, 0.45, 0.005, 0.02, 0.2, 0.5


def goals_of(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each goal, the figure that was reached, by which arm, and whether that meets it.

    The targeted mode is judged by the arm that was fitted on most text and forgets most; criteria
    by what they cost beside the best control of the same place.
    """
    arms = [each for each in document["arms"] if each["criterion"] == "targeted"]
    found = [] if not arms else _targeted(min(arms, key=_right), document)
    for place in dict.fromkeys(each["place"] for each in document.get("contrasts", [])):
        ratios = [
            each
            for each in document["contrasts"]
            if each["place"] == place and each["arm"] == "curvature"
        ]
        best = max(ratios, key=lambda each: each.get("fit_tokens") or 0)
        figure = best["ratio"]["value"]
        what = f"{place}: curvature costs at most half as much perplexity as {best['control']}"
        found.append(_goal(what, figure, figure <= _RATIO, f"curvature, {place}"))
    return found


def _right(arm: Mapping[str, Any]) -> float:
    return float(arm["metrics"]["right: tune"]["value"])


def _targeted(arm: Mapping[str, Any], document: Mapping[str, Any]) -> list[dict[str, Any]]:
    after, before, name = arm["metrics"], document["before"], arm["name"]
    rise = after["perplexity"]["value"] / before["perplexity"]["value"] - 1
    right, near, kl = (after[key]["value"] for key in ("right: tune", "near: tune", "kl"))
    found = [
        _goal(
            f"named passages: at most {_RIGHT} of the tokens right", right, right <= _RIGHT, name
        ),
        _goal("named passages: none nearly recited", near, near == 0, name),
        _goal(f"perplexity: at most {_PERPLEXITY:.1%} more", rise, rise <= _PERPLEXITY, name),
        _goal(f"divergence: at most {_KL} nats per token", kl, kl <= _KL, name),
    ]
    if "right: related" in after:
        others = after["right: related"]["value"]
        what = f"other passages of the same sources: at most {_RELATED} of the tokens right"
        found.append(_goal(what, others, others <= _RELATED, name))
    audit = document.get("audit", {})
    asked = audit.get("prompts", {}).get(name, {})
    others = {key: each["value"] for key, each in asked.items() if key.startswith("prompt_right")}
    if others:
        worst = max(others.values())
        what = f"other prompts: at most {_RIGHT} of the tokens right"
        found.append(_goal(what, worst, worst <= _RIGHT, name))
    found += _survived(audit, name, before["right: tune"]["value"], right)
    tasks = document.get("tasks", {})
    if name in tasks:
        lost = _lost(tasks[name])
        what = "tasks: no family down beyond its interval"
        found.append(_goal(what, len(lost), not lost, name))
    return found


def _survived(
    audit: Mapping[str, Sequence[Mapping[str, Any]]], name: str, before: float, right: float
) -> list[dict[str, Any]]:
    """What of the forgotten comes back, as a share of it."""
    gone, found = max(before - right, 1e-9), []
    for each in audit.get("rounding", []):
        if each["arm"] == name and each["bits"] == 4:
            back = (each["right: tune"] - right) / gone
            what = f"int4: at most {_RETURN:.0%} of the forgotten comes back"
            found.append(_goal(what, back, back <= _RETURN, name))
    for each in audit.get("relearning", []):
        if each["arm"] == name and each["on"] == UNRELATED:
            back = (each["right"][-1] - right) / gone
            what = f"{each['steps'][-1]} steps on unrelated text: at most {_RETURN:.0%} comes back"
            found.append(_goal(what, back, back <= _RETURN, name))
    return found


def _lost(changes: Mapping[str, Any]) -> list[str]:
    """Families whose paired difference lies wholly below 0."""
    found = changes.get("differences", {})
    return [key for key, each in found.items() if each["high"] < 0]


def _goal(what: str, figure: float, met: bool, arm: str) -> dict[str, Any]:
    return {"goal": what, "figure": figure, "met": bool(met), "arm": arm}
