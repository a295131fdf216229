"""The README's tables of GPU measurements, from the committed JSON lines."""

import json
from pathlib import Path

from markdown_table import table

RESULTS = Path(__file__).parent / "results/h200"
WIDTHS, TOKENS = (1024, 2048, 4096, 5120, 8192, 11008, 14336), (16384, 4096)
CANDIDATES = {
    "Hopper's kernel (the default there)": "curvedit wgmma",
    "Triton": "curvedit triton",
    "`mma.sync`": "curvedit cuda",
    "torch's products in bands (the default elsewhere)": "curvedit torch",
    "torch `addmm` of the same in TF32": "torch addmm of TF32",
    "torch `addmm` of the same in float32": "torch addmm of float32",
}


def rows(program):
    """The measured rows of a program: by case and candidate."""
    lines = (RESULTS / f"{program}.json").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    return {(row["case"], row["candidate"]): row for row in found if row["kind"] == "row"}


def syrk():
    by = rows("syrk")

    def cells(candidate, of):
        found = [
            [by.get((f"d={d} tokens={tokens} bfloat16", candidate)) for tokens in TOKENS]
            for d in WIDTHS
        ]
        return [" / ".join(of(row) if row else "" for row in pair) for pair in found]

    head = ["`syrk_accumulate`, bfloat16, 16384 / 4096 tokens", *(f"d = {d}" for d in WIDTHS)]
    body = [
        ["TFLOP/s", *cells("curvedit wgmma", lambda row: f"{row['tflops']:.0f}")],
        ["share of the limit", *cells("curvedit wgmma", lambda row: f"{row['of_limit']:.2f}")],
        *(
            [name, *cells(candidate, lambda row: f"{row['speedup']:.2f} ×")]
            for name, candidate in CANDIDATES.items()
        ),
    ]
    return table(head, body)


def variants():
    by = rows("syrk")
    head = ["`syrk_accumulate`, 16384 tokens", "d", "ms", "torch's default", "float32 `addmm`"]
    body = []
    for d, kind, name in (
        (4096, "bfloat16 weighted", "weighted bfloat16"),
        (14336, "bfloat16 weighted", "weighted bfloat16"),
        (4096, "bfloat16 pair", "pair: plain and weighted"),
        (14336, "bfloat16 pair", "pair: plain and weighted"),
        (4096, "float32", "float32, as the sum of two bfloat16"),
    ):
        own, torch, full = (
            by[f"d={d} tokens=16384 {kind}", each]["ms"]
            for each in ("curvedit wgmma", "curvedit torch", "torch addmm of float32")
        )
        body.append([name, d, f"{own:.2f}", f"{torch / own:.1f} ×", f"{full / own:.1f} ×"])
    return table(head, body)


def staircase():
    by = rows("staircase")
    head = ["`staircase_project`, 11008 × 4096, float32", "ms", "of dense", "of dense in TF32"]
    body = []
    for exponent, share in (("1", 0.6), ("1", 0.8), ("1", 0.95), ("0.8", 0.6), ("0.8", 0.8)):
        row = by[f"project 11008x4096 i^-{exponent} keeps {share}", "curvedit torch"]
        name = f"spectra i^-{exponent}, ρ = {share}"
        ratios = (f"{row[each]:.2f}" for each in ("of_dense", "of_dense_tf32"))
        body.append([name, f"{row['ms']:.1f}", *ratios])
    return table(head, body)


def fit():
    by = rows("fit_7b")
    head = ["`fit` of a 7B model's MLPs", "tokens/s", "20 M tokens, all layers", "peak"]
    names = {
        "own, 32 layers": "own, all 32 layers in one pass",
        "own, 32 layers, graphs 45 GiB": "with `graph_bytes` of 45 GiB",
        "own, 32 layers, 24 GiB": "with 24 GiB, sums on the host (`sums_on`)",
        "own, 32 layers, weighted": "with weighted sums",
        "released procedure, 4 layers": "released procedure, 8 passes of 4 layers",
    }
    body = []
    for case, name in names.items():
        row = by[case, case]
        minutes, peak = row["minutes_of_20_million"], row["peak_bytes"] / 2**30
        rate = row["tokens_per_second"]
        body.append([name, f"{rate:.0f}", f"{minutes:.0f} min", f"{peak:.0f} GiB"])
    return table(head, body)


def text():
    """All tables."""
    return "\n\n".join(each() for each in (syrk, variants, staircase, fit))
