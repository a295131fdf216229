"""What was predicted, before any GPU was measured, of each case of syrk.py and staircase.py.

python benchmarks/gpu_measure/predictions.py --json FILE

Products are counted at the rate of a large product; traffic at the rate of a copy. Each candidate
has a range of milliseconds, [fastest, slowest]; both ends agree where one number was predicted.
"""

import argparse
import json
import math
from pathlib import Path

import common
import torch

from curvedit import ops

# Processors, rates in TFLOP/s and TB/s.
DEVICES = {
    "H100": {"processors": 132, "half": 798.0, "tf32": 400.0, "float32": 52.0, "copy": 3.0},
    "H200": {"processors": 132, "half": 790.0, "tf32": 400.0, "float32": 52.0, "copy": 4.3},
}
_TILE, _BAND = 128, 1024
# Share of the full product's rate that a kernel's inner loop was predicted to reach.
_SHARES = {"wgmma": (0.62, 0.70), "cuda": (0.42, 0.50), "triton": (0.5, 0.6)}
_LEAST_TOKENS = 2048  # of a share, where few tiles share their tokens


def syrk(device, d, tokens):
    """Candidate to milliseconds, and the limits, for bfloat16 without weights."""
    rates = DEVICES[device]
    side = -(-d // _TILE)
    tiles = side * (side + 1) // 2
    full = 2e-9 * tokens * d * d / rates["half"]
    exact = 2e-9 * tiles * _TILE**2 * tokens / rates["half"]
    traffic = 4e-9 * d * d / rates["copy"]  # half of the square is read and written
    bands = sum(min(_BAND, d - at) * min(at + _BAND, d) for at in range(0, d, _BAND))
    found = {
        "limit": (max(exact, traffic),) * 2,
        "torch addmm": (full + 4e-9 * d * d / rates["copy"],) * 2,
        "torch addmm, float32 output": (full + 8e-9 * d * d / rates["copy"],) * 2,
        "torch addmm of float32": (2e-9 * tokens * d * d / rates["float32"],) * 2,
        "torch addmm of TF32": (2e-9 * tokens * d * d / rates["tf32"],) * 2,
        # A band is written, read and added to what is read and written.
        "curvedit torch": (2e-9 * tokens * bands / rates["half"] + 16e-9 * bands / rates["copy"],)
        * 2,
    }
    shares = max(1, min(-(-2 * rates["processors"] // tiles), tokens // _LEAST_TOKENS, 16))
    waves = tiles * shares / rates["processors"]
    busy = waves / math.ceil(waves)
    for name, (low, high) in _SHARES.items():
        spread = (exact / high / busy + traffic, exact / low / busy + traffic)
        found[f"curvedit {name}"] = spread
    return found, {"tiles": tiles, "shares": shares, "waves": round(waves, 2)}


def staircase(device, m, n, exponent, share):
    """Candidate to milliseconds of a projection."""
    rates = DEVICES[device]
    lam, mu = (torch.arange(1, size + 1).double() ** -exponent for size in (m, n))
    todo = ops.plan(ops.call("staircase_limits", lam, mu, share)[0].numpy(), n)
    seconds = {
        "dense float32": todo.dense / rates["float32"],
        "dense TF32": todo.dense / rates["tf32"],
        "curvedit torch": todo.operations / rates["float32"],
        "curvedit torch in TF32": todo.operations / rates["tf32"],
        "curvedit triton": 3 * todo.operations / rates["tf32"],
    }
    share_of_dense = {"operations_of_dense": round(todo.operations / todo.dense, 4)}
    return {name: (1e-9 * each,) * 2 for name, each in seconds.items()}, share_of_dense


def predictions():
    """Every record: device, case, the candidates' ranges."""
    for device in DEVICES:
        for tokens in common.SYRK_TOKENS:
            for d in common.SYRK_SIZES:
                yield device, common.syrk_case(d, tokens), *syrk(device, d, tokens)
        for m, n in common.STAIRCASE_SHAPES:
            for exponent in common.EXPONENTS:
                for share in common.SHARES:
                    name = common.staircase_case(m, n, exponent, share)
                    yield device, name, *staircase(device, m, n, exponent, share)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True)
    options, _ = parser.parse_known_args()  # the measurements' own options mean nothing here
    with options.json.open("a") as file:
        for device, case, candidates, facts in predictions():
            ranges = {
                name: [round(each, 4) for each in spread] for name, spread in candidates.items()
            }
            head = {"program": "predictions", "kind": "predicted", "device": device, "case": case}
            file.write(json.dumps(head | {"ms": ranges} | facts) + "\n")


if __name__ == "__main__":
    main()
