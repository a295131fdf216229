"""Hardware counters of Hopper's syrk_accumulate, read by Nsight Compute.

ncu --clock-control none --section SpeedOfLight --section Occupancy --section WarpStateStats \
    --section MemoryWorkloadAnalysis --section ComputeWorkloadAnalysis -k regex:syrk \
    python benchmarks/gpu_counters.py >REPORT
python benchmarks/gpu_counters.py --parse REPORT --json FILE
"""

import argparse
import json
import re
from pathlib import Path

TOKENS, SIZES, CALLS = 16384, (8192, 2048), 2
_COUNTERS = {
    "duration": "Duration",
    "clock_ghz": "SM Frequency",
    "tensor_cores_percent": "Compute (SM) Throughput",
    "l2_percent": "L2 Cache Throughput",
    "l2_hits_percent": "L2 Hit Rate",
    "shared_memory_percent": "L1/TEX Cache Throughput",
    "memory_percent": "DRAM Throughput",
    "issue_slots_percent": "Issue Slots Busy",
    "warps_per_processor": "Achieved Active Warps Per SM",
}
_KERNEL = re.compile(r"\n  (?=\S.*Context \d+, Stream)")


def run():
    import torch

    from curvedit import ops
    from curvedit.ops import tiles

    for d in SIZES:
        out = tiles.zeros(d, device="cuda")
        x = torch.randn(TOKENS, d, device="cuda").bfloat16()
        for _ in range(CALLS):
            ops.call("syrk_accumulate", out, x)
    torch.cuda.synchronize()


def records(report):
    """One per launch, in order."""
    for part in _KERNEL.split(report)[1:]:
        name = re.sub(r"^void |[<(].*$", "", part.splitlines()[0])
        record = {"kernel": name}
        for key, label in _COUNTERS.items():
            found = re.search(rf"^\s+{re.escape(label)}\s+(\S+)\s+([\d.,]+)\s*$", part, re.M)
            if found and key == "duration":
                scale = {"ns": 1e-6, "us": 1e-3, "ms": 1.0, "s": 1e3}[found[1]]
                record["ms"] = round(float(found[2].replace(",", "")) * scale, 5)
            elif found:
                record[key] = float(found[2].replace(",", ""))
        stall = re.search(r"spends ([\d.]+) cycles being stalled waiting for ([\w ]+?)\s+at", part)
        yield record | ({"stall_cycles": float(stall[1]), "stalled_for": stall[2]} if stall else {})


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parse", type=Path, metavar="REPORT")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    if options.parse is None:
        return run()
    found = list(records(options.parse.read_text()))
    document = {"tokens": TOKENS, "sizes": SIZES, "dtype": "bfloat16", "launches": found}
    options.json.write_text(json.dumps(document, indent=1) + "\n")
    return None


if __name__ == "__main__":
    main()
