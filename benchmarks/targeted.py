"""Ways to take a targeted step, compared: dampings, numbers of steps, components left alone.

python benchmarks/targeted.py STUDY --out JSON

STUDY is the directory of a real study (``make study``), of which the model, the factors of most
tokens, the passages and the texts are taken. Every variant forgets the same named passages of
layers 8 to 15 within the same budget; what it does to passages of the same sources and of others,
to other text, and after 50 steps of training on unrelated text is measured with intervals.

Left alone are, in the factors' eigenbases on both sides, the leading components ("CIR",
arXiv:2509.11816) or all but the minor ones (arXiv:2605.11685): the gradient is projected onto the
rest before the step.
"""

import argparse
import json
import re
import time
import warnings
from pathlib import Path
from unittest import mock

import torch
import transformers

import curvedit
from curvedit.evaluation import Divergence, Perplexity, Relearning, Suite, TokenRecall, forced
from curvedit.forgetting import descent
from curvedit.study import preset

TARGETS, BUDGET, NEAR = "model.layers.{8..15}.mlp.*", 0.02, 0.75
DIRECTION = descent.direction


def only(kept):
    """A step in some of the components: ``kept(n)`` is their slice, from the most curved on."""

    def projected(factors, name, gradient, change, damping):
        for kind in ("G", "A"):
            vectors = factors.basis(kind, name).vectors.to(gradient.device)
            some = vectors[:, kept(len(vectors))]
            gradient = some @ (some.mT @ gradient) if kind == "G" else gradient @ some @ some.mT
        return DIRECTION(factors, name, gradient, change, damping)

    return projected


VARIANTS = {
    "default: damping 0.1, 4 steps": ({}, None),
    "damping 0.01": ({"damping": 0.01}, None),
    "damping 1": ({"damping": 1.0}, None),
    "damping 10": ({"damping": 10.0}, None),
    "plain gradient": ({"damping": 1e9}, None),
    "1 step": ({"steps": 1}, None),
    "8 steps": ({"steps": 8}, None),
    "without the leading 8 (CIR)": ({}, lambda n: slice(8, n)),
    "without the leading 32 (CIR)": ({}, lambda n: slice(32, n)),
    "the minor half only": ({}, lambda n: slice(n // 2, n)),
    "the minor tenth only": ({}, lambda n: slice(n - n // 10, n)),
}
_RELEARNT = ("default: damping 0.1, 4 steps", "damping 1", "the minor half only")
_RELEARNT += ("without the leading 8 (CIR)",)


def sides(model, tokenizer, path):
    """Recited passages: named, of the same sources, of other sources."""
    passages = curvedit.Passages.read(path, tokenizer=tokenizer)
    right = forced(model, passages, batch_size=16).right
    facts = passages.facts
    recited = [n for n, each in enumerate(right) if each.mean() >= NEAR]
    tuned = [n for n in recited if facts[n]["split"] == "tune"]
    same = tuned[4::5]
    return {
        "named": passages.take([n for n in tuned if n not in same]),
        "same sources": passages.take(same),
        "other sources": passages.take([n for n in recited if facts[n]["split"] == "test"]),
    }


def windows(files, tokenizer, count, *, odd):
    """So many windows of each file's odd or even documents."""
    found = []
    for path in files:
        rows = [json.loads(line)["text"] for line in path.read_text().splitlines()][odd::2]
        batches = curvedit.token_batches(
            rows, tokenizer=tokenizer, window=128, batch_size=1, max_tokens=128 * count
        )
        found += [each["input_ids"] for each in batches if each["input_ids"].shape[1] == 128]
    return [{"input_ids": part} for part in torch.cat(found).split(8)]


def fit_seconds(model, passages):
    """Of a fit of the same maps over the passages, to compare a step with."""
    rows = [torch.tensor([*prefix, *suffix]) for prefix, suffix in passages.rows()]
    batches = []
    for start in range(0, len(rows), 16):
        some = rows[start : start + 16]
        ids = torch.nn.utils.rnn.pad_sequence(some, batch_first=True)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(each) for each in some], True)
        batches.append({"input_ids": ids, "attention_mask": mask})
    started = time.perf_counter()
    curvedit.fit(model, batches, targets=TARGETS, progress=False)
    return round(time.perf_counter() - started, 1)


def read(report, key):
    """An edit's value with its interval."""
    value = report.after[key]
    return [round(each, 5) for each in (value.value, value.low, value.high)]


def measured(model, baseline, suite, before):
    report = curvedit.evaluate(model, suite, baseline=baseline, progress=False)
    return {key: read(report, key) for key in before}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--only", default="", metavar="REGEX", help="variants whose name has a match"
    )
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    inputs = preset.prepare("real", options.study)
    tokenizer = transformers.AutoTokenizer.from_pretrained(inputs.model)
    model = transformers.AutoModelForCausalLM.from_pretrained(inputs.model).eval()
    factors = curvedit.Factors.load(options.study / "factors-24576")
    given = sides(model, tokenizer, inputs.passages)
    texts = list(inputs.held_out.values())
    checked, other = (windows(texts, tokenizer, 8, odd=odd) for odd in (0, 1))
    suites = {name: Suite([TokenRecall(each)], batch_size=16) for name, each in given.items()}
    suites["text"] = Suite([Divergence(other), Perplexity(other)], batch_size=8)
    relearnt = Suite([Relearning(given["named"], other, steps=(50,))], batch_size=16)
    before = {name: curvedit.evaluate(model, each, progress=False) for name, each in suites.items()}
    keys = dict.fromkeys(given, ("right", "near")) | {"text": ("kl", "perplexity")}
    rows = {}
    if options.out.exists():  # variants of an earlier call stay
        rows = json.loads(options.out.read_text())["variants"]
    fits = [fit_seconds(model, given["named"]) for _ in range(2)]
    for name, (changes, kept) in VARIANTS.items():
        if not re.search(options.only, name):
            continue
        started = time.perf_counter()
        step = DIRECTION if kept is None else only(kept)
        with mock.patch.object(descent, "direction", step):
            edit = curvedit.forget(
                model,
                factors,
                given["named"],
                holdout=checked,
                targets=TARGETS,
                budget=BUDGET,
                progress=False,
                **changes,
            )
        row = {"seconds": round(time.perf_counter() - started, 1)}
        row |= {key: edit.record[key] for key in ("stopped", "steps") if key in edit.record}
        for each, suite in suites.items():
            row[each] = measured(model, before[each], suite, keys[each])
        if name in _RELEARNT:
            found = curvedit.evaluate(model, relearnt, progress=False).before
            row["named after 50 steps"] = read_first(found)
        edit.undo()
        rows[name] = row
        print(name, json.dumps(row)[:400], flush=True)
        document = {
            "targets": TARGETS,
            "budget": BUDGET,
            "passages": {name: len(each) for name, each in given.items()},
            "seconds_of_fits_over_the_named": fits,
            "factors_of": factors.provenance["positions"],
            "unedited": {
                name: {key: round(found.before[key].value, 5) for key in keys[name] if key != "kl"}
                for name, found in before.items()
            },
            "variants": rows,
        }
        options.out.write_text(json.dumps(document, indent=1) + "\n")


def read_first(metrics):
    """The only value, with its interval."""
    value = next(iter(metrics.values()))
    return [round(each, 5) for each in (value.value, value.low, value.high)]


if __name__ == "__main__":
    main()
