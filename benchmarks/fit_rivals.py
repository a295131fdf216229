"""A whole ``fit`` beside other packages that compute the same factors, on the same tokens.

pip install -e '.[hf,rivals]'; python benchmarks/fit_rivals.py JSON

Kronecker factors of every MLP map of a decoder of 8 layers and width 512, float32. Each candidate
runs over one batch and over two, in turn with the others; what the second batch adds is its time
per token, what is left of the first its fixed cost. User CPU time stands beside wall time. Peak
memory above the loaded model is that of a fresh process.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from importlib.metadata import version
from pathlib import Path

import torch
from bench_fit import BATCH, WINDOW, build
from interleave import torch_threads
from released_collector import collect
from torch import nn

import curvedit
from curvedit.meter import peak_memory

ROUNDS, PLENTY = 3, 8 << 30
WORDS = 8192


def data(count):
    draw = torch.Generator().manual_seed(0)
    return list(torch.randint(WORDS, (count, BATCH, WINDOW), generator=draw))


def own(dtype=torch.float32, **options):
    model = build().to(dtype)
    fixed = {"targets": "model.layers.*.mlp.*", "weighted": False, "progress": False}

    def run(batches):
        factors = curvedit.fit(model, batches, **fixed, **options)
        return {name: factors[name].A for name in factors}

    return run


def released():
    model = build()
    return lambda batches: {name: a for name, (a, _) in collect(model, batches).items()}


def kronfluence():
    """Its function below ``Analyzer``, which would also write the factors to disk."""
    from kronfluence.analyzer import prepare_model
    from kronfluence.arguments import FactorArguments
    from kronfluence.factor.covariance import fit_covariance_matrices_with_loader
    from kronfluence.task import Task
    from kronfluence.utils.state import State

    model = build()
    names = [name for name, each in model.named_modules() if isinstance(each, nn.Linear)]
    names = [name for name in names if ".mlp." in name]

    class Language(Task):
        def compute_train_loss(self, batch, model, sample=False):
            logits = model(input_ids=batch[0], use_cache=False).logits[:, :-1].flatten(0, 1)
            labels = batch[0][:, 1:].flatten()
            if sample:
                with torch.no_grad():
                    labels = torch.multinomial(logits.softmax(-1), 1).flatten()
            return nn.functional.cross_entropy(logits, labels, reduction="sum")

        def compute_measurement(self, batch, model):
            return self.compute_train_loss(batch, model)

        def get_influence_tracked_modules(self):
            return names

    task = Language()
    model, state = prepare_model(model, task), State(cpu=True)

    def run(batches):
        rows = torch.utils.data.TensorDataset(torch.cat(list(batches)))
        loader = torch.utils.data.DataLoader(rows, batch_size=BATCH)
        _, factors = fit_covariance_matrices_with_loader(
            model, state, task, loader, FactorArguments(), disable_tqdm=True
        )
        count = len(rows) * WINDOW
        return {name: a / count for name, a in factors["activation_covariance"].items()}

    return run


def curvlinops():
    from curvlinops import KFACLinearOperator

    class Logits(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, ids):
            return self.model(input_ids=ids, use_cache=False).logits[:, :-1]

    model = build()
    wrapped = Logits(model)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    maps = {
        n: each for n, each in model.named_modules() if ".mlp." in n and hasattr(each, "weight")
    }
    for each in maps.values():
        each.weight.requires_grad_(True)

    def run(batches):
        operator = KFACLinearOperator(
            wrapped,
            nn.CrossEntropyLoss(reduction="sum"),
            [each.weight for each in maps.values()],
            [(ids, ids[:, 1:]) for ids in batches],
            check_deterministic=False,
            num_per_example_loss_terms=WINDOW - 1,
        )
        operator.compute_kronecker_factors()
        found = operator._input_covariances
        return {name.removeprefix("model."): each for name, each in found.items()}

    return run


CANDIDATES = {
    "curvedit": own,
    "curvedit, graphs kept": lambda: own(graph_bytes=PLENTY),
    "curvedit, model in bfloat16": lambda: own(torch.bfloat16),
    "kronfluence": kronfluence,
    "curvlinops": curvlinops,
    "released procedure": released,
}


def timed(run, batches):
    """Wall and user seconds."""
    user, wall = os.times().user, time.perf_counter()
    run(batches)
    return time.perf_counter() - wall, os.times().user - user


def compared(runs, expected):
    """How far each candidate's input factors are from ours, relative; the last position differs."""
    return {
        name: max(
            float((found[key] - a).norm() / a.norm()) for key, a in expected.items() if key in found
        )
        for name, found in runs.items()
    }


def measured(threads):
    batches = data(2)
    with torch_threads(threads):
        runs, failed = {}, {}
        for name, make in CANDIDATES.items():
            try:
                runs[name] = make()
                runs[name](batches[:1])
            except Exception as error:  # noqa: BLE001 - a rival may fail in any way
                failed[name] = f"{type(error).__name__}: {error}"[:300]
                runs.pop(name, None)
        seconds = {name: [] for name in runs}
        for turn in range(ROUNDS):
            for name, run in runs.items():
                seconds[name].append([*timed(run, batches[:1]), *timed(run, batches)])
                print(
                    threads, turn, name, [round(each, 2) for each in seconds[name][-1]], flush=True
                )
    rows = {}
    for name, rounds in seconds.items():
        one, one_user, two, two_user = (
            statistics.median(each) for each in zip(*rounds, strict=True)
        )
        tokens = BATCH * WINDOW
        rows[name] = {
            "ms_per_token": round(1e3 * (two - one) / tokens, 4),
            "user_ms_per_token": round(1e3 * (two_user - one_user) / tokens, 4),
            "fixed_seconds": round(2 * one - two, 3),
            "rounds": [[round(each, 3) for each in turn] for turn in rounds],
        }
    return {"threads": threads, "rows": rows, "failed": failed}


def peak(name):
    """Bytes above the loaded model, in this process."""
    warnings.simplefilter("ignore")
    run, batches = CANDIDATES[name](), data(2)
    before = peak_memory(torch.device("cpu"))
    run(batches)
    return peak_memory(torch.device("cpu")) - before


def peaks(names):
    found = {}
    for name in names:
        command = [sys.executable, __file__, "--peak", name]
        run = subprocess.run(command, capture_output=True, text=True, check=True)
        found[name] = int(run.stdout.split()[-1])
        print(name, found[name] >> 20, "MiB", flush=True)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("json", type=Path, nargs="?")
    parser.add_argument("--peak", choices=CANDIDATES, help="print the peak of one, in bytes")
    options = parser.parse_args()
    if options.peak:
        print(peak(options.peak))
        return
    warnings.simplefilter("ignore")
    expected = own()(data(1))
    runs = [measured(threads) for threads in (1, 2)]
    working = list(runs[0]["rows"])
    document = {
        "shape": "8 layers, width 512, MLP 1376, 8192 words; batches of 8 x 512 tokens",
        "versions": {
            each: version(each)
            for each in ("torch", "transformers", "kronfluence", "curvlinops-for-pytorch")
        },
        "agreement": compared({n: CANDIDATES[n]()(data(1)) for n in working}, expected),
        "runs": runs,
        "peak_bytes_above_model": peaks(working),
    }
    options.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
