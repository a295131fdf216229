"""The study on the demo's model, which was trained to recite: three trainings, each studied whole.

``python benchmarks/study_toy.py DIRECTORY JSON``; what is in the directory is not made again.

Every other passage is named and tuned on, the rest are tested on. `forget` runs within its usual
budget of .02 nats per token and within .2, at several dampings.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
import transformers

import curvedit
from curvedit.demo.corpus import PREFIX, WINDOW, load_corpus, windows
from curvedit.demo.training import trained_model
from curvedit.study import Material, Settings, study

SEEDS = (0, 1, 2)
PLACES = {"upper": ("model.layers.{2..3}.*",), "all": ("model.layers.*",)}
FIT_TOKENS = (8192, 131072)
BUDGETS = (0.02, 0.2)  # nats per token
DAMPINGS = (0.01, 0.1, 1.0)
HELD_OUT = 256  # windows


def material_of(corpus):
    """The passages by turns, random windows to fit on, and evenly spread windows held out."""
    passages = curvedit.Passages.cut(corpus.passages, prefix=PREFIX, suffix=WINDOW - PREFIX)
    facts = [
        {"split": ("tune", "test")[number % 2], "source": f"passage {number}"}
        for number in range(len(passages))
    ]
    general = windows(corpus.training, max(FIT_TOKENS) // WINDOW, torch.Generator().manual_seed(1))
    return Material(
        replace(passages, facts=facts),
        {
            tokens: curvedit.token_batches(
                general[: tokens // WINDOW].tolist(), window=WINDOW, batch_size=32
            )
            for tokens in FIT_TOKENS
        },
        {"code": corpus.held_out[:: len(corpus.held_out) // HELD_OUT][:HELD_OUT].tolist()},
    )


def entries_of(document):
    """What is kept of a study: every edit's metrics and differences, and the comparisons."""
    return {
        key: document[key]
        for key in ("settings", "before", "arms", "contrasts", "audit", "warnings", "seconds")
    }


def main(directory, out):
    corpus = load_corpus()
    found = []
    for seed in SEEDS:
        place = directory / f"model-{seed}"
        trained_model(place, corpus, seed=seed)
        model = transformers.AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)
        settings = Settings(
            places=PLACES, fit_tokens=FIT_TOKENS, checked=32, mapped=0, tasks=0, batch_size=32
        )
        material = material_of(corpus)
        usual = finished(model, material, settings, directory / f"study-{seed}")
        targeted = [
            {"budget": budget, "damping": damping, "arms": arms}
            for budget in BUDGETS
            for damping in DAMPINGS
            for arms in [forgotten(model, material, settings, directory, seed, budget, damping)]
        ]
        found.append({"seed": seed, "usual": entries_of(usual), "targeted": targeted})
    first = found[0]["usual"]
    record = {"format": "curvedit-toy-study", "tool": curvedit.__version__, "studies": found}
    out.write_text(json.dumps(record, indent=1) + "\n")
    print(len(found), "studies,", len(first["arms"]), "edits each")


def forgotten(model, material, settings, directory, seed, budget, damping):
    """The edits of the targeted mode alone, at one budget and damping."""
    only = replace(settings, kinds=("targeted",), budget=budget, damping=damping, audited=False)
    place = directory / f"study-{seed}-{budget:g}-{damping:g}"
    return finished(model, material, only, place)["arms"]


def finished(model, material, settings, place):
    """The study's document, from its directory where it is there."""
    document = place / "study.json"
    if not document.is_file():
        study(model, material, settings, place)
    return json.loads(document.read_text())


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python benchmarks/study_toy.py DIRECTORY JSON")
    main(Path(sys.argv[1]), Path(sys.argv[2]))
