"""Whether the parts of a target's selection agree with each other."""

import math

import numpy as np
import torch
from torch import Tensor


def first_fault(
    shape: tuple[int, int],  # (d_out, d_in)
    kept: int,
    limits: Tensor | None,
    mask: Tensor | None,
    spectra: tuple[Tensor | None, Tensor | None],  # (d_out,) and (d_in,)
    numbers: tuple[float, float],  # threshold and mass
) -> str:
    """Return what is wrong in the parts of a target's selection; empty if they agree."""
    rows, columns = shape
    if not all(type(count) is int and count >= 0 for count in (rows, columns, kept)):
        return f"expected a shape and a count, got {shape} and {kept!r}"
    if (limits is None) == (mask is None):
        return "expected either limits or a mask"
    if not all(type(number) in (int, float) for number in numbers):
        return f"expected a threshold and a mass, got {numbers}"
    if math.isnan(numbers[0]) or not 0.0 <= numbers[1] <= 1.0 + 1e-6:
        return f"expected a threshold and a mass in [0, 1], got {numbers}"
    return (
        (_fault_of_limits(limits, rows, columns, kept) if limits is not None else "")
        or (_fault_of_mask(mask, rows, columns, kept) if mask is not None else "")
        or _fault_of_values(spectra[0], rows)
        or _fault_of_values(spectra[1], columns)
    )


def _fault_of_limits(limits: Tensor, rows: int, columns: int, kept: int) -> str:
    if limits.shape != (rows,) or limits.dtype != torch.int32:
        return f"the limits do not fit the shape {(rows, columns)}"
    found = limits.cpu().numpy().astype(np.int64)
    if rows and not (found.min() >= 0 and found.max() <= columns and (np.diff(found) <= 0).all()):
        return f"expected limits from {columns} down to 0"
    total = int(found.sum())
    return "" if total == kept else f"the limits keep {total} components, not {kept}"


def _fault_of_mask(mask: Tensor, rows: int, columns: int, kept: int) -> str:
    if mask.shape != (rows, -(-columns // 8)) or mask.dtype != torch.uint8:
        return f"the mask does not fit the shape {(rows, columns)}"
    bits = np.unpackbits(mask.cpu().numpy(), axis=1)
    total = int(bits.sum(dtype=np.int64))
    if bits[:, columns:].any():
        return "the mask keeps components that do not exist"
    return "" if total == kept else f"the mask keeps {total} components, not {kept}"


def _fault_of_values(values: Tensor | None, size: int) -> str:
    if values is None:
        return ""
    fits = values.shape == (size,) and values.dtype == torch.float64
    if not fits or not bool((values.isfinite() & (values >= 0)).all()):
        return f"expected {size} eigenvalues, finite and not negative"
    return ""
