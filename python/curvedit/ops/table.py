"""The table of ops: from an op's name to its contract and its backends, fastest first.

Each backend says what it needs of the machine and which arguments it accepts. Reasons are
fragments that follow the backend's name in a message: ``"needs CPU tensors, got cuda:0"``.
"""

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from curvedit.kernels.contract import HALVES, has_values
from curvedit.kernels.second_moment_accumulate_checks import require_second_moment
from curvedit.kernels.staircase_limits_checks import require_spectra
from curvedit.kernels.staircase_project_checks import require_mask, require_staircase
from curvedit.kernels.syrk_accumulate_checks import require_pair, require_syrk

try:
    import curvedit._C as _C
except ImportError as error:
    if "_C" not in str(error):
        raise
    raise ImportError(
        f"{error}; the compiled module is missing: build it with pip install ."
    ) from error


def _nothing(*_: Any) -> str:
    return ""


@dataclass(frozen=True, slots=True)
class Backend:
    """One implementation of an op: the function with the op's name in ``module``.

    The module is imported when it is first used.
    """

    name: str
    module: str
    # Why it cannot run on this device at all, or "".
    unavailable: Callable[[torch.device], str] = _nothing
    # Why it does not accept these arguments of the op, or "".
    refuses: Callable[..., str] = _nothing
    # The instruction set that these arguments run on, or "".
    variant: Callable[..., str] = _nothing
    # Why it is chosen only when requested by name, or "".
    by_name_only: str = ""


@dataclass(frozen=True, slots=True)
class Op:
    """An op: its contract, and its backends, fastest first."""

    check: Callable[..., None]  # takes the op's arguments, and values= (whether to read them)
    backends: tuple[Backend, ...]


def _off_cpu(device: torch.device) -> str:
    return "" if device.type == "cpu" else f"needs CPU tensors, got {device}"


def _fake(first: Tensor, *_: Any) -> str:
    return "" if has_values(first) else "takes tensors with memory behind them, got a fake one"


def _off_triton(device: torch.device) -> str:
    if importlib.util.find_spec("triton") is None:
        return "needs the triton package, which is not installed"
    if device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1":
        return ""
    return f"needs CUDA tensors (or TRITON_INTERPRET=1), got {device}"


def _off_cuda(device: torch.device) -> str:
    if device.type != "cuda":
        return f"needs CUDA tensors, got {device}"
    if not _C.cuda_architectures():
        return "is not in this build: nvcc was not found"
    if not torch.cuda.is_available():
        return "needs a GPU that torch can use"
    major, minor = torch.cuda.get_device_capability(device)
    return "" if major >= 8 else f"needs compute capability 8.0 or higher, got {major}.{minor}"


def _off_hopper(device: torch.device) -> str:
    why = _off_cuda(device)
    if why:
        return why
    major, minor = torch.cuda.get_device_capability(device)
    if (major, minor) != (9, 0):
        return f"needs compute capability 9.0, got {major}.{minor}"
    return "" if "900" in _C.cuda_architectures().split(",") else "is not in this build"


def _not_half(x: Tensor) -> str:
    return "" if x.dtype in HALVES else f"takes bfloat16 or float16, got {x.dtype}"


def _not_float32(name: str, x: Tensor) -> str:
    return "" if x.dtype == torch.float32 else f"takes float32 {name}, got {x.dtype}"


def _cuda_syrk(_: Tensor, x: Tensor, *__: Any) -> str:
    return _not_half(x)


def _cuda_pair(_: Tensor, __: Tensor, x: Tensor, *___: Any) -> str:
    return _not_half(x)


def _wgmma(_: Tensor, x: Tensor, *__: Any) -> str:
    return "" if x.shape[0] < 1 << 31 else "takes fewer than 2^31 tokens"


def _wgmma_pair(_: Tensor, __: Tensor, x: Tensor, *___: Any) -> str:
    return _wgmma(_, x)


def _reference_syrk(_: Tensor, x: Tensor, *__: Any) -> str:
    return _not_float32("input, because it multiplies in the input's precision", x)


def _reference_pair(_: Tensor, __: Tensor, x: Tensor, *___: Any) -> str:
    return _reference_syrk(_, x)


def _triton_bases(_: Tensor, u_out: Tensor, *__: Any) -> str:
    return _not_float32("bases", u_out)


def _reference_bases(w: Tensor, u_out: Tensor, *_: Any) -> str:
    if w.dtype == u_out.dtype:
        return ""
    return f"takes a weight of the same dtype as the bases, got {w.dtype} and {u_out.dtype}"


def _syrk_instructions(_: Tensor, x: Tensor, *__: Any) -> str:
    """Return the best instruction set for ``x``."""
    return _instructions("syrk_accumulate", x)


def _pair_instructions(_: Tensor, __: Tensor, x: Tensor, *___: Any) -> str:
    return _syrk_instructions(_, x)


def _moment_instructions(_: Tensor, g: Tensor, *__: Any) -> str:
    return _instructions("second_moment_accumulate", g)


def _instructions(op: str, tokens: Tensor) -> str:
    """Return the best instruction set; some multiply bfloat16 only."""
    halves = tokens.dtype == torch.bfloat16
    return next(name for name in _C.instruction_sets(op) if halves or name not in _HALVES_ONLY)


# benchmarks/results/h200
_SLOWER = "was slower where it was measured, on an H200; request it by name"
_UNMEASURED = "was slower than wgmma on an H200, and not measured elsewhere; request it by name"
_HALVES_ONLY = ("amx", "avx512_bf16")
_CPU, _CUDA, _KERNELS = "curvedit.ops.cpu", "curvedit.ops.cuda", "curvedit.kernels"
_WGMMA = "curvedit.ops.cuda_wgmma"


def _projections(check: Callable[..., None]) -> Op:
    stem = f"{_KERNELS}.staircase_project"
    return Op(
        check,
        (
            Backend("triton", f"{stem}_triton", _off_triton, _triton_bases, by_name_only=_SLOWER),
            Backend("torch", f"{stem}_torch"),
            Backend("reference", f"{stem}_ref", refuses=_reference_bases),
        ),
    )


TABLE: dict[str, Op] = {
    "syrk_accumulate": Op(
        require_syrk,
        (
            Backend("cpp", _CPU, _off_cpu, _fake, _syrk_instructions),
            Backend("wgmma", _WGMMA, _off_hopper, _wgmma),
            Backend("cuda", _CUDA, _off_cuda, _cuda_syrk, by_name_only=_UNMEASURED),
            Backend(
                "triton",
                f"{_KERNELS}.syrk_accumulate_triton",
                _off_triton,
                by_name_only=_UNMEASURED,
            ),
            Backend("torch", f"{_KERNELS}.syrk_accumulate_torch"),
            Backend("reference", f"{_KERNELS}.syrk_accumulate_ref", refuses=_reference_syrk),
        ),
    ),
    "syrk_accumulate_pair": Op(
        require_pair,
        (
            Backend("cpp", _CPU, _off_cpu, _fake, _pair_instructions),
            Backend("wgmma", _WGMMA, _off_hopper, _wgmma_pair),
            Backend("cuda", _CUDA, _off_cuda, _cuda_pair, by_name_only=_UNMEASURED),
            Backend(
                "triton",
                f"{_KERNELS}.syrk_accumulate_triton",
                _off_triton,
                by_name_only=_UNMEASURED,
            ),
            Backend("torch", f"{_KERNELS}.syrk_accumulate_torch"),
            Backend("reference", f"{_KERNELS}.syrk_accumulate_ref", refuses=_reference_pair),
        ),
    ),
    "second_moment_accumulate": Op(
        require_second_moment,
        (
            Backend("cpp", _CPU, _off_cpu, _fake, _moment_instructions),
            Backend(
                "triton",
                f"{_KERNELS}.second_moment_accumulate_triton",
                _off_triton,
                by_name_only=_SLOWER,
            ),
            Backend("torch", f"{_KERNELS}.second_moment_accumulate_torch"),
            Backend(
                "reference", f"{_KERNELS}.second_moment_accumulate_ref", refuses=_reference_syrk
            ),
        ),
    ),
    "staircase_limits": Op(
        require_spectra,
        (
            Backend("cpp", _CPU, _off_cpu, _fake),
            Backend("reference", f"{_KERNELS}.staircase_limits_ref"),
        ),
    ),
    "staircase_project": _projections(require_staircase),
    "staircase_rotate": _projections(require_staircase),
    "staircase_restore": _projections(require_staircase),
    "masked_project": _projections(require_mask),
}
