"""The Triton kernel of ``syrk_accumulate`` over steps, warps, stages and groups of tile rows.

python benchmarks/gpu_measure/triton_grid.py --json FILE

The tile is that of the packed output, 128 x 128. Variants are compiled by several processes first,
into Triton's cache on disk. Those that are far from the best after two calls are timed no further.
"""

import ast
import itertools
import os
import subprocess
import sys
from functools import partial

if "--dry" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are imported

import common
import torch

from curvedit.bench import packed_elements, syrk_error
from curvedit.kernels import syrk_accumulate_triton as kernel
from curvedit.ops import tiles

_SHARED = 227 << 10  # bytes that a block may have on Hopper
_PROCESSES = 14
_NEAR = 1.35  # times the best: variants within it are timed in full
_DEFAULT_GROUP = kernel._GROUP


def variants():
    """(step, warps, stages, group): first all with the present groups, then other groups."""
    grid = itertools.product((32, 64, 128), (8, 4), (2, 3, 4, 5, 6))
    return [
        (step, warps, stages, _DEFAULT_GROUP)
        for step, warps, stages in grid
        if 2 * 2 * 128 * step * stages <= _SHARED and (warps == 8 or step == 64)
    ]


def run(session):
    cases = {"d=264 tokens=300": (264, 300)} if session.dry else _shapes()
    todo = [(16, 8, 2, 8), (32, 8, 2, 8)] if session.dry else variants()
    if not session.dry:
        _compile(session, todo)
    for name in session.cases(cases, 3):
        d, tokens = cases[name]
        inputs = _inputs(session, d, tokens)
        found = _measure(session, inputs, todo)
        if found:
            step, warps, stages, _ = min(found, key=lambda each: found[each]["ms"])
            _measure(session, inputs, [(step, warps, stages, group) for group in (4, 16, 32)])


def _shapes():
    return {common.syrk_case(d, 16384): (d, 16384) for d in (4096, 11008)}


def _inputs(session, d, tokens):
    count = session.sets(2 * tokens * d)
    xs = [torch.randn(tokens, d, device=session.device).bfloat16() for _ in range(count)]
    if session.dry:
        xs = [x.half() for x in xs]  # the interpreter gets bfloat16 wrong
    return xs, [tiles.zeros(d, device=session.device) for _ in xs]


def _call(xs, outs, variant, i):
    kernel._GROUP = variant[3]
    kernel.config = lambda _: variant[:3]
    kernel.syrk_accumulate(outs[i % len(xs)], xs[i % len(xs)])


def _error(xs, outs, variant):
    outs[0].zero_()
    _call(xs, outs, variant, 0)
    return syrk_error(partial(packed_elements, outs[0]), xs[0])


def _measure(session, inputs, todo):
    """Variant to its time; the slow ones get three turns."""
    errors, runs = {}, {}
    for variant in todo:
        name = _name(variant)
        error = session.attempt(name, partial(_error, *inputs, variant))
        if error is not None:
            errors[variant], runs[name] = error, partial(_call, *inputs, variant)
    timed = common.interleaved(session, runs, rounds=3)
    best = min((found["ms"] for found in timed.values()), default=0.0)
    near = {name: runs[name] for name, found in timed.items() if found["ms"] <= _NEAR * best}
    timed |= common.interleaved(session, near, budget=4)
    found = {each: timed[_name(each)] for each in errors if _name(each) in timed}
    tokens, d = inputs[0][0].shape
    for variant, row in sorted(found.items(), key=lambda item: item[1]["ms"]):
        rate = 1e-9 * tokens * d * (d + 1.0) / row["ms"]
        fields = dict(zip(("step", "warps", "stages", "group"), variant, strict=True))
        fields |= {"tflops": round(rate, 2), "error": float(f"{errors[variant]:.3g}")}
        fields |= {} if session.dry else _resources(variant, inputs[0][0])
        session.write("row", candidate=_name(variant), **fields, **row)
        session.show(_name(variant), f"{row['ms']:9.3f} ms {rate:8.1f} TFLOP/s")
    return found


def _name(variant):
    return "step {} warps {} stages {} group {}".format(*variant)


def _warmed(variant, tokens, d):
    """The variant compiled, or taken from the cache, for aligned bfloat16 without weights."""
    step, warps, stages, group = variant
    flags = {"WEIGHTED": False, "GROUPED": False, "SPLIT": False, "UPCAST": False}
    sizes = {"TILE": 128, "GROUP": group, "STEP": step, "FLUSH": kernel.FLUSH}
    pointers = (torch.float32, torch.bfloat16, torch.bfloat16, torch.bfloat16)
    return kernel.syrk_accumulate_kernel.warmup(
        *pointers,
        tokens,
        0,
        d,
        d,
        1,
        **flags,
        **sizes,
        num_warps=warps,
        num_stages=stages,
        grid=(1,),
    )


def _resources(variant, x):
    """Registers, spills and shared memory, where Triton says."""
    try:
        compiled = _warmed(variant, *x.shape)
        compiled._init_handles()
        shared = compiled.metadata.shared
        return {"registers": compiled.n_regs, "spills": compiled.n_spills, "shared": shared}
    except Exception as error:  # noqa: BLE001 - facts beside the point
        return {"resources": f"{type(error).__name__}: {error}"[:120]}


def _compile(session, todo):
    """Compile in several processes; one that fails leaves its variants to the first call."""
    session.note("compile")
    todo = todo + [(64, 8, stages, group) for stages in (3, 4) for group in (4, 16, 32)]
    count = min(_PROCESSES, os.cpu_count() or 1, len(todo))
    workers = [
        subprocess.Popen(
            [sys.executable, __file__, "--compile", repr(todo[first::count])],
            stdout=subprocess.DEVNULL,
        )
        for first in range(count)
    ]
    for worker in workers:
        try:
            worker.wait(max(1.0, min(25.0, session.left() - 8)))
        except subprocess.TimeoutExpired:
            worker.kill()
    session.case = ""
    session.write("compiled", variants=len(todo), left=round(session.left(), 1))


def _compile_some(some):
    for variant in some:
        try:
            _warmed(variant, 16384, 4096)
        except Exception as error:  # noqa: BLE001 - the others may compile
            print(f"{_name(variant)}: {type(error).__name__}: {error}"[:200], file=sys.stderr)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--compile"]:
        sys.exit(_compile_some(ast.literal_eval(sys.argv[2])))
    sys.exit(common.main(__doc__, run, seconds=35))
