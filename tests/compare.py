"""The one tolerance rule: at most twice as far from float64 as plain PyTorch is."""

import torch


def errors(got, truth):
    """Relative error in float64: on average (Frobenius), and at the worst element."""
    truth = truth.double()
    off = got.double() - truth
    return (off.norm() / truth.norm()).item(), (off.abs().max() / truth.abs().max()).item()


def assert_as_accurate(got, same_dtype, truth):
    """``got`` may be at most twice as far from the float64 ``truth`` as plain PyTorch is."""
    assert got.shape == truth.shape, f"shape {tuple(got.shape)}, expected {tuple(truth.shape)}"
    assert got.dtype == same_dtype.dtype, f"dtype {got.dtype}, expected {same_dtype.dtype}"
    assert got.isfinite().all(), "NaN or infinity: was part of the output never written?"
    if not truth.any():
        assert not got.any()
        return
    eps = torch.finfo(got.dtype).eps
    for name, ours, theirs in zip(
        ("average", "worst"), errors(got, truth), errors(same_dtype, truth), strict=True
    ):
        assert ours <= 2 * theirs + eps, f"{name} error {ours:.1e}, plain PyTorch {theirs:.1e}"
