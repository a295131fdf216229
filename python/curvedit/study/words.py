"""A study in words: its title, the sentence that says what it found, and what it leaves open."""

from collections.abc import Mapping, Sequence
from typing import Any

from curvedit.evaluation import Metric
from curvedit.report import number
from curvedit.study.reading import (
    HELD_OUT,
    TARGETED,
    TUNED,
    Arm,
    percent,
    read_arms,
    read_metric,
    read_metrics,
    rise,
)

SIDES = {"tune": "tuned on", "related": "same sources", "test": "held out"}


def title_of(document: Mapping[str, Any]) -> str:
    """The given title, or one made from the model's name."""
    if document.get("title"):
        return str(document["title"])
    model = document.get("model") or {}
    path = str(model.get("name_or_path") or "").rstrip("/")
    name = path.rsplit("/", maxsplit=1)[-1] or model.get("class") or "the model"
    return f"{name}: edits compared"


def finding(document: Mapping[str, Any]) -> str:
    """What the study found, in one sentence."""
    arms, before = read_arms(document), read_metrics(document.get("before"))
    if not arms:
        return "Measurements of the unedited model; no edit has been compared with it yet."
    parts = [part for part in (_contrast(document), _targeted(arms, before)) if part]
    if not parts:
        parts = [_lowest(arms, before)]
    return _capital("; ".join(part for part in parts if part)) + "."


def tallied(contrasts: Sequence[Mapping[str, Any]]) -> tuple[list[Metric], int, int]:
    """The ratios that were measured; how many lie below 1 with their interval, and how many above.

    Args:
        contrasts: As in the record: what an arm costs beside the best control.
    """
    ratios = [read_metric(contrast.get("ratio")) for contrast in contrasts]
    known = [ratio for ratio in ratios if ratio is not None]
    return (
        known,
        sum(ratio.high < 1 for ratio in known),
        sum(ratio.low > 1 for ratio in known),
    )


def _contrast(document: Mapping[str, Any]) -> str:
    contrasts = [
        contrast
        for contrast in document.get("contrasts") or ()
        if read_metric(contrast.get("ratio")) is not None
    ]
    ratios, below, above = tallied(contrasts)
    if not ratios:
        return ""
    lost = (document.get("settings") or {}).get("lost")
    aim = (
        f"set to lose {100 * lost:.1f} % of the tokens right"
        if isinstance(lost, (int, float))
        else "set to forget as much"
    )
    if len(ratios) == 1:
        [contrast], [ratio] = contrasts, ratios
        return (
            f"{aim}, {contrast['arm']} raised perplexity by {ratio.value:.2f} times what the best "
            f"control, {contrast['control']}, did [{ratio.low:.2f}, {ratio.high:.2f}]"
        )
    return (
        f"{aim}, the curvature criteria raised perplexity less than the best control in "
        f"{below} of {len(ratios)} comparisons"
        + (f", more in {above}" if above else "")
        + (f" ({len(ratios) - below - above} undecided)" if below + above < len(ratios) else "")
        + f", at {min(ratio.value for ratio in ratios):.2f} to "
        f"{max(ratio.value for ratio in ratios):.2f} times its cost"
    )


def _targeted(arms: Sequence[Arm], before: Mapping[str, Metric]) -> str:
    best = best_targeted(arms)
    if best is None or TUNED not in before:
        return ""
    said = f"the targeted edit ({best.name}) took tokens right {_moved(TUNED, before, best)}"
    said += " on the passages it was given"
    if HELD_OUT in before and HELD_OUT in best.metrics:
        said += f" and {_moved(HELD_OUT, before, best)} on held-out sources"
    rose = rise(before, best)
    return said + (f", perplexity {percent(rose)[0]}" if rose else "")


def best_targeted(arms: Sequence[Arm]) -> Arm | None:
    """The targeted arm that left the fewest tokens right, first of the passages it was given."""
    targeted = [arm for arm in arms if arm.criterion == TARGETED and TUNED in arm.metrics]

    def left(arm: Arm) -> tuple[float, float]:
        held = arm.metrics.get(HELD_OUT)
        return arm.metrics[TUNED].value, held.value if held else 1.0

    return min(targeted, key=left, default=None)


def _lowest(arms: Sequence[Arm], before: Mapping[str, Metric]) -> str:
    key = HELD_OUT if HELD_OUT in before else TUNED
    known = [arm for arm in arms if key in arm.metrics]
    if key not in before or not known:
        return f"{len(arms)} edits were made; see the measurements below"
    best = min(known, key=lambda arm: arm.metrics[key].value)
    rose = rise(before, best)
    where = "on held-out sources" if key == HELD_OUT else "on the passages tuned on"
    said = f"{best.name} left the fewest tokens right {where}: {_moved(key, before, best)}"
    return said + (f", perplexity {percent(rose)[0]}" if rose else "")


def _moved(key: str, before: Mapping[str, Metric], arm: Arm) -> str:
    first, second = (number("right", each[key].value) for each in (before, arm.metrics))
    return f"from {first} to {second}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def limits(document: Mapping[str, Any]) -> list[str]:
    """What the study does not show, as sentences."""
    sides = document.get("passages") or {}
    counted = "; ".join(f"{SIDES.get(side, side)}, {counts(sides[side])}" for side in sides)
    seed = (document.get("settings") or {}).get("seed")
    points = [f"Few passages: {counted}. Other texts may be stored elsewhere."] if counted else []
    points.append(
        "One model. Where its memories lie, and what an edit of them costs, may differ in another."
    )
    if not isinstance(seed, (list, tuple)) or len(seed) < 2:
        which = "" if seed is None else f" ({seed})"
        points.append(
            f"One seed{which}. The intervals cover the draw of passages and windows, not that of "
            "the labels, the controls' noise or the text the factors were fitted on."
        )
    points += [
        "Tokens right are teacher-forced: each is asked for after the true ones before it. That is "
        "finer than recitation and not the same.",
        "Strengths, and the targeted mode's passages, are those tuned on: read how far forgetting "
        "goes from the held-out sources.",
        "No guarantee against extraction or relearning. Other prompts, sampling, rounding or "
        "fine-tuning, even on unrelated text, may bring passages back.",
        "Perplexity is an average over a little text and hides what few tokens show; measure the "
        "tasks you need.",
    ]
    return points


def counts(found: Mapping[str, Any]) -> str:
    """Counts by their unit as text: ``75 passages, 1 source``."""
    return ", ".join(
        f"{count:,} {unit.removesuffix('s') if count == 1 else unit}"
        for unit, count in found.items()
        if isinstance(count, int)
    )
