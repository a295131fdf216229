"""The contract of ``staircase_limits``, on every backend."""

import math

import torch
from torch import Tensor

from curvedit.kernels.contract import has_values, require_beside, require_dtype


def require_spectra(
    lam: Tensor,  # (d_out,) float64, descending, finite, >= 0
    mu: Tensor,  # (d_in,), as lam
    keep_mass: float,  # in (0, 1]
    *,
    values: bool = True,
) -> None:
    """Raise unless the arguments are two spectra and a share.

    Args:
        lam: Eigenvalues of the output factor.
        mu: Eigenvalues of the input factor.
        keep_mass: Share of the total mass to keep.
        values: Whether to read the spectra; on a GPU that waits.

    Raises:
        TypeError: a spectrum is not float64.
        ValueError: a shape, device or value does not fit.
    """
    if not (math.isfinite(keep_mass) and 0.0 < keep_mass <= 1.0):
        raise ValueError(f"keep_mass: expected a number in (0, 1], got {keep_mass!r}")
    for name, spectrum in (("lam", lam), ("mu", mu)):
        if spectrum.ndim != 1 or not spectrum.numel():
            raise ValueError(
                f"{name}: expected shape (n,) with n >= 1, got {tuple(spectrum.shape)}"
            )
        require_dtype(name, spectrum, torch.float64)
        require_beside(name, spectrum, "lam", lam)
        if values and has_values(spectrum):
            _require_descending(name, spectrum)


def _require_descending(name: str, spectrum: Tensor) -> None:
    falls = bool((spectrum.diff() <= 0).all())  # which NaN and a pair of infinities do not
    if falls and math.isfinite(float(spectrum[0])) and float(spectrum[-1]) >= 0:
        return
    bad = int((~spectrum.isfinite()).sum())
    if bad:
        raise ValueError(
            f"{name}: expected finite values, got {bad} NaN or infinite of {spectrum.numel()}"
        )
    raise ValueError(f"{name}: expected descending values >= 0, got {spectrum[:4].tolist()}…")
