"""What is installed, which backend each op uses here and why, and whether it is correct."""

import os
import platform
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch
from torch import Tensor

from curvedit import _C, ops
from curvedit.ops import tiles

TOLERANCE = 1e-5  # relative; a float32 sum of 300 products is off by 1e-7 to 1e-6
_PACKAGES = ("curvedit", "torch", "triton", "transformers", "numpy")
_TOKENS, _SIZE = 300, 200
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Check:
    """One backend of one kernel on one device."""

    op: str
    device: str
    backend: str
    use: str  # "default" if a call that names no backend runs it, "by name" or "cannot"
    reason: str  # why it cannot run, or is not the default
    error: float | None  # relative to float64 (Frobenius), the worst of its trials; None if not run

    @property
    def is_sound(self) -> bool:
        """Whether its numbers are right; true if it was not run."""
        return self.error is None or self.error <= TOLERANCE

    def __str__(self) -> str:
        """One line."""
        verdict = ""
        if self.error is not None:
            verdict = f"{'ok' if self.is_sound else 'WRONG'}, error {self.error:.0e}"
        where = f"{self.op:25}{self.device:5} {self.backend:10} {self.use:8}"
        return f"{where} {verdict:17} {self.reason}".rstrip()


@dataclass(frozen=True)
class Diagnosis:
    """The state of an installation."""

    facts: dict[str, str]
    checks: list[Check]

    @property
    def is_sound(self) -> bool:
        """Whether every backend that ran gave right numbers."""
        return all(check.is_sound for check in self.checks)

    def __str__(self) -> str:
        """The facts, then a line per backend."""
        width = max(map(len, self.facts))
        facts = [f"{name:{width}}  {value}" for name, value in self.facts.items()]
        return "\n".join([*facts, "", *map(str, self.checks)])


def examine() -> Diagnosis:
    """Look at the installation, and run every backend that can run here against float64.

    Returns:
        The facts, and a check of every backend of every kernel on every device.

    Raises:
        ValueError: ``CURVEDIT_BACKEND`` makes no sense.
    """
    facts = examine_facts()
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    checks = [
        check(op, backend, device)
        for device in devices
        for op in ops.operations()
        for backend in ops.backends(op)
    ]
    return Diagnosis(facts, checks)


def check(op: str, backend: str, device: str) -> Check:
    """Run one backend on small inputs, if it can run on this device.

    Args:
        op: The kernel, one of :func:`curvedit.ops.operations`.
        backend: One of its backends.
        device: ``"cpu"`` or ``"cuda"``.

    Returns:
        Its use, and its error where it ran.
    """
    trials = _TRIALS[op](torch.device(device))
    reasons = [ops.explain(op, *trial.arguments)[backend] for trial in trials]
    able = [trial for trial, reason in zip(trials, reasons, strict=True) if not reason]
    if not able:
        return Check(op, device, backend, "cannot", reasons[0], None)
    error = max(trial.error(ops.call(op, *trial.arguments, backend=backend)) for trial in able)
    default, refusal = _default(op, able[0].arguments)
    if default == backend:
        return Check(op, device, backend, "default", "", error)
    reason = refusal or ops.why_by_name_only(op, backend) or f"after {default}"
    return Check(op, device, backend, "by name", reason, error)


def _default(op: str, arguments: tuple[Any, ...]) -> tuple[str, str]:
    """The backend that a call runs which names none; or "" and why such a call fails."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the facts say what the variable does not apply to
        try:
            return ops.choose(op, *arguments).backend, ""
        except RuntimeError as refusal:  # the variable asks for a backend that cannot run
            return "", f"{ops.VARIABLE}: {str(refusal).removeprefix(f'{op}: ')}"


@dataclass(frozen=True)
class _Trial:
    arguments: tuple[Any, ...]
    result: Callable[[Any], Tensor]  # what to compare, from what the kernel returned
    truth: Tensor  # float64

    def error(self, returned: Any) -> float:
        got = self.result(returned).double().cpu()
        return float((got - self.truth.cpu()).norm() / self.truth.norm())


def _tokens(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(_TOKENS, _SIZE, generator=generator).to(dtype)
    roots = torch.randint(4, (_TOKENS,), generator=generator).float()
    weight = roots.square()  # backends that multiply by the roots find them exactly
    return x.to(device), weight.to(device)


def _sum(x: Tensor, weight: Tensor) -> Tensor:
    return (x.double() * weight.double()[:, None]).mT @ x.double()


def _unpacked(outs: list[Tensor], _: Any) -> Tensor:
    return torch.stack([tiles.unpack(out, _SIZE) for out in outs])


def _syrk(device: torch.device) -> list[_Trial]:
    trials = []
    for dtype in _DTYPES:
        x, weight = _tokens(dtype, device)
        out = tiles.zeros(_SIZE, device=device)
        trials.append(_Trial((out, x, weight), partial(_unpacked, [out]), _sum(x, weight)[None]))
    return trials


def _pair(device: torch.device) -> list[_Trial]:
    trials = []
    for dtype in _DTYPES:
        x, weight = _tokens(dtype, device)
        outs = [tiles.zeros(_SIZE, device=device) for _ in range(2)]
        truth = torch.stack([_sum(x, torch.ones_like(weight)), _sum(x, weight)])
        trials.append(_Trial((*outs, x, weight), partial(_unpacked, outs), truth))
    return trials


def _itself(out: Tensor, _: Any) -> Tensor:
    return out


def _second_moment(device: torch.device) -> list[_Trial]:
    trials = []
    for dtype in _DTYPES:
        g, _ = _tokens(dtype, device)
        a, out = g.flip(1), torch.zeros(_SIZE, _SIZE, device=device)
        offsets = torch.tensor([0, _TOKENS // 3, _TOKENS], device=device)
        cut = _TOKENS // 3
        halves = [g.double()[part].mT @ a.double()[part] for part in (slice(cut), slice(cut, None))]
        truth = halves[0].square() + halves[1].square()
        trials.append(_Trial((out, g, a, offsets), partial(_itself, out), truth))
    return trials


def _staircase(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Two spectra and their staircase, as the reference finds it."""
    lam, mu = (torch.arange(1, n + 1, dtype=torch.float64) ** -1.0 for n in (_SIZE, _TOKENS))
    limits = ops.call("staircase_limits", lam, mu, 0.7, backend="reference")[0]
    return lam.to(device), mu.to(device), limits


def _limits(device: torch.device) -> list[_Trial]:
    lam, mu, limits = _staircase(device)
    return [_Trial((lam, mu, 0.7), lambda returned: returned[0], limits.double())]


def _project(op: str, device: torch.device) -> list[_Trial]:
    """A trial of one of the projections, which takes a staircase or the same as a mask."""
    _, _, limits = _staircase(device)
    generator = torch.Generator().manual_seed(0)
    w, *squares = (
        torch.randn(m, n, generator=generator)
        for m, n in ((_SIZE, _TOKENS), 2 * (_SIZE,), 2 * (_TOKENS,))
    )
    u_out, u_in = (torch.linalg.qr(square.double()).Q for square in squares)
    kept = torch.arange(_TOKENS) < limits[:, None]
    mask = torch.from_numpy(np.packbits(kept.numpy(), axis=1))
    components = (u_out.mT @ w.double() @ u_in) * kept
    truth = components if op == "staircase_rotate" else u_out @ components @ u_in.mT
    given = components.float() if op == "staircase_restore" else w
    which = mask if op == "masked_project" else limits
    arguments = tuple(value.to(device) for value in (given, u_out.float(), u_in.float(), which))
    return [_Trial(arguments, lambda returned: returned, truth)]


_TRIALS: dict[str, Callable[[torch.device], list[_Trial]]] = {
    "syrk_accumulate": _syrk,
    "syrk_accumulate_pair": _pair,
    "second_moment_accumulate": _second_moment,
    "staircase_limits": _limits,
    **{
        op: partial(_project, op)
        for op in ("staircase_project", "staircase_rotate", "staircase_restore", "masked_project")
    },
}


def examine_facts() -> dict[str, str]:
    """Versions, instruction sets, devices, and what ``CURVEDIT_BACKEND`` asks for.

    Raises:
        ValueError: ``CURVEDIT_BACKEND`` makes no sense.
    """
    facts = {"python": f"{platform.python_version()} on {platform.platform()}"}
    for name in _PACKAGES:
        try:
            facts[name] = version(name)
        except PackageNotFoundError:
            facts[name] = "not installed"
    sets = ", ".join(_C.instruction_sets("syrk_accumulate"))
    facts["cpu kernels"] = f"{sets}; {torch.get_num_threads()} threads on {os.cpu_count()} cores"
    built = [f"sm_{int(number) // 10}" for number in _C.cuda_architectures().split(",") if number]
    facts["cuda kernels"] = ", ".join(built) or "not built: nvcc was not found"
    facts["cuda of torch"] = str(torch.version.cuda or "none: a CPU build")
    gpus = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    described = [
        f"{gpu.name}, sm_{gpu.major}{gpu.minor}, {gpu.total_memory / 2**30:.0f} GiB" for gpu in gpus
    ]
    facts["gpu"] = "; ".join(described) or "none that torch can use"
    if os.environ.get(ops.VARIABLE):
        facts[ops.VARIABLE] = _meaning(os.environ[ops.VARIABLE])
    return facts


def _meaning(text: str) -> str:
    """What a value of the variable asks for, op by op."""
    bare, by_op = ops.parse_backends(text)
    others = [op for op in ops.operations() if op not in by_op]
    parts = [f"{backend} for {op}" for op, backend in by_op.items()]
    if bare:
        having = [op for op in others if bare in ops.backends(op)]
        lacking = [op for op in others if op not in having]
        parts += [f"{bare} for {', '.join(having)} where it takes the call"] if having else []
        parts += [f"no backend {bare} in {', '.join(lacking)}"] if lacking else []
    elif others:
        parts.append(f"no wish for {', '.join(others)}")
    return f"{text}: {'; '.join(parts)}"
