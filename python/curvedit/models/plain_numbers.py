"""Whether a weight is stored as plain floating-point numbers, which can be fitted and edited."""

from torch import Tensor

_LEAST_BYTES = 2  # per number; 8-bit floats come with scales of their own


def why_not_plain(weight: Tensor) -> str | None:
    """Why a weight cannot be taken as it is stored; None if it can."""
    if hasattr(type(weight.data), "__tensor_flatten__"):  # made of other tensors
        return f"its weight is stored as {type(weight.data).__name__}"
    if not weight.is_floating_point() or weight.dtype.itemsize < _LEAST_BYTES:
        return f"it is quantised, {str(weight.dtype).removeprefix('torch.')}"
    return None
