"""The README's table of a study, from the committed record of ``make study``."""

import json
from pathlib import Path

from markdown_table import table

RECORD = Path(__file__).parent / "results/xeon-amx-2-cores/study-real.json"
SIDES = (("tune", "named"), ("related", "same sources, not named"), ("test", "other sources"))


def text():
    """Every edit on factors of most text, with 95 % intervals."""
    document = json.loads(RECORD.read_text())
    before = document["before"]
    most = max(document["settings"]["fit_tokens"])
    rows = [["unedited", *rights(before), f"{before['perplexity']['value']:.1f}", ""]]
    rows += [
        [
            f"{each['criterion']}, {each['place']}",
            *rights(each["metrics"]),
            rise(before, each["differences"]),
            f"{each['metrics']['kl']['value']:.4f}",
        ]
        for each in document["arms"]
        if each["fit_tokens"] in (None, most)
    ]
    heads = [*(f"right: {name}" for _, name in SIDES), "perplexity", "KL, nats"]
    return table(["", *heads], rows)


def rights(metrics):
    return [interval(metrics[f"right: {side}"]) for side, _ in SIDES]


def interval(metric):
    value, low, high = (f"{metric[key]:.3f}".lstrip("0") for key in ("value", "low", "high"))
    return f"{value} ({low} … {high})"


def rise(before, differences):
    base = before["perplexity"]["value"]
    value, low, high = (
        100 * differences["perplexity"][key] / base for key in ("value", "low", "high")
    )
    return f"{value:+.1f} % ({low:+.1f} … {high:+.1f})"
