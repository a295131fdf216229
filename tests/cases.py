"""Inputs for the kernels, shared by tests and benchmarks."""

import re

import pytest
import torch

from curvedit import ops


def run(op, *args, backend, device="cpu"):
    """Run one backend on one device; skip the test, with the reason, if it cannot."""
    device = "cpu" if backend == "cpp" else device
    placed = [arg.to(device) if isinstance(arg, torch.Tensor) else arg for arg in args]
    try:
        ops.choose(op, *placed, backend=backend)
    except RuntimeError as reason:
        if torch.cuda.is_available() and not re.search(
            "takes |needs compute capability", str(reason)
        ):
            raise  # a machine with a GPU must run every backend that supports it
        pytest.skip(str(reason))
    return ops.call(op, *placed, backend=backend), placed


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def integers(*shape, seed=0, dtype=torch.float32):
    """Integers exact in bfloat16, small enough for exact sums of products in float32."""
    return torch.randint(-4, 5, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def orthogonal(size, seed=0):
    return torch.linalg.qr(normal(size, size, seed=seed).double()).Q.float()


def permutation(size, seed=0):
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    return torch.eye(size)[order]


def limits_of(m, n, keep_mass, power=1.0):
    """The staircase of power-law spectra."""
    lam = torch.arange(1, m + 1, dtype=torch.float64) ** -power
    mu = torch.arange(1, n + 1, dtype=torch.float64) ** -power
    return ops.call("staircase_limits", lam, mu, keep_mass)[0]
