"""What the sums of a fit take at least, and whether that can be had."""

from collections.abc import Mapping

import torch
from torch import nn

from curvedit.meter import free_memory
from curvedit.models import shape_of

_FLOAT = 4  # bytes


def least_bytes(
    shapes: Mapping[str, tuple[int, int]], *, weighted: bool, corrected: bool = False
) -> int:
    """What the sums of weights ``(d_out, d_in)`` take at least, wherever inputs are shared.

    Sums are float32 triangles; one ``A`` may serve all targets of the same width.
    """
    sizes = shapes.values()
    numbers = sum(map(_triangle, {columns for _, columns in sizes}))
    numbers += sum(_triangle(rows) for rows, _ in sizes)
    if weighted:
        numbers += sum(_triangle(rows) + _triangle(columns) for rows, columns in sizes)
    if corrected:
        numbers += sum(rows * columns for rows, columns in sizes)
    return _FLOAT * numbers


def require_memory(
    modules: Mapping[str, nn.Module], device: torch.device, *, weighted: bool, corrected: bool
) -> None:
    """Refuse targets whose sums cannot fit.

    Raises:
        ValueError: they need more than is free; the message names the target that needs most.
    """
    shapes = {name: shape_of(module) for name, module in modules.items()}
    free, needed = free_memory(device), least_bytes(shapes, weighted=weighted, corrected=corrected)
    if free is None or needed <= free:
        return
    most = max(shapes, key=lambda name: max(shapes[name]))
    rows, columns = shapes[most]
    own = least_bytes({most: shapes[most]}, weighted=weighted, corrected=corrected)
    remedy = "" if device.type == "cpu" else "let them wait on the host (sums_on='cpu'), "
    raise ValueError(
        f"targets: expected sums that fit into the {free / 2**30:.1f} GiB free on {device}, got at "
        f"least {needed / 2**30:.1f} GiB, most of it {most!r} ({rows} x {columns}), "
        f"{own / 2**30:.1f} GiB; {remedy}leave it out, or fit fewer targets at a time"
    )


def _triangle(size: int) -> int:
    return size * (size + 1) // 2
