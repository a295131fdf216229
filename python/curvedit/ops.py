"""Which implementation of a kernel runs: the only place that decides.

``backends`` lists, ``choose`` explains, ``call`` runs. A backend asked for by name (argument
``backend`` or environment variable ``CURVEDIT_BACKEND``) runs or raises; only an unforced choice
walks down the list.
"""

import functools
import importlib
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Impl:
    """One implementation of one kernel."""

    backend: str
    where: str  # "module:function", imported when first used
    refuses: Callable[..., str] = lambda *_: ""  # why it cannot run these arguments, or ""
    by_name_only: str = ""  # why an unforced choice passes it over, or ""


def _off_cpu(*args: Any) -> str:
    return "" if args[0].device.type == "cpu" else f"needs CPU tensors, got {args[0].device}"


def _off_gpu(*args: Any) -> str:
    if importlib.util.find_spec("triton") is None:
        return "needs the triton package, which is not installed"
    if args[0].device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1":
        return ""
    return f"needs CUDA tensors (or TRITON_INTERPRET=1), got {args[0].device}"


def _off_cuda(*args: Any) -> str:
    from curvedit import native_cuda

    return native_cuda.refuses(next(arg for arg in args if arg.ndim == 2))


def _off_hopper(*args: Any) -> str:
    from curvedit import native_cuda

    _, x, weight, *_ = (*args, None)
    return native_cuda.refuses_hopper(x, weight)


_UNMEASURED = "is not yet measured on any GPU; ask for it by name"

_TABLE: dict[str, tuple[Impl, ...]] = {  # fastest first; the reference is last and never refuses
    "syrk_accumulate": (
        Impl("cpp", "curvedit.native:syrk_accumulate", _off_cpu),
        Impl("cuda", "curvedit.native_cuda:syrk_accumulate", _off_cuda, _UNMEASURED),
        Impl("wgmma", "curvedit.native_cuda:syrk_accumulate_wgmma", _off_hopper, _UNMEASURED),
        Impl("triton", "curvedit.kernels.syrk_accumulate:syrk_accumulate", _off_gpu, _UNMEASURED),
        Impl("torch", "curvedit.kernels.syrk_accumulate_torch:syrk_accumulate_torch"),
        Impl("reference", "curvedit.kernels.syrk_accumulate_ref:syrk_accumulate_ref"),
    ),
    "syrk_accumulate_pair": (
        Impl("cpp", "curvedit.native:syrk_accumulate_pair", _off_cpu),
        Impl("cuda", "curvedit.native_cuda:syrk_accumulate_pair", _off_cuda, _UNMEASURED),
        Impl("triton", "curvedit.kernels.syrk_accumulate:syrk_accumulate_pair", _off_gpu, _UNMEASURED),
        Impl("torch", "curvedit.kernels.syrk_accumulate_torch:syrk_accumulate_pair_torch"),
        Impl("reference", "curvedit.kernels.syrk_accumulate_ref:syrk_accumulate_pair_ref"),
    ),
    "second_moment_accumulate": (
        Impl("cpp", "curvedit.native:second_moment_accumulate", _off_cpu),
        Impl("triton", "curvedit.kernels.second_moment_accumulate:second_moment_accumulate", _off_gpu, _UNMEASURED),
        Impl("torch", "curvedit.kernels.second_moment_accumulate_torch:second_moment_accumulate_torch"),
        Impl("reference", "curvedit.kernels.second_moment_accumulate_ref:second_moment_accumulate_ref"),
    ),
    "staircase_limits": (
        Impl("cpp", "curvedit.native:staircase_limits", _off_cpu),
        Impl("reference", "curvedit.kernels.staircase_limits_ref:staircase_limits_ref"),
    ),
    **{
        op: (
            Impl("triton", f"curvedit.kernels.staircase_project:{op}", _off_gpu, _UNMEASURED),
            Impl("torch", f"curvedit.kernels.staircase_project_torch:{op}_torch"),
            Impl("reference", f"curvedit.kernels.staircase_project_ref:{op}_ref"),
        )
        for op in ("staircase_project", "staircase_rotate", "staircase_restore", "masked_project")
    },
}


def operations() -> list[str]:
    """Names of all kernels."""
    return list(_TABLE)


def backends(op: str) -> list[str]:
    """Backends of ``op``, fastest first. Tests and benchmarks are parametrised over this list."""
    return [impl.backend for impl in _TABLE[op]]


def why_by_name_only(op: str, backend: str) -> str:
    """Why an unforced choice passes a backend over, or ""."""
    return next(impl.by_name_only for impl in _TABLE[op] if impl.backend == backend)


def choose(op: str, *args: Any, backend: str | None = None) -> Impl:
    """Return the implementation that ``op`` would run for ``args``.

    Raises:
        RuntimeError: none can, or the one asked for cannot; the message gives every reason.
    """
    wanted = backend or os.environ.get("CURVEDIT_BACKEND")
    reasons = []
    for impl in _TABLE[op]:
        if wanted not in (None, impl.backend):
            continue
        why = impl.refuses(*args) or ("" if wanted else impl.by_name_only)
        if not why:
            return impl
        reasons.append(f"{impl.backend} {why}")
    known = f"has no backend {wanted!r}; it has {backends(op)}"
    raise RuntimeError(f"{op}: {'; '.join(reasons) or known}")


def call(op: str, *args: Any, backend: str | None = None) -> Any:
    """Run ``op`` on ``args`` with the implementation that :func:`choose` picks."""
    return _load(choose(op, *args, backend=backend).where)(*args)


@functools.cache
def _load(where: str) -> Callable[..., Any]:
    module, _, name = where.partition(":")
    loaded: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return loaded
