"""Kills a fit again and again at random moments, and compares what comes of it in the end.

``python benchmarks/kill_fit.py JSON [KILLS]``: a small model is fitted from the command line, with
a snapshot after every batch. Each process is killed (SIGKILL) at a random moment after it has begun
to load, until it has been killed so many times; the last one runs to its end. Its factors must be
those of a fit that was never stopped, bit for bit.
"""

import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import transformers

import curvedit

KILLS, WINDOWS = 30, 400
KINDS = ("A", "G", "A_w", "G_w")


def prepare(place):
    config = transformers.LlamaConfig(
        vocab_size=97,
        hidden_size=64,
        intermediate_size=176,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
    )
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(place / "model")
    rows = torch.randint(97, (WINDOWS, 32)).tolist()
    text = "".join(json.dumps({"input_ids": row}) + "\n" for row in rows)
    (place / "data.jsonl").write_text(text)


def command(place, out, *more):
    where = ["--model", place / "model", "--data", place / "data.jsonl", "--out", place / out]
    what = ["--targets", "*.layers.*", "--window", "32", "--batch-size", "2", "--device", "cpu"]
    return [
        sys.executable,
        "-m",
        "curvedit",
        "fit",
        *map(str, where),
        *what,
        "--no-progress",
        *more,
    ]


def main(out, kills):
    draw, moments = random.Random(0), []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        prepare(place)
        started = time.monotonic()
        subprocess.run(command(place, "whole"), check=True, stdout=subprocess.DEVNULL)
        seconds = time.monotonic() - started
        again = command(place, "factors", "--snapshot-minutes", "1e-9")
        finished_early = 0
        while len(moments) < kills:
            wait = draw.uniform(0.2, seconds)
            process = subprocess.Popen(again, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            try:
                _, said = process.communicate(timeout=wait)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.communicate()
                moments.append(round(wait, 2))
                continue
            if process.returncode:
                sys.exit(said.decode())
            finished_early += 1  # it was done before its time; begin another
            curvedit.Factors.load(place / "factors")
            compare(place)
            subprocess.run(["rm", "-r", place / "factors"], check=True)
        subprocess.run(again, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        compare(place)
    record = {
        "format": "curvedit-kills",
        "kills": moments,
        "seconds_of_a_whole_fit": round(seconds, 1),
        "finished": finished_early + 1,
        "bit_identical": True,
    }
    out.write_text(json.dumps(record, indent=1) + "\n")
    print(record)


def compare(place):
    """Stop unless the factors are those of the fit that was never stopped."""
    whole, other = (curvedit.Factors.load(place / name) for name in ("whole", "factors"))
    for name in whole:
        if whole[name].tokens != other[name].tokens:
            sys.exit(f"{name}: {other[name].tokens} positions instead of {whole[name].tokens}")
        for kind in KINDS:
            if not torch.equal(whole.mean(kind, name), other.mean(kind, name)):
                sys.exit(f"{kind} of {name} differs")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit("usage: python benchmarks/kill_fit.py JSON [KILLS]")
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) == 3 else KILLS)
