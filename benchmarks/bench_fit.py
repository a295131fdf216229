"""A whole ``fit`` beside the released collector's procedure: 8 layers, width 512, every MLP map.

Times are interleaved in this process. Peak memory above the loaded model is measured in a fresh
process for each candidate (``python benchmarks/bench_fit.py own``).
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from interleave import interleaved, record, torch_threads
from released_collector import collect

import curvedit
from curvedit.meter import peak_memory

WINDOW, BATCH, BATCHES = 512, 8, 2
GRAPHS = 8 << 30  # bytes, more than all blocks take


def build():
    config = transformers.LlamaConfig(
        vocab_size=8192,
        hidden_size=512,
        intermediate_size=1376,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=WINDOW,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.LlamaForCausalLM(config).eval()


def data():
    return list(
        torch.randint(8192, (BATCHES, BATCH, WINDOW), generator=torch.Generator().manual_seed(0))
    )


def candidates(model, batches):
    options = {"targets": "model.layers.*.mlp.*", "progress": False}
    return {
        "own": lambda: curvedit.fit(model, batches, weighted=False, **options),
        "own, graphs kept": lambda: curvedit.fit(
            model, batches, weighted=False, graph_bytes=GRAPHS, **options
        ),
        "own with norm-weighted": lambda: curvedit.fit(model, batches, **options),
        "released procedure": lambda: collect(model, batches),
    }


def peak_above_model(name):
    run = subprocess.run(
        [sys.executable, Path(__file__), name], capture_output=True, text=True, check=True
    )
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize("threads", [1, 2])
def bench_threads(benchmark, threads):
    model, batches = build(), data()
    runs = candidates(model, batches)
    benchmark.group = f"fit, {threads} thread(s)"
    with torch_threads(threads):
        ours, theirs = runs["own"](), runs["released procedure"]()  # also warms up
        for name, (a, g) in theirs.items():
            torch.testing.assert_close(ours[name].A, a, rtol=1e-3, atol=1e-5)
            g = g * (BATCH * (WINDOW - 1)) ** 2  # theirs are of the mean loss
            assert 0.5 < ours[name].G.trace() / g.trace() < 2  # the labels are drawn differently
        seconds = interleaved(runs, rounds=2)
        record(benchmark, seconds, "own", threads=threads, tokens=BATCHES * BATCH * WINDOW)
        peaks = {name: peak_above_model(name) for name in runs}
        benchmark.extra_info["peak_mib_above_model"] = peaks
        benchmark.pedantic(runs["own"], rounds=1)


if __name__ == "__main__":
    loaded, given = build(), data()
    loaded(input_ids=given[0][:1, :8])  # so that the libraries' workspaces do not count
    start = peak_memory(torch.device("cpu"))
    candidates(loaded, given)[sys.argv[1]]()
    print(json.dumps((peak_memory(torch.device("cpu")) - start) >> 20))
