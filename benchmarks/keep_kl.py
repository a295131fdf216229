"""What an edit of a stated price costs on other text: as predicted, and as measured beforehand.

``python benchmarks/keep_kl.py MODEL --factors DIR [DIR …] --text FILE [FILE …] --out JSON``

Every text is halved by document: on one half ``rank(keep_kl=…, holdout=…)`` measures, on the other
the edits that come of it are compared with those of ``rank(keep_kl=…)`` alone. All in nats per
position; factors are named by the positions they were fitted on.
"""

import argparse
import json
import platform
import time
from pathlib import Path

import torch
import transformers

import curvedit
from curvedit.evaluation import Divergence, Suite

BUDGETS = (0.005, 0.02, 0.08)
PLACES = {
    "middle": "model.layers.{8..11}.mlp.{gate,up}_proj",
    "wide": "model.layers.{8..15}.mlp.*",
}


def halves(files, tokenizer, window, tokens):
    """Windows of every other document, and of the rest; as many of each file."""
    found = []
    for half in (0, 1):
        windows = []
        for path in files:
            rows = [json.loads(line)["text"] for line in path.read_text().splitlines()][half::2]
            batches = curvedit.token_batches(
                rows, tokenizer=tokenizer, window=window, batch_size=1, max_tokens=tokens
            )
            windows += [batch["input_ids"] for batch in batches]
        whole = [each for each in windows if each.shape[1] == window]
        found.append([{"input_ids": part} for part in torch.cat(whole).split(8)])
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--factors", nargs="+", required=True)
    parser.add_argument("--text", nargs="+", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=1280, help="of a file and half")
    options = parser.parse_args()
    model = transformers.AutoModelForCausalLM.from_pretrained(options.model).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(options.model)
    searched, other = halves(options.text, tokenizer, 128, options.tokens)
    suite = Suite([Divergence(other)], batch_size=8)
    baseline = curvedit.evaluate(model, suite, progress=False)
    rows = []
    for directory in options.factors:
        factors = curvedit.Factors.load(directory)
        for place, targets in PLACES.items():
            for budget in BUDGETS:
                row = {"positions": factors.provenance["positions"], "place": place}
                for way, holdout in (("predicted", None), ("measured", searched)):
                    started = time.perf_counter()
                    found = curvedit.rank(
                        factors,
                        keep_kl=budget,
                        targets=targets,
                        model=model,
                        holdout=holdout,
                        progress=False,
                    )
                    seconds = time.perf_counter() - started
                    with curvedit.project(model, found):
                        report = curvedit.evaluate(model, suite, baseline=baseline, progress=False)
                    kl = report.after.kl
                    row[way] = {
                        "seconds": round(seconds, 1),
                        **{
                            key: found.recipe[key]
                            for key in ("keep_mass", "expected_kl", "measured_kl")
                            if key in found.recipe
                        },
                        "other_text": {"value": kl.value, "low": kl.low, "high": kl.high},
                    }
                rows.append({**row, "keep_kl": budget})
                print(json.dumps(rows[-1]), flush=True)
                write(options, rows, searched, other)


def write(options, rows, searched, other):
    """Write what is known so far."""
    sizes = [sum(batch["input_ids"][:, 1:].numel() for batch in each) for each in (searched, other)]
    record = {
        "format": "curvedit-keep-kl",
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "searched_positions": sizes[0],
        "other_positions": sizes[1],
        "rows": rows,
    }
    options.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
