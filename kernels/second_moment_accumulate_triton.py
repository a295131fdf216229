"""Triton kernel of ``second_moment_accumulate``: one program per tile of the output.

A sequence's gradient is summed in registers and squared when the sequence ends; it is never stored.
float32 inputs are multiplied as 3xTF32, which is as accurate as float32.
"""

import os

import torch
import triton
import triton.language as tl
from torch import Tensor

from curvedit.kernels.contract import in_memory, in_order
from curvedit.kernels.second_moment_accumulate_torch import accumulate_tokens

ROWS, COLUMNS, STEP = 64, 128, 16  # of a tile; tokens per step
WARPS, STAGES = 8, 2


@triton.jit
def second_moment_kernel(
    out,  # (rows, columns) float32
    g,  # (tokens, rows)
    a,  # (tokens, columns)
    offsets,  # (sequences + 1,) int64
    sequences,
    rows,
    columns,
    g_token_stride,
    g_stride,
    a_token_stride,
    a_stride,
    UPCAST: tl.constexpr,  # to float32 before multiplying: the interpreter gets bfloat16 wrong
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEP: tl.constexpr,
):
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    start = tl.load(offsets)
    for sequence in range(sequences):
        stop = tl.load(offsets + sequence + 1)
        gradient = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
        for first in range(start, stop, STEP):
            token = first + tl.arange(0, STEP)
            inside = (token < stop)[:, None]
            left = tl.load(
                g + token[:, None] * g_token_stride + row[None, :].to(tl.int64) * g_stride,
                inside & (row < rows)[None, :],
                other=0.0,
            )
            right = tl.load(
                a + token[:, None] * a_token_stride + column[None, :].to(tl.int64) * a_stride,
                inside & (column < columns)[None, :],
                other=0.0,
            )
            if UPCAST:
                left = left.to(tl.float32)
                right = right.to(tl.float32)
            gradient = tl.dot(tl.trans(left), right, gradient, input_precision="tf32x3")
        total += gradient * gradient
        start = stop
    place = out + row[:, None].to(tl.int64) * columns + column[None, :]
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    tl.store(place, tl.load(place, inside, other=0.0) + total, inside)


def second_moment_accumulate(
    out: Tensor,  # (d_out, d_in) float32, contiguous
    g: Tensor,  # (tokens, d_out) float32, bfloat16 or float16, any strides
    a: Tensor,  # (tokens, d_in), as g
    offsets: Tensor | None = None,  # (sequences + 1,) int64
) -> None:
    """Add ``sum_b (sum_(t in b) g_t a_t^T)^2``, squared elementwise, to ``out``, in place.

    Without offsets every token is a sequence.
    """
    if offsets is None:
        accumulate_tokens(out, g, a)
        return
    if not out.numel():
        return
    rows, columns = out.shape
    g, a = in_memory(g), in_memory(a)
    second_moment_kernel[(triton.cdiv(columns, COLUMNS), triton.cdiv(rows, ROWS))](
        out,
        g,
        a,
        in_order(offsets),
        len(offsets) - 1,
        rows,
        columns,
        *g.stride(),
        *a.stride(),
        UPCAST=os.environ.get("TRITON_INTERPRET") == "1" and g.dtype != torch.float32,
        ROWS=ROWS,
        COLUMNS=COLUMNS,
        STEP=STEP,
        num_warps=WARPS,
        num_stages=STAGES,
    )
