"""Triton kernel of ``syrk_accumulate``: one program per lower tile, the token loop inside.

Half-precision products are exact in float32, so such inputs go to the tensor cores as they are;
float32 inputs are multiplied in float32. Tensor cores truncate when they add, so the registers are
flushed into the float32 tile at least every 16k tokens. Where there are too few tiles to fill the
device, several programs share a tile's tokens; their parts are then added in a fixed order.
"""

import os

import torch
import triton
import triton.language as tl
from torch import Tensor

from curvedit.kernels.contract import in_memory, in_order
from curvedit.kernels.splits import in_two_calls, shares_of
from curvedit.kernels.tiles import TILE, tile_count

FLUSH = 16384  # tokens per launch
_BLOCK = 1024  # elements per program that adds parts
_GROUP = 8  # tile rows walked together, so that their columns of x stay in the L2 cache

# (tokens per step, warps, pipeline stages) by compute capability and kind of input
CONFIGS = {
    80: {"half": (32, 8, 3), "float32": (16, 8, 2)},
    86: {"half": (32, 8, 3), "float32": (16, 8, 2)},
    89: {"half": (32, 8, 3), "float32": (16, 8, 2)},
    90: {"half": (64, 8, 3), "float32": (16, 8, 2)},
    120: {"half": (32, 8, 3), "float32": (16, 8, 2)},
}


@triton.jit
def syrk_accumulate_kernel(
    out,  # (groups, tiles, 128, 128) float32; with SPLIT (shares, groups, …), overwritten
    x,  # (tokens, dim)
    weight,  # (tokens,) float32, or x itself where unused
    offsets,  # (groups + 1,) int64, or x itself where unused
    tokens,
    past,  # tokens of each share that earlier launches have added
    dim,
    token_stride,
    dim_stride,
    WEIGHTED: tl.constexpr,
    GROUPED: tl.constexpr,
    SPLIT: tl.constexpr,
    UPCAST: tl.constexpr,  # to float32 before multiplying: the interpreter gets bfloat16 wrong
    TILE: tl.constexpr,
    GROUP: tl.constexpr,
    STEP: tl.constexpr,
    FLUSH: tl.constexpr,
):
    row, col = _tile_of(tl.program_id(0), tl.cdiv(dim, TILE), GROUP)
    first = tl.full((), 0, tl.int64)
    last = tl.full((), 0, tl.int64) + tokens
    if GROUPED:
        first = tl.load(offsets + tl.program_id(1))
        last = tl.load(offsets + tl.program_id(1) + 1)
    if SPLIT:
        share = tl.cdiv(tl.cdiv(last - first, tl.num_programs(2)), STEP) * STEP
        first += tl.program_id(2) * share
        last = tl.minimum(last, first + share)
    first += past
    last = tl.minimum(last, first + FLUSH)
    rows = row * TILE + tl.arange(0, TILE)
    cols = col * TILE + tl.arange(0, TILE)
    total = tl.zeros((TILE, TILE), dtype=tl.float32)
    for start in range(first, last, STEP):
        token = start + tl.arange(0, STEP)
        inside = token < last
        at = x + token[:, None] * token_stride
        left = tl.load(
            at + rows[None, :].to(tl.int64) * dim_stride,
            inside[:, None] & (rows < dim)[None, :],
            other=0.0,
        )
        right = tl.load(
            at + cols[None, :].to(tl.int64) * dim_stride,
            inside[:, None] & (cols < dim)[None, :],
            other=0.0,
        )
        if UPCAST:
            left = left.to(tl.float32)
            right = right.to(tl.float32)
        if WEIGHTED:  # the root on both sides, rounded alike, keeps the sum symmetric
            w = tl.load(weight + token, inside, other=0.0)
            root = tl.sqrt(w)[:, None]
            used = (w > 0)[:, None]
            left = tl.where(used, left.to(tl.float32) * root, 0.0).to(left.dtype)
            right = tl.where(used, right.to(tl.float32) * root, 0.0).to(right.dtype)
        total = tl.dot(tl.trans(left), right, total, input_precision="ieee")
    index = row * (row + 1) // 2 + col
    group = tl.program_id(2).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    corner = out + (index + group * tl.num_programs(0)) * (TILE * TILE)
    left, right = _halves(total, TILE, TILE)
    _put(corner, left, SPLIT, TILE)
    _put(corner + TILE // 2, right, SPLIT, TILE)


@triton.jit
def add_parts_kernel(
    out,  # (size,) float32
    parts,  # (shares, size) float32
    size,
    shares,
    BLOCK: tl.constexpr,
):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.load(out + place, place < size)
    part = parts + place
    for _ in range(shares):
        total += tl.load(part, place < size)
        part += size
    tl.store(out + place, total, place < size)


@triton.jit
def _halves(tile, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The left and right halves of a tile's columns."""
    return tl.split(tl.permute(tl.reshape(tile, (ROWS, 2, COLUMNS // 2)), (0, 2, 1)))


@triton.jit
def _put(corner, columns, OVERWRITE: tl.constexpr, TILE: tl.constexpr):
    """Add half a tile in place: beside the sum, registers have no room for a whole old tile."""
    place = corner + tl.arange(0, TILE)[:, None] * TILE + tl.arange(0, TILE // 2)[None, :]
    if not OVERWRITE:
        columns += tl.load(place)
    tl.store(place, columns)


@triton.jit
def _row_of(index):
    """The row of element ``index`` of a packed lower triangle; the root may be off by one."""
    row = ((tl.sqrt(8.0 * index.to(tl.float32) + 1.0) - 1.0) / 2.0).to(tl.int32)
    row = tl.where(row * (row + 1) // 2 > index, row - 1, row)
    return tl.where((row + 1) * (row + 2) // 2 <= index, row + 1, row)


@triton.jit
def _tile_of(program, side, GROUP: tl.constexpr):
    """Map a program to (row, column): by groups of tile rows, each column by column.

    The triangle at the end of a group comes last.
    """
    first = _row_of(program) // GROUP * GROUP
    height = tl.minimum(GROUP, side - first)
    place = program - first * (first + 1) // 2
    corner = place - height * first
    corner_row = _row_of(tl.maximum(corner, 0))
    is_corner = corner >= 0
    row = tl.where(is_corner, corner_row, place % height)
    col = tl.where(is_corner, first + corner - corner_row * (corner_row + 1) // 2, place // height)
    return first + row, col


def syrk_accumulate(
    out: Tensor,  # (tile_count(d), 128, 128) float32, contiguous; (groups, …) with offsets
    x: Tensor,  # (tokens, d) float32, bfloat16 or float16, any strides
    weight: Tensor | None = None,  # (tokens,) float32, >= 0
    offsets: Tensor | None = None,  # (groups + 1,) int64
) -> None:
    """Add ``sum_t w_t x_t x_t^T`` to the lower tiles of ``out``, in place.

    With offsets, group ``g`` sums tokens ``offsets[g] … offsets[g + 1] - 1`` into ``out[g]``.

    Raises:
        RuntimeError: there is no configuration for this GPU.
    """
    step, warps, stages = config(x)
    tiles, groups = tile_count(x.shape[1]), 1 if offsets is None else out.shape[0]
    shares = shares_of(tiles * groups, x.shape[0] // max(1, groups), _processors(x.device))
    parts = out.new_empty(shares, *out.shape) if shares > 1 else None
    x = in_memory(x)
    is_weighted, is_grouped = weight is not None, offsets is not None
    weight, offsets = (x if each is None else in_order(each) for each in (weight, offsets))
    longest = triton.cdiv(triton.cdiv(x.shape[0], shares), step) * step
    for past in range(0, longest if out.numel() else 0, FLUSH):
        syrk_accumulate_kernel[(tiles, groups, shares)](
            out if parts is None else parts,
            x,
            weight,
            offsets,
            x.shape[0],
            past,
            x.shape[1],
            x.stride(0),
            x.stride(1),
            WEIGHTED=is_weighted,
            GROUPED=is_grouped,
            SPLIT=parts is not None,
            UPCAST=_interpreted() and x.dtype != torch.float32,
            TILE=TILE,
            GROUP=_GROUP,
            STEP=step,
            FLUSH=FLUSH,
            num_warps=warps,
            num_stages=stages,
        )
        if parts is not None:
            add_parts_kernel[(triton.cdiv(out.numel(), _BLOCK),)](
                out, parts, out.numel(), shares, BLOCK=_BLOCK
            )


syrk_accumulate_pair = in_two_calls(syrk_accumulate)  # registers hold one sum of a tile only


def config(x: Tensor) -> tuple[int, int, int]:
    """(tokens per step, warps, stages) for this input on its device."""
    kind = "float32" if x.dtype == torch.float32 else "half"
    if x.device.type != "cuda":
        return CONFIGS[80][kind]
    major, minor = torch.cuda.get_device_capability(x.device)
    if 10 * major + minor not in CONFIGS:
        raise RuntimeError(
            f"syrk_accumulate: no configuration for compute capability {major}.{minor}; "
            f"has {sorted(CONFIGS)}"
        )
    return CONFIGS[10 * major + minor][kind]


def _processors(device: torch.device) -> int:
    return (
        torch.cuda.get_device_properties(device).multi_processor_count
        if device.type == "cuda"
        else 1
    )


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"
