"""The one tolerance rule: at most twice as far from float64 as plain PyTorch is.

Where half-precision input is summed on tensor cores, their truncation is allowed for beside that.
"""

import torch

from curvedit.doctor import truncation


def errors(got, truth):
    """Relative error in float64: on average (Frobenius), and at the worst element."""
    truth = truth.double()
    off = got.double() - truth
    return (off.norm() / truth.norm()).item(), (off.abs().max() / truth.abs().max()).item()


def assert_as_accurate(got, same_dtype, truth, *, truncated=0):
    """``got`` may be at most twice as far from the float64 ``truth`` as plain PyTorch is.

    ``truncated`` is the number of products in each sum that tensor cores add, 16 at a time.
    """
    assert got.shape == truth.shape, f"shape {tuple(got.shape)}, expected {tuple(truth.shape)}"
    assert got.dtype == same_dtype.dtype, f"dtype {got.dtype}, expected {same_dtype.dtype}"
    assert got.isfinite().all(), "NaN or infinity: was part of the output never written?"
    if not truth.any():
        assert not got.any()
        return
    allowed = torch.finfo(got.dtype).eps + truncation(truncated)
    for name, ours, theirs in zip(
        ("average", "worst"), errors(got, truth), errors(same_dtype, truth), strict=True
    ):
        message = (
            f"{name} error {ours:.1e}, plain PyTorch {theirs:.1e}, allowed beside {allowed:.1e}"
        )
        assert ours <= 2 * theirs + allowed, message
