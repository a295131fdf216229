"""Triton kernel of ``staircase_project``: batched products whose extent follows the staircase.

One kernel computes every product, as 3xTF32, which is as accurate as float32. The lines of a
plan's part are processed in the order of their work. On the way into the eigenbasis only tiles
that some line spans are computed; on the way out only the spans are contracted. The mask is never
stored.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from curvedit.kernels.contract import in_memory
from curvedit.kernels.staircase_project_plan import Part, Plan, plan

ROWS, COLUMNS, DEPTH = 64, 128, 16  # of a tile; depth per step
WARPS, STAGES = 8, 2
CHUNK = 2048  # lines at a time: more would take more memory


@triton.jit
def product_kernel(
    out,  # (batch, rows, columns) float32, any strides
    left,  # (batch, rows, depth), any strides
    right,  # (batch, depth, columns), any strides
    table,  # (batch, 4) int64: lines of the problem, offsets of left and of out, sign
    spans,  # (batch, lines, 2) int32: each line's [begin, end)
    bits,  # (batch, rows, bytes) uint8 packed mask, or spans where unused
    rows,
    columns,
    depth,
    lines,
    out_batch_stride,
    out_row_stride,
    out_column_stride,
    left_batch_stride,
    left_row_stride,
    left_depth_stride,
    right_batch_stride,
    right_depth_stride,
    right_column_stride,
    LINES: tl.constexpr,  # the extent that the problem's lines limit: "rows" or "depth"
    SPANS: tl.constexpr,  # what the spans limit: "columns", "depth" or "nothing"
    MASKED: tl.constexpr,  # keep only what the bits select
    ADD: tl.constexpr,  # add the product, times the problem's sign, to the output
    REVERSED: tl.constexpr,  # the last lines are the longest
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    problem = tl.program_id(1).to(tl.int64)
    tile = tl.program_id(2)
    if REVERSED:
        tile = tl.num_programs(2) - 1 - tile
    row = tile * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    count = tl.load(table + 4 * problem).to(tl.int32)
    left += problem * left_batch_stride + tl.load(table + 4 * problem + 1)
    out += problem * out_batch_stride + tl.load(table + 4 * problem + 2)
    right += problem * right_batch_stride
    if LINES == "rows":
        rows = tl.minimum(rows, count)
    else:
        depth = tl.minimum(depth, count)
    low, high = 0, depth
    is_outside = tile * ROWS >= rows
    begin = tl.zeros((ROWS,), dtype=tl.int32)
    end = tl.zeros((ROWS,), dtype=tl.int32)
    if SPANS != "nothing":
        span = spans + (problem * lines + row) * 2
        begin = tl.load(span, row < rows, other=2147483647)
        end = tl.load(span + 1, row < rows, other=0)
        first, last = tl.min(begin, 0), tl.max(end, 0)
        if SPANS == "columns":
            left_of, right_of = (
                (tl.program_id(0) + 1) * COLUMNS <= first,
                tl.program_id(0) * COLUMNS >= last,
            )
            is_outside = is_outside | left_of | right_of
        else:
            low, high = tl.minimum(first, depth) // DEPTH * DEPTH, tl.minimum(last, depth)
    if is_outside:
        return
    total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for start in range(low, high, DEPTH):
        k = start + tl.arange(0, DEPTH)
        inside = (row < rows)[:, None] & (k < high)[None, :]
        if SPANS == "depth":
            inside = inside & (k[None, :] >= begin[:, None]) & (k[None, :] < end[:, None])
        a = tl.load(
            left
            + row[:, None].to(tl.int64) * left_row_stride
            + k[None, :].to(tl.int64) * left_depth_stride,
            inside,
            other=0.0,
        )
        b = tl.load(
            right
            + k[:, None].to(tl.int64) * right_depth_stride
            + column[None, :].to(tl.int64) * right_column_stride,
            (k < high)[:, None] & (column < columns)[None, :],
            other=0.0,
        )
        total = tl.dot(a.to(tl.float32), b.to(tl.float32), total, input_precision="tf32x3")
    place = (
        out
        + row[:, None].to(tl.int64) * out_row_stride
        + column[None, :].to(tl.int64) * out_column_stride
    )
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    if SPANS == "columns":  # left of ``first`` another part may have written
        inside = inside & (column >= first)[None, :]
        total = tl.where(
            (column[None, :] >= begin[:, None]) & (column[None, :] < end[:, None]), total, 0.0
        )
    if MASKED:
        size = (columns + 7) // 8
        byte = tl.load(
            bits + row[:, None].to(tl.int64) * size + column[None, :] // 8, inside, other=0
        ).to(tl.int32)
        total = tl.where(((byte >> (7 - column % 8)[None, :]) & 1) > 0, total, 0.0)
    if ADD:
        total = tl.load(place, inside, other=0.0) + total * tl.load(table + 4 * problem + 3).to(
            tl.float32
        )
    tl.store(place, total, inside)


def staircase_project(
    w: Tensor,  # (d_out, d_in) or (batch, d_out, d_in), any floating dtype
    u_out: Tensor,  # (…, d_out, d_out) float32
    u_in: Tensor,  # (…, d_in, d_in) float32
    limits: Tensor,  # (…, d_out) int, non-increasing
) -> Tensor:
    """``U_G ((U_G^T W U_A) * M) U_A^T`` in float32; ``M_ij = 1`` where ``j < limits[i]``."""
    shape = w.shape
    w, u_out, u_in, limits = _batched(w, u_out, u_in, limits)
    plans = _plans(w, limits)
    result = torch.zeros_like(w, dtype=torch.float32)
    for index, found in enumerate(plans):
        if found.is_complement:
            result[index].copy_(w[index])
    for chunk in _chunks(plans):
        source, u, v, out = chunk.turned(w, u_out, u_in, result)
        lines = _into_lines(chunk, u, source)
        kept = torch.empty(len(w), chunk.lines, v.shape[1], device=w.device)
        _multiply(kept, lines, v, chunk, lines_are="rows", spans="columns")
        _multiply(lines, kept, v.mT, chunk, lines_are="rows", spans="depth")
        _multiply(out, u, lines, chunk, lines_are="depth", left_at=u.stride(2), add=True)
    return result.view(shape)


def staircase_rotate(w: Tensor, u_out: Tensor, u_in: Tensor, limits: Tensor) -> Tensor:
    """The forward half, ``(U_G^T W U_A) * M``.

    Its result serves every staircase inside ``limits``. Shapes and errors are those of
    ``staircase_project``.
    """
    shape = w.shape
    w, u_out, u_in, limits = _batched(w, u_out, u_in, limits)
    components = torch.zeros_like(w, dtype=torch.float32)
    for chunk in _chunks(_plans(w, limits, complement=False)):
        source, u, v, out = chunk.turned(w, u_out, u_in, components)
        lines = _into_lines(chunk, u, source)
        _multiply(out, lines, v, chunk, lines_are="rows", spans="columns", out_at=out.stride(1))
    return components.view(shape)


def staircase_restore(components: Tensor, u_out: Tensor, u_in: Tensor, limits: Tensor) -> Tensor:
    """The back half, ``U_G (C * M) U_A^T``.

    ``components`` must hold everything inside ``limits``. Shapes and errors are those of
    ``staircase_project``.
    """
    shape = components.shape
    components, u_out, u_in, limits = _batched(components, u_out, u_in, limits)
    result = torch.zeros_like(components)
    for chunk in _chunks(_plans(components, limits, complement=False)):
        source, u, v, out = chunk.turned(components, u_out, u_in, result)
        lines = torch.empty(len(source), chunk.lines, v.shape[1], device=source.device)
        _multiply(
            lines, source, v.mT, chunk, lines_are="rows", spans="depth", left_at=source.stride(1)
        )
        _multiply(out, u, lines, chunk, lines_are="depth", left_at=u.stride(2), add=True)
    return result.view(shape)


def masked_project(
    w: Tensor,  # (d_out, d_in), any floating dtype
    u_out: Tensor,  # (d_out, d_out) float32
    u_in: Tensor,  # (d_in, d_in) float32
    mask: Tensor,  # (d_out, ceil(d_in / 8)) uint8, as numpy.packbits packs rows
) -> Tensor:
    """``U_G ((U_G^T W U_A) * M) U_A^T``: (d_out, d_in) float32; ``M`` is any set of components."""
    w, u, v, _ = _batched(w, u_out, u_in, mask)
    result = torch.zeros_like(w, dtype=torch.float32)
    full = np.full(w.shape[1], w.shape[2])
    everything = Plan(False, (Part(True, w.shape[1], 0, 0 * full, full),), 0.0, 0.0)
    for chunk in _chunks([everything]):
        lines = _into_lines(chunk, u, w)
        kept = torch.empty_like(lines)
        bits = mask[chunk.start :].contiguous()
        _multiply(kept, lines, v, chunk, lines_are="rows", bits=bits)
        _multiply(lines, kept, v.mT, chunk, lines_are="rows")
        _multiply(result, u, lines, chunk, lines_are="depth", left_at=u.stride(2), add=True)
    return result[0]


@dataclass(frozen=True)
class _Chunk:
    """Some lines of each problem's part, all belonging to the same basis."""

    by_rows: bool
    is_reversed: bool
    start: int
    lines: int  # of the problem that has the most
    first: list[int]
    count: list[int]
    sign: list[int]
    spans: Tensor  # (batch, lines, 2) int32

    def turned(
        self, w: Tensor, u_out: Tensor, u_in: Tensor, out: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Weight, bases and result, transposed where lines are columns."""
        return (w, u_out, u_in, out) if self.by_rows else (w.mT, u_in, u_out, out.mT)


def _chunks(plans: Sequence[Plan]) -> list[_Chunk]:
    chunks = []
    for by_rows in (True, False):
        parts = [
            next((part for part in found.parts if part.by_rows == by_rows), None) for found in plans
        ]
        longest = max((len(part.begin) for part in parts if part), default=0)
        for start in range(0, longest, CHUNK):
            spans = [_span(part, start) for part in parts]
            lines = max(map(len, spans))
            padded = np.stack([np.pad(span, ((0, lines - len(span)), (0, 0))) for span in spans])
            chunks.append(
                _Chunk(
                    by_rows,
                    plans[0].is_complement,
                    start,
                    lines,
                    [part.first + start if part else 0 for part in parts],
                    [len(span) for span in spans],
                    [-1 if found.is_complement else 1 for found in plans],
                    torch.from_numpy(padded.astype(np.int32)),
                )
            )
    return chunks


def _span(part: Part | None, start: int) -> "np.ndarray[tuple[int, int], np.dtype[np.int64]]":
    if part is None:
        return np.zeros((0, 2), dtype=np.int64)
    return np.stack([part.begin, part.end], axis=1)[start : start + CHUNK]


def _plans(w: Tensor, limits: Tensor, *, complement: bool | None = None) -> list[Plan]:
    return [plan(its, w.shape[2], complement=complement) for its in limits.cpu().numpy()]


def _batched(
    w: Tensor, u_out: Tensor, u_in: Tensor, limits: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    w, u_out, u_in = in_memory(w), in_memory(u_out), in_memory(u_in)
    if w.ndim == 3:
        return w, u_out, u_in, limits
    return w[None], u_out[None], u_in[None], limits[None]


def _into_lines(chunk: _Chunk, u: Tensor, source: Tensor) -> Tensor:
    lines = torch.empty(len(source), chunk.lines, source.shape[2], device=source.device)
    _multiply(lines, u.mT, source, chunk, lines_are="rows", left_at=u.stride(2))
    return lines


def _multiply(
    out: Tensor,
    left: Tensor,
    right: Tensor,
    chunk: _Chunk,
    *,
    lines_are: str,
    spans: str = "nothing",
    left_at: int = 0,  # offset into left per line before the chunk's first
    out_at: int = 0,  # the same in out
    bits: Tensor | None = None,
    add: bool = False,
) -> None:
    batch, rows, columns = out.shape
    rows = chunk.lines if lines_are == "rows" else rows
    table = torch.tensor(
        [
            (count, first * left_at, first * out_at, sign)
            for count, first, sign in zip(chunk.count, chunk.first, chunk.sign, strict=True)
        ],
        dtype=torch.int64,
    ).to(out.device)
    placed = chunk.spans.to(out.device)
    product_kernel[(triton.cdiv(columns, COLUMNS), batch, triton.cdiv(rows, ROWS))](
        out,
        left,
        right,
        table,
        placed,
        placed if bits is None else bits,
        rows,
        columns,
        left.shape[2],
        chunk.lines,
        *out.stride(),
        *left.stride(),
        *right.stride(),
        LINES=lines_are,
        SPANS=spans,
        MASKED=bits is not None,
        ADD=add,
        REVERSED=chunk.is_reversed and lines_are == "rows",
        ROWS=ROWS,
        COLUMNS=COLUMNS,
        DEPTH=DEPTH,
        num_warps=WARPS,
        num_stages=STAGES,
    )
