"""Measured beside predicted, as Markdown, from the lines that the measurements have written.

python benchmarks/gpu_measure/report.py FILES...
"""

import argparse
import json
from pathlib import Path

_COLUMNS = {  # of a program's table: the field, its heading and how it is written
    "ceilings": (
        ("tflops", "TFLOP/s", ".1f"),
        ("gigabytes_per_second", "GB/s", ".0f"),
        ("ms", "ms", ".3f"),
    ),
    "syrk": (
        ("tflops", "TFLOP/s", ".1f"),
        ("speedup", "x addmm", ".2f"),
        ("of_limit", "of the limit", ".2f"),
        ("host_us", "host, us", ".0f"),
        ("error", "error", ".1e"),
    ),
    "triton_grid": (
        ("tflops", "TFLOP/s", ".1f"),
        ("registers", "registers", "d"),
        ("spills", "spills", "d"),
        ("shared", "shared", "d"),
        ("ms", "ms", ".3f"),
    ),
    "staircase": (
        ("of_dense", "of dense", ".3f"),
        ("of_dense_tf32", "of dense TF32", ".3f"),
        ("operations_of_dense", "operations", ".3f"),
        ("tflops", "TFLOP/s", ".1f"),
        ("error", "error", ".1e"),
        ("rms", "rms error", ".1e"),
    ),
    "eigen": (
        ("seconds", "seconds", ".3f"),
        ("residual", "residual", ".1e"),
        ("orthogonality", "orthogonality", ".1e"),
        ("peak_bytes", "peak, bytes", ".3g"),
    ),
    "fit_7b": (
        ("tokens_per_second", "tokens/s", ".0f"),
        ("minutes_of_20_million", "min of 20 M", ".1f"),
        ("samples", "samples", "d"),
        ("batches", "batches", "d"),
        ("peak_bytes", "peak, bytes", ".4g"),
    ),
}
_PREDICTED = ("syrk", "staircase")


def read(paths):
    """Every record; a last line that was cut off is left out."""
    for path in paths:
        for line in path.read_text().splitlines():
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                continue


def predicted_of(records, device):
    """(case, candidate) to its predicted range of milliseconds on this device."""
    return {
        (record["case"], candidate): spread
        for record in records
        if record["kind"] == "predicted" and record["device"] == device
        for candidate, spread in record["ms"].items()
    }


def table(program, rows, predicted):
    columns = _COLUMNS[program]
    shown = [each for each in columns if any(row.get(each[0]) is not None for row in rows)]
    heads = ["case", "candidate"]
    heads += ["ms", "predicted", "measured / predicted"] if program in _PREDICTED else []
    heads += [heading for _, heading, _ in shown]
    yield "| " + " | ".join(heads) + " |"
    yield "|" + " --- |" * 2 + " ---: |" * (len(heads) - 2)
    previous = ""
    for row in rows:
        cells = ["" if row["case"] == previous else row["case"], row["candidate"]]
        if program in _PREDICTED:
            cells += _beside(row, predicted.get((row["case"], row["candidate"])))
        for field, _, form in shown:
            value = row.get(field)
            cells.append("" if value is None else format(value, form))
        previous = row["case"]
        yield "| " + " | ".join(cells) + " |"


def _beside(row, spread):
    """Milliseconds, what was predicted, and the ratio to the nearer end of the range."""
    if spread is None:
        return [f"{row['ms']:.3f}", "", ""]
    low, high = spread
    nearer = min(max(row["ms"], low), high)
    text = f"{low:.3f}" if low == high else f"{low:.3f}-{high:.3f}"
    return [f"{row['ms']:.3f}", text, f"{row['ms'] / max(nearer, 1e-9):.2f}"]


def profiles(records):
    """The phases of each fit, and its longest kernels."""
    for record in records:
        if record["kind"] == "row" and any(record.get("phases_seconds", {}).values()):
            phases = ", ".join(f"{k} {v:.2f} s" for k, v in record["phases_seconds"].items())
            yield f"* {record['case']}, {record['seconds']:.2f} s: {phases}"
        if record["kind"] == "profile":
            for each in record["top"]:
                yield f"  * {each['ms']:.2f} ms, {each['calls']} x `{each['kernel']}`"


def misses(records):
    """What failed, was refused, skipped or cut off."""
    seen = dict.fromkeys(
        f"* {record['program']}: {record.get('case', '')}, {record.get('candidate', '')}: "
        f"{record['kind']}: {record.get('why') or record.get('fault')}"
        for record in records
        if record["kind"] in ("failed", "fault", "skipped", "out of memory", "refused")
    )
    return list(seen)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path)
    for ignored in ("--json", "--seconds"):  # so that it can be called as the measurements are
        parser.add_argument(ignored, help=argparse.SUPPRESS)
    options, _ = parser.parse_known_args()
    records = list(read(options.files))
    facts = next((each for each in records if each["kind"] == "device" and "memory" in each), {})
    device = "H200" if "H200" in facts.get("name", "") else "H100"
    predicted = predicted_of(records, device)
    if facts:
        shown = {key: value for key, value in facts.items() if key not in ("program", "kind")}
        print(f"{json.dumps(shown)}\n\nPredictions are those for an {device}.")
    for program in _COLUMNS:
        own = [each for each in records if each["program"] == program]
        rows = [each for each in own if each["kind"] == "row" and "candidate" in each]
        if rows:
            print(f"\n## {program}\n")
            print("\n".join(table(program, rows, predicted)))
            print("\n".join(["", *profiles(own)]) if program == "fit_7b" else "")
    if records:
        print("\n## Not measured\n")
        print("\n".join(misses(records)))


if __name__ == "__main__":
    main()
