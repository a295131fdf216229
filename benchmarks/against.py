"""This revision beside another one: ``python benchmarks/against.py OTHER_PYTHON``.

OTHER_PYTHON is the interpreter of an environment in which the other revision is installed::

    git worktree add ../other REVISION
    python -m venv --system-site-packages ../other-env
    ../other-env/bin/python -m pip install --no-deps ../other

One worker of each runs every workload in turn, so that a noisy machine is equally unfair to both.
Ratios are this revision's seconds over the other's, pair by pair; their median is what counts.
Workloads use only what both revisions have: the public functions and ``ops.call``.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path

WORKLOADS = (
    "dispatch: 300 times 16 tokens of 64",
    "10 times syrk_accumulate, float32, 4096 x 512",
    "20 times syrk_accumulate, bfloat16, 4096 x 512",
    "10 times syrk_accumulate_pair, 4096 x 512",
    "10 times second_moment_accumulate, 688 x 256",
    "20 times second_moment_accumulate, bfloat16, 688 x 256",
    "5 times staircase_limits, 4096 x 11008",
    "20 times staircase_project, 1376 x 512",
    "fit, 4 layers of width 256",
    "fit, weighted off",
    "fit, bfloat16, 4 layers of width 512",
    "fit, bfloat16, weighted off",
    "rank, with decomposition",
    "20 times rank, bases cached",
    "rank, one threshold for all",
    "project and undo",
)


def workloads():
    """Name to a function that runs it once."""
    import torch
    import transformers

    import curvedit
    from curvedit import ops
    from curvedit.kernels import tiles

    torch.manual_seed(0)
    small, x = torch.randn(16, 64), torch.randn(4096, 512)
    half, weight = x.bfloat16(), torch.rand(4096)
    small_out, out, out_w = tiles.zeros(64), tiles.zeros(512), tiles.zeros(512)
    g, a, moments = torch.randn(2048, 688), torch.randn(2048, 256), torch.zeros(688, 256)
    offsets = torch.arange(0, 2049, 128)
    long, short = (1.0 / torch.arange(1, n + 1).double() for n in (11008, 4096))
    w = torch.randn(1376, 512)
    u_out, u_in = (torch.linalg.qr(torch.randn(n, n))[0] for n in (1376, 512))
    spectra = (1.0 / torch.arange(1, n + 1).double() for n in (1376, 512))
    limits = ops.call("staircase_limits", *spectra, 0.6)[0]
    config = transformers.LlamaConfig(
        vocab_size=512,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    config.hidden_size, config.intermediate_size, config.head_dim = 512, 1376, 128
    wide = transformers.LlamaForCausalLM(config).eval().bfloat16()
    batches = list(torch.randint(512, (4, 4, 256)))

    def fitted(model=model, **options):
        return curvedit.fit(model, batches, targets="*.mlp.*", progress=False, **options)

    def repeated(op, *arguments, times=1):
        def run():
            for _ in range(times):
                ops.call(op, *arguments)

        return run

    factors = fitted()
    plain = {name: (factors[name].A, factors[name].G, factors[name].tokens) for name in factors}

    def ranked(**options):
        fresh = curvedit.Factors.from_moments(plain)
        return curvedit.rank(fresh, keep_mass=0.6, progress=False, **options)

    selection = curvedit.rank(factors, keep_mass=0.6, progress=False)

    def projected():
        curvedit.project(model, selection).undo()

    return dict(
        zip(
            WORKLOADS,
            (
                repeated("syrk_accumulate", small_out, small, None, times=300),
                repeated("syrk_accumulate", out, x, None, times=10),
                repeated("syrk_accumulate", out, half, None, times=20),
                repeated("syrk_accumulate_pair", out, out_w, x, weight, times=10),
                repeated("second_moment_accumulate", moments, g, a, offsets, times=10),
                repeated(
                    "second_moment_accumulate",
                    moments,
                    g.bfloat16(),
                    a.bfloat16(),
                    offsets,
                    times=20,
                ),
                repeated("staircase_limits", long, short, 0.6, times=5),
                repeated("staircase_project", w, u_out, u_in, limits, times=20),
                fitted,
                lambda: fitted(weighted=False),
                lambda: fitted(wide),
                lambda: fitted(wide, weighted=False),
                ranked,
                lambda: [curvedit.rank(factors, keep_mass=0.7, progress=False) for _ in range(20)],
                lambda: curvedit.rank(factors, keep_mass=0.7, scope="model", progress=False),
                projected,
            ),
            strict=True,
        )
    )


def work():
    """A worker: takes names of workloads, answers with seconds."""
    warnings.simplefilter("ignore")
    answers, sys.stdout = sys.stdout, sys.stderr
    ready = workloads()
    for run in ready.values():
        run()
    answers.write("ready\n")
    answers.flush()
    for line in sys.stdin:
        run = ready[line.strip()]
        start = time.perf_counter()
        run()
        answers.write(f"{time.perf_counter() - start}\n")
        answers.flush()


class Worker:
    """One revision's process."""

    def __init__(self, python):
        command = [python, str(Path(__file__).resolve()), "--work"]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/"
        )
        if self.process.stdout.readline() != "ready\n":
            raise RuntimeError(f"{python}: its worker did not start")

    def seconds(self, name):
        self.process.stdin.write(name + "\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())


def import_seconds(python):
    code = "import time; s = time.perf_counter(); import curvedit; print(time.perf_counter() - s)"
    found = subprocess.run(
        [python, "-c", code], check=True, capture_output=True, text=True, cwd="/"
    )
    return float(found.stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("other", metavar="OTHER_PYTHON")
    parser.add_argument("--revision", default="", help="the other's revision, for the JSON")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    own, other = Worker(sys.executable), Worker(options.other)
    rows = {}
    for name in (*WORKLOADS, "import curvedit"):
        pairs = []
        for turn in range(options.rounds):
            order = (sys.executable, options.other) if name == "import curvedit" else (own, other)
            ask = import_seconds if name == "import curvedit" else lambda w, n=name: w.seconds(n)
            taken = {}
            for each in order if turn % 2 else order[::-1]:
                taken[each] = ask(each)
            pairs.append(tuple(taken[each] for each in order))
        ratios = sorted(mine / theirs for mine, theirs in pairs)
        rows[name] = {
            "own_ms": round(1e3 * statistics.median(mine for mine, _ in pairs), 4),
            "other_ms": round(1e3 * statistics.median(theirs for _, theirs in pairs), 4),
            "ratio": round(statistics.median(ratios), 4),
            "quartiles": [round(ratios[len(ratios) * k // 4], 4) for k in (1, 3)],
        }
        row = rows[name]
        sys.stdout.write(
            f"{name:46}{row['own_ms']:11.3f} ms {row['other_ms']:11.3f} ms  "
            f"{row['ratio']:6.3f}  {row['quartiles']}\n"
        )
        sys.stdout.flush()
    if options.json:
        describe = ["git", "describe", "--always", "--dirty"]
        here = Path(__file__).parent
        found = subprocess.run(describe, check=True, capture_output=True, text=True, cwd=here)
        record = {
            "revision": found.stdout.strip(),
            "other": options.revision,
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "rounds": options.rounds,
            "workloads": rows,
        }
        options.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    if "--work" in sys.argv:
        work()
    else:
        main()
