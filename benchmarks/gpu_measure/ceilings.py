"""The device's ceilings: a large copy, and large square products in every precision that we use.

python benchmarks/gpu_measure/ceilings.py --json FILE
"""

import sys

import common
import torch

_BYTES = 4 << 30  # of the source: as much is read as written
_SIDES = (8192, 4096)


def run(session):
    for name in session.cases(["copy"]):
        _copy(session, name)
    for side in (256,) if session.dry else _SIDES:
        for _ in session.cases([f"product {side}"]):
            _products(session, side)


def _copy(session, name):
    size = 1 << 24 if session.dry else _BYTES
    source = torch.empty(size // 4, device=session.device).normal_()
    target = torch.empty_like(source)
    timed = common.interleaved(session, {name: lambda _: target.copy_(source)}, rounds=21)
    for found in timed.values():
        rate = 2 * size / found["ms"] / 1e6
        session.write("row", candidate="copy", gigabytes_per_second=round(rate, 1), **found)
        session.show("copy", f"{found['ms']:9.3f} ms {rate:9.1f} GB/s")


def _products(session, side):
    wide = [torch.randn(side, side, device=session.device) for _ in range(2)]
    half = [each.bfloat16() for each in wide]
    runs = {
        "bfloat16": lambda i: half[i % 2].mT @ half[i % 2],
        "bfloat16, float32 output": lambda i: torch.mm(
            half[i % 2].mT, half[i % 2], out_dtype=torch.float32
        ),
        "tf32": common.at("high", lambda i: wide[i % 2].mT @ wide[i % 2]),
        "float32": lambda i: wide[i % 2].mT @ wide[i % 2],
    }
    for name, found in common.interleaved(session, runs, rounds=15, budget=4).items():
        rate = 2e-9 * side**3 / found["ms"]
        session.write("row", candidate=name, tflops=round(rate, 2), **found)
        session.show(name, f"{found['ms']:9.3f} ms {rate:9.1f} TFLOP/s")


if __name__ == "__main__":
    sys.exit(common.main(__doc__, run, seconds=12))
