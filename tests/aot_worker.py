"""Compile every variant of the Triton kernels for one architecture; print their resources as JSON.

Run it in a separate process, without TRITON_INTERPRET: ``python aot_worker.py 90``.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from curvedit.kernels import second_moment_accumulate_triton as moments
from curvedit.kernels import staircase_project_triton as projection
from curvedit.kernels import syrk_accumulate_triton as syrk

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
ALIGNED = [["tt.divisibility", 16]]


UNIT = {  # products of staircase_project, and which stride of each operand is 1
    "into lines": ("out_column", "left_row", "right_column"),
    "into lines turned": ("out_column", "left_row", "right_depth"),
    "into the eigenbasis": ("out_column", "left_depth", "right_column"),
    "masked": ("out_column", "left_depth", "right_column"),
    "out of it": ("out_column", "left_depth", "right_depth"),
    "back": ("out_column", "left_depth", "right_column"),
    "back turned": ("out_row", "left_depth", "right_column"),
}


def variants(architecture):
    """Name, kernel, argument types, constants, unaligned arguments and options of every variant.

    Real models have aligned sizes. Odd sizes load single elements and need more registers.
    """
    for dtype in ("bf16", "fp16", "fp32"):
        step, warps, stages = syrk.CONFIGS[architecture]["float32" if dtype == "fp32" else "half"]
        for what in (
            "",
            "split",
            "weighted",
            "weighted grouped",
            "weighted grouped odd",
            "weighted grouped split odd",
        ):
            weighted, grouped, odd = "weighted" in what, "grouped" in what, "odd" in what
            types = {
                "out": "*fp32",
                "x": f"*{dtype}",
                "weight": "*fp32" if weighted else f"*{dtype}",
            }
            types |= {"offsets": "*i64" if grouped else f"*{dtype}", "tokens": "i32", "past": "i32"}
            types |= {"dim": "i32", "token_stride": "i64"}
            constants = {
                "dim_stride": 1,
                "WEIGHTED": weighted,
                "GROUPED": grouped,
                "SPLIT": "split" in what,
            }
            constants |= {"UPCAST": False}
            constants |= {
                "TILE": syrk.TILE,
                "GROUP": syrk._GROUP,
                "STEP": step,
                "FLUSH": syrk.FLUSH,
            }
            name = f"syrk_accumulate {dtype} {what}".strip()
            options = {"num_warps": warps, "num_stages": stages}
            unaligned = ("tokens", "past", "dim", "token_stride") if odd else ("tokens", "past")
            yield name, syrk.syrk_accumulate_kernel, types, constants, unaligned, options
    types = {"out": "*fp32", "parts": "*fp32", "size": "i64", "shares": "i32"}
    yield (
        "syrk_accumulate parts",
        syrk.add_parts_kernel,
        types,
        {"BLOCK": syrk._BLOCK},
        ("shares",),
        {},
    )
    for dtype in ("bf16", "fp16", "fp32"):
        for odd in (False, True):
            types = {
                "out": "*fp32",
                "g": f"*{dtype}",
                "a": f"*{dtype}",
                "offsets": "*i64",
                "sequences": "i32",
            }
            types |= {
                "rows": "i32",
                "columns": "i32",
                "g_token_stride": "i64",
                "a_token_stride": "i64",
            }
            constants = {"g_stride": 1, "a_stride": 1, "UPCAST": False, "ROWS": moments.ROWS}
            constants |= {"COLUMNS": moments.COLUMNS, "STEP": moments.STEP}
            options = {"num_warps": moments.WARPS, "num_stages": moments.STAGES}
            unaligned = tuple(types)[4:] if odd else ("sequences",)
            name = f"second_moment_accumulate {dtype}{' odd' if odd else ''}"
            yield name, moments.second_moment_kernel, types, constants, unaligned, options
    for step in UNIT:
        for dtype in ("fp32", "bf16") if step.startswith("into lines") else ("fp32",):
            for odd in (False, True):
                name = f"staircase_project {dtype} {step}{' odd' if odd else ''}"
                yield name, projection.product_kernel, *_product(step, dtype, odd)


def _product(step, dtype, odd):
    """Types, constants, unaligned arguments and options of one product of ``staircase_project``."""
    unit = UNIT[step]
    types = {
        "out": "*fp32",
        "left": "*fp32",
        "right": f"*{dtype}",
        "table": "*i64",
        "spans": "*i32",
    }
    types |= {"bits": "*u8" if step == "masked" else "*i32"}
    sizes = ["rows", "columns", "depth", "lines"]
    strides = [f"{of}_stride" for of in ("out_batch", "left_batch", "right_batch")]
    others = ("out_row", "out_column", "left_row", "left_depth", "right_depth", "right_column")
    strides += [f"{of}_stride" for of in others if of not in unit]
    types |= dict.fromkeys(sizes, "i32") | dict.fromkeys(strides, "i64")
    constants = {f"{of}_stride": 1 for of in unit} | {
        "LINES": "depth" if step.startswith("back") else "rows"
    }
    constants |= {
        "SPANS": {"into the eigenbasis": "columns", "out of it": "depth"}.get(step, "nothing")
    }
    constants |= {"MASKED": step == "masked", "ADD": step.startswith("back"), "REVERSED": False}
    constants |= {"ROWS": projection.ROWS, "COLUMNS": projection.COLUMNS, "DEPTH": projection.DEPTH}
    unaligned = (*sizes, *strides) if odd else ("rows", "lines")
    return (
        types,
        constants,
        unaligned,
        {"num_warps": projection.WARPS, "num_stages": projection.STAGES},
    )


def compile_one(architecture, kernel, types, constants, unaligned, options):
    names = kernel.arg_names
    signature = {name: types.get(name, "constexpr") for name in names}
    aligned = {
        (i,): ALIGNED for i, name in enumerate(names) if name in types and name not in unaligned
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)


def resources(compiled):
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = subprocess.run(
            [TOOLS / "cuobjdump", "--dump-resource-usage", file.name],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        sass = subprocess.run(
            [TOOLS / "nvdisasm", "-c", file.name], capture_output=True, text=True, check=True
        ).stdout
    found = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    return {
        "registers": found["REG"],
        "stack": found["STACK"],
        "shared": compiled.metadata.shared,
        "spills": len(re.findall(r"\b(?:LDL|STL)\b", sass)),
        "tensor_core": len(re.findall(r"\bHG?MMA\b", sass)),
    }


if __name__ == "__main__":
    target = int(sys.argv[1])
    print(json.dumps({n: resources(compile_one(target, *v)) for n, *v in variants(target)}))
