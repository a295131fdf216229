"""Writes the README's result tables from the committed JSON.

``python benchmarks/tables.py`` rewrites the tables in place. With ``--check`` it writes nothing and
fails if they are not what it would write.
"""

import json
import re
import sys
from pathlib import Path

import gpu_tables
import study_table
from markdown_table import table

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
RESULTS = HERE / "results/xeon-avx512-2-cores"
AMD = HERE / "results/amd-avx512-2-cores"
RIVALS = HERE / "results/xeon-amx-2-cores/fit-rivals.json"
DEMO = AMD / "demo.json"


def runs(file, place=RESULTS):
    """What a file recorded, by benchmark: the stem of its module, or ``sweep``; and the file."""
    content = json.loads((place / file).read_text())
    found = {}
    for run in content["benchmarks"]:
        path, function = run["fullname"].split("::")
        is_sweep = function.startswith("bench_sweep")
        name = "sweep" if is_sweep else Path(path).stem.removeprefix("bench_")
        found.setdefault(name, []).append(run["extra_info"])
    return found, content


def syrk(found, unit="on the matrix unit, AMX"):
    by = {(run["d"], run["threads"]): run for run in found}
    sizes = sorted({d for d, _ in by})

    def row(name, of):
        return [name, *(" / ".join(of(by[d, threads]) for threads in (1, 2)) for d in sizes)]

    return table(
        ["`syrk_accumulate`, 4096 tokens, 1 / 2 threads", *(f"d = {d}" for d in sizes)],
        [
            row("float32, GFLOP/s", lambda run: f"{run['own_gflops']:.0f}"),
            row("torch `addmm_` takes", lambda run: f"{run['over_own']['torch addmm_']:.2f} ×"),
            row("OpenBLAS `ssyrk` takes", lambda run: f"{run['over_own']['OpenBLAS ssyrk']:.2f} ×"),
            row(
                f"our own with bfloat16 input ({unit})",
                lambda run: f"{run['over_own']['own bfloat16']:.2f} ×",
            ),
            row(
                "torch `addmm_` in bfloat16, result rounded",
                lambda run: f"{run['over_own']['torch addmm_ bfloat16']:.2f} ×",
            ),
            row(
                "our own pair: plain and weighted sum",
                lambda run: f"{run['over_own']['own pair']:.2f} ×",
            ),
        ],
    )


def staircase(found):
    by = {(tuple(run["shape"]), run["keep_mass"]): run for run in found}
    shapes, shares = sorted({s for s, _ in by}), sorted({k for _, k in by})
    return table(
        [
            "`staircase_project` (arguments checked before), spectra 1/i: the dense rotation takes",
            *(f"ρ = {share}" for share in shares),
        ],
        [
            [f"{m} × {n}", *(f"{by[(m, n), share]['over_own']['dense']:.1f} ×" for share in shares)]
            for m, n in shapes
        ],
    )


def sweep(found):
    rows = []
    for run in found:
        m, n = run["shape"]
        rows.append(
            [
                f"{m} × {n}",
                *(f"{run['over_own'][name]:.1f} ×" for name in ("one after the other", "dense")),
            ]
        )
    return table(
        ["ten shares, 0.5 … 0.95, sharing the forward half", "one after the other", "dense"], rows
    )


def second_moment(found):
    rows = []
    for run in found:
        (m, n), rivals = (
            run["shape"],
            ("torch, one after the other", "torch, stored", "one product"),
        )
        share = run["extra_bytes"]["own"] / run["extra_bytes"]["torch, stored"]
        times = [f"{run['over_own'][name]:.2f} ×" for name in rivals]
        rows.append([f"{m} × {n}, {run['threads']} thread(s)", *times, f"{share:.1%}"])
    titles = [
        "one after the other",
        "stored",
        "one product of all tokens",
        "our extra memory, of stored",
    ]
    return table(["`second_moment_accumulate`, 64 sequences of 128 tokens", *titles], rows)


def eigen(found):
    names = [name for name in found[0]["over_own"] if name != "own"]
    rows = []
    for run in found:
        seconds = f"{run['median_ms']['own'] / 1e3:.2f} s"
        rows.append([str(run["n"]), seconds, *(f"{run['over_own'][name]:.2f} ×" for name in names)])
    return table(["eigendecomposition, certified: n", "own", *names], rows)


def whole_fit(found):
    names = list(found[0]["median_ms"])
    rows = []
    for name in names:
        times = " / ".join(f"{run['over_own'][name]:.2f} ×" for run in found)
        rows.append([name, times, f"{found[-1]['peak_mib_above_model'][name]} MiB"])
    seconds = " / ".join(f"{run['median_ms']['own'] / 1e3:.1f} s" for run in found)
    rows[0][1] = seconds
    return table(
        [
            "`fit`, 8 layers of width 512, 8 × 512 tokens a batch",
            "1 / 2 threads",
            "peak above the model",
        ],
        rows,
    )


def rivals():
    """Time per token of whole fits, as multiples of our own, and peaks."""
    record = json.loads(RIVALS.read_text())
    by = [run["rows"] for run in record["runs"]]
    own, *others = list(by[0])
    first = [f"`{own}`", " / ".join(f"{rows[own]['ms_per_token']:.2f} ms" for rows in by)]
    body = [[*first, ""]]
    for name in others:
        times = (f"{rows[name]['ms_per_token'] / rows[own]['ms_per_token']:.2f} ×" for rows in by)
        version = record["versions"].get(name)
        body.append([f"{name} {version}" if version else name, " / ".join(times), ""])
    for row, name in zip(body, (own, *others), strict=True):
        row[-1] = f"{record['peak_bytes_above_model'][name] >> 20} MiB"
    head = [
        "the same factors, per token",
        "1 / 2 threads",
        "peak above the model",
    ]
    return table(head, body)


def demo():
    report = json.loads(DEMO.read_text())
    sides = [("before", report["before"]), ("`weighted`", report["after"])]
    sides += [(control["name"], control) for control in report["controls"]]
    base = report["before"]["perplexity"]["value"]
    rows = []
    for name, side in sides:
        change = 100 * (side["perplexity"]["value"] / base - 1)
        rows.append(
            [
                name,
                f"{100 * side['strict']['value']:.1f} %",
                f"{100 * side['loose']['value']:.1f} %",
                f"{side['perplexity']['value']:.2f}",
                "" if name == "before" else f"{change:+.1f} %",
            ]
        )
    head = ["", "recited, strict", "loose", "held-out perplexity", "change"]
    if "matched_increase" in report["after"]:  # older records have none
        head.append("change where 5 % are recited")
        for row, (_, side) in zip(rows, sides, strict=True):
            row.append(interval(side.get("matched_increase")))
    return table(head, rows)


def interval(metric):
    """A change in per cent with its 95 % interval; empty for none."""
    if metric is None:
        return ""
    value, low, high = (100 * metric[key] for key in ("value", "low", "high"))
    return f"{value:+.1f} % ({low:+.1f} … {high:+.1f})"


def machine(content):
    """The machine of a run, and its day."""
    of, day = content["machine_info"], content["datetime"][:10]
    name = f"{of['cpu']['brand_raw']}, {of['instruction_set']}, {of['cores']} cores"
    return f"{name}, torch {of['torch']}, {day}"


def halves(found):
    """What bfloat16 input makes of the time of second moments."""
    shares = [run["over_own"]["own, bfloat16"] for run in found]
    took = f"{min(shares):.2f} to {max(shares):.2f} ×"
    return f"`second_moment_accumulate` of bfloat16 takes {took} its time of float32"


def filled(text):
    """The text with its tables written anew.

    Raises:
        ValueError: a table's markers are missing or there twice.
    """
    kernels, content = runs("kernels.json")
    fits, _ = runs("fit.json")
    decompositions, _ = runs("eigen.json")
    on_amd, amd = runs("kernels.json", AMD)
    speed = [
        f"{machine(content)}; medians, as multiples of our own time:",
        syrk(kernels["syrk_accumulate"]),
        staircase(kernels["staircase_project"]),
        sweep(kernels["sweep"]),
        second_moment(kernels["second_moment_accumulate"]),
        eigen(decompositions["eigen"]),
        whole_fit(fits["fit"]),
        f"{machine(amd)}; {halves(on_amd['second_moment_accumulate'])}:",
        syrk(on_amd["syrk_accumulate"], "AVX512-BF16"),
        "And on a Xeon with AMX, interleaved, by `benchmarks/fit_rivals.py`:",
        rivals(),
    ]
    blocks = {
        "bench": "\n\n".join(speed),
        "demo": demo(),
        "gpu": gpu_tables.text(),
        "study": study_table.text(),
    }
    for name, body in blocks.items():
        pattern = re.compile(
            rf"(<!-- {name} table -->\n).*?(<!-- end of {name} table -->)", re.DOTALL
        )
        text, count = pattern.subn(lambda found, body=body: f"{found[1]}{body}\n{found[2]}", text)
        if count != 1:
            raise ValueError(f"expected one {name} table between its markers, got {count}")
    return text


def main(arguments, readme=README):
    """The exit status; a message where the check fails."""
    before = readme.read_text()
    after = filled(before)
    if "--check" in arguments:
        if after == before:
            return 0
        return (
            f"{readme.name}: its tables differ from those of the results; run benchmarks/tables.py"
        )
    readme.write_text(after)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
