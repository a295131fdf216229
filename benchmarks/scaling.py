"""How a fit's time grows with tokens and layers, and shrinks with processes.

python benchmarks/scaling.py JSON

Of a random OLMo-2 of width 512: whole fits by one and by two processes of one thread each, in turn,
as ``torchrun`` starts them; time per token with 4, 8 and 16 layers, in turn; and in each tenth of a
long fit. What is in the file already is not measured again.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch
import transformers

import curvedit

WIDTH, INNER, VOCABULARY, WINDOW, ROWS = 512, 1376, 8192, 512, 8
TARGETS = "model.layers.*"
LONG, SHORT, ROUNDS = 409_600, 8_192, 3
LAYERS = (4, 8, 16)
SHARED = 16_384  # tokens of the fits by processes
TENTHS = 10


def model_of(layers):
    config = transformers.Olmo2Config(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=layers,
        num_attention_heads=8,
        max_position_embeddings=WINDOW,
        pad_token_id=0,
        eos_token_id=1,
    )
    torch.manual_seed(0)
    return transformers.Olmo2ForCausalLM(config).eval()


def batches_of(tokens, seen=None):
    generator = torch.Generator().manual_seed(0)
    for _ in range(tokens // (ROWS * WINDOW)):
        if seen is not None:
            seen.append(time.perf_counter())
        yield torch.randint(VOCABULARY, (ROWS, WINDOW), generator=generator)


def seconds_of(model, tokens):
    started = time.perf_counter()
    curvedit.fit(model, batches_of(tokens), targets=TARGETS, weighted=False, progress=False)
    return time.perf_counter() - started


def over_tokens():
    """Milliseconds per token in each tenth of a long fit."""
    seen = []
    data = batches_of(LONG, seen)
    model = model_of(2)
    curvedit.fit(model, data, targets=TARGETS, weighted=False, progress=False)
    each = len(seen) // TENTHS
    found = []
    for tenth in range(TENTHS):
        first, last = seen[tenth * each], seen[min((tenth + 1) * each, len(seen) - 1)]
        count = min((tenth + 1) * each, len(seen) - 1) - tenth * each
        found.append(round(1e3 * (last - first) / (count * ROWS * WINDOW), 4))
    return found


def over_layers():
    """Milliseconds per token with each number of layers: medians of rounds, in turn."""
    models = {layers: model_of(layers) for layers in LAYERS}
    taken = {layers: [] for layers in LAYERS}
    for _ in range(ROUNDS):
        for layers, model in models.items():
            taken[layers].append(1e3 * seconds_of(model, SHORT) / SHORT)
    return {layers: round(statistics.median(each), 4) for layers, each in taken.items()}


def over_processes(place):
    """Seconds of whole fits by one and by two processes of one thread, and their ratios."""
    model_of(8).save_pretrained(place / "model")
    rows = torch.cat(list(batches_of(SHARED))).tolist()
    lines = "".join(json.dumps({"input_ids": row}) + "\n" for row in rows)
    (place / "ids.jsonl").write_text(lines)
    pairs = []
    for turn in range(ROUNDS):
        found = {}
        for count in ((1, 2), (2, 1))[turn % 2]:
            found[count] = shared_seconds(place, count, place / f"factors-{turn}-{count}")
        pairs.append([found[1], found[2]])
    ratios = [one / two for one, two in pairs]
    return {"seconds": pairs, "ratio": round(statistics.median(ratios), 3), "ratios": ratios}


def shared_seconds(place, count, out):
    words = ["--model", place / "model", "--data", place / "ids.jsonl", "--targets", TARGETS]
    words += ["--window", WINDOW, "--batch-size", ROWS, "--no-weighted", "--no-progress"]
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", count]
    command = [sys.executable, *(start if count > 1 else []), "-m", "curvedit", "fit", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [str(word) for word in [*command, "--out", out]],
        check=True,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return curvedit.Factors.load(out).provenance["seconds"]


def main(out):
    warnings.simplefilter("ignore")
    document = json.loads(out.read_text()) if out.exists() else {}
    document |= {
        "model": f"OLMo-2, width {WIDTH}, inner width {INNER}, random",
        "targets": TARGETS,
        "batch": [ROWS, WINDOW],
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "tokens": {"processes": SHARED, "layers": SHORT, "long": LONG},
    }
    with tempfile.TemporaryDirectory() as place:
        parts = {
            "processes": lambda: over_processes(Path(place)),
            "ms_per_token_by_layers": over_layers,
            "ms_per_token_by_tenth": over_tokens,
        }
        for name, measure in parts.items():
            if name not in document:
                document[name] = measure()
                print(name, document[name], flush=True)
                out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python benchmarks/scaling.py JSON")
    main(Path(sys.argv[1]))
