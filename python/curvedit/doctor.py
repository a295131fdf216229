"""What is installed, which backend each op uses here and why, and whether it is correct."""

import math
import os
import platform
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from curvedit import _C, meter, ops
from curvedit.ops import tiles

TOLERANCE = 1e-5  # of float32 input, relative; a sum of 300 products is off by 1e-7 to 1e-6
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
    limit: float | None = None  # what the error of that trial may be
    is_exact: bool | None = None  # on integers, whose sums do not round

    @property
    def is_sound(self) -> bool:
        """Whether its numbers are right; true if it was not run."""
        if self.error is None or self.limit is None:
            return True
        return self.is_exact is not False and self.error <= self.limit

    def __str__(self) -> str:
        """One line."""
        verdict = ""
        if self.error is not None:
            verdict = f"{'ok' if self.is_sound else 'WRONG'}, error {self.error:.0e}"
            verdict += ", not exact on integers" if self.is_exact is False else ""
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


def examine(*, progress: bool = False) -> Diagnosis:
    """Look at the installation, and run every backend that can run here against float64.

    On a GPU most of the time goes into compiling Triton's kernels, the first time.

    Args:
        progress: Show how far it has come.

    Returns:
        The facts, and a check of every backend of every kernel on every device.

    Raises:
        ValueError: ``CURVEDIT_BACKEND`` makes no sense.
    """
    facts = examine_facts()
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    cases = [
        (op, backend, device)
        for device in devices
        for op in ops.operations()
        for backend in ops.backends(op)
    ]
    checks = []
    with meter.progress(len(cases), unit="check", what="doctor", shown=progress) as bar:
        for case in cases:
            bar.note(" ".join(case))
            checks.append(check(*case))
            bar.update()
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
    default, refusal = _default(op, able[0].arguments)
    reason = refusal or ops.why_by_name_only(op, backend) or f"after {default}"
    use, reason = ("default", "") if default == backend else ("by name", reason)
    try:
        numbers = _numbers(op, backend, able)
    except Exception as failure:  # noqa: BLE001 - whatever a kernel raises is what is asked for
        said = str(failure).strip().partition("\n")[0]
        reason, numbers = f"raised {type(failure).__name__}: {said}", (math.inf, 0.0, False)
    return Check(op, device, backend, use, reason, *numbers)


def _numbers(op: str, backend: str, trials: "list[_Trial]") -> tuple[float, float, bool]:
    """The worst error that may be, its limit, and whether every exact trial was exact."""
    found = [(t.error(ops.call(op, *t.arguments, backend=backend)), t.limit) for t in trials]
    is_exact = all(error == 0 for error, limit in found if limit == 0)
    others = [each for each in found if each[1]] or found
    error, limit = max(others, key=lambda each: _excess(*each))
    return error, limit, is_exact


def _excess(error: float, limit: float) -> float:
    """How far an error is beyond its limit; NaN is beyond all."""
    return math.inf if math.isnan(error) else error - limit


def truncation(tokens: int) -> float:
    """What a sum of half-precision products may lose on tensor cores, relative to the sum.

    An instruction adds 16 products to the sum and cuts the result to 24 bits, which loses up to
    ``2^-23`` of the sum so far, always toward zero. A sum of squares grows evenly: after ``k`` of
    ``n = tokens / 16`` instructions it is ``k / n`` of the whole. All that is lost is at most
    ``sum_k 2^-23 k / n``, about ``n 2^-24``. Products of mixed signs add up to less on the way than
    the largest sum of squares does. This comes on top of what float32 arithmetic loses when it
    rounds to nearest.
    """
    return tokens / 16 * 2.0**-24


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
    limit: float  # of the error; 0 where nothing rounds

    def error(self, returned: Any) -> float:
        return _error(self.result(returned), self.truth)


def _error(got: Tensor, truth: Tensor) -> float:
    truth = truth.double().cpu()
    return float((got.double().cpu() - truth).norm() / truth.norm())


def _limit(plain: Tensor, truth: Tensor, dtype: torch.dtype) -> float:
    """Twice torch's error in float32, and what tensor cores lose beside it.

    Float32 and weighted float16 may be multiplied as sums of two bfloat16 numbers.
    """
    if dtype != torch.bfloat16:
        return TOLERANCE
    eps = torch.finfo(torch.float32).eps
    return 2 * (_error(plain, truth) + truncation(_TOKENS)) + eps


# (whether nothing rounds, dtype of the input): the exact trials come first
_KINDS = [(is_exact, dtype) for is_exact in (True, False) for dtype in _DTYPES]


def _tokens(is_exact: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Tokens and weights, on the CPU.

    Some backends multiply tokens by the roots of the weights in the input's precision. Small
    integers times small integers, and any numbers times powers of two, are exact there.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(_TOKENS, _SIZE, generator=generator)
    if is_exact:
        x = torch.randint(-4, 5, (_TOKENS, _SIZE), generator=generator).float()
    roots = torch.randint(5 if is_exact else 3, (_TOKENS,), generator=generator).float()
    return x.to(dtype), roots.square()


def _sum(x: Tensor, weight: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    rows = x.to(dtype) * weight.to(dtype).sqrt()[:, None]
    return rows.mT @ rows


def _unpacked(outs: list[Tensor], _: Any) -> Tensor:
    return torch.stack([tiles.unpack(out, _SIZE) for out in outs])


def _syrk(device: torch.device) -> list[_Trial]:
    weighted = [_sums(kind, device, lambda w: [w], lambda w: (w,)) for kind in _KINDS]
    return weighted + [_sums(kind, device, lambda w: [w**0], lambda _: ()) for kind in _KINDS]


def _pair(device: torch.device) -> list[_Trial]:
    return [_sums(kind, device, lambda w: [w**0, w], lambda w: (w,)) for kind in _KINDS]


def _sums(
    kind: tuple[bool, torch.dtype],
    device: torch.device,
    weights_of: Callable[[Tensor], list[Tensor]],  # of each output
    given: Callable[[Tensor], tuple[Tensor, ...]],  # the arguments after x
) -> _Trial:
    is_exact, dtype = kind
    x, weight = _tokens(is_exact, dtype)
    weights = weights_of(weight)
    outs = [tiles.zeros(_SIZE, device=device) for _ in weights]
    truth, plain = (
        torch.stack([_sum(x, each, as_) for each in weights])
        for as_ in (torch.float64, torch.float32)
    )
    limit = 0.0 if is_exact else _limit(plain, truth, dtype)
    arguments = (*outs, x.to(device), *(each.to(device) for each in given(weight)))
    return _Trial(arguments, partial(_unpacked, outs), truth, limit)


def _itself(out: Tensor, _: Any) -> Tensor:
    return out


def _second_moment(device: torch.device) -> list[_Trial]:
    trials, bounds = [], [0, _TOKENS // 3, _TOKENS]
    for is_exact, dtype in _KINDS:
        g, _ = _tokens(is_exact, dtype)
        a, out = g.flip(1), torch.zeros(_SIZE, _SIZE, device=device)
        truth, plain = (
            _squares(g.to(as_), a.to(as_), bounds) for as_ in (torch.float64, out.dtype)
        )
        limit = 0.0 if is_exact else _limit(plain, truth, dtype)
        arguments = (out, g.to(device), a.to(device), torch.tensor(bounds, device=device))
        trials.append(_Trial(arguments, partial(_itself, out), truth, limit))
    return trials


def _squares(g: Tensor, a: Tensor, bounds: list[int]) -> Tensor:
    products = [g[start:stop].mT @ a[start:stop] for start, stop in pairwise(bounds)]
    return torch.stack(products).square().sum(0)


def _staircase(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Two spectra and their staircase, as the reference finds it."""
    lam, mu = (torch.arange(1, n + 1, dtype=torch.float64) ** -1.0 for n in (_SIZE, _TOKENS))
    limits = ops.call("staircase_limits", lam, mu, 0.7, backend="reference")[0]
    return lam.to(device), mu.to(device), limits


def _limits(device: torch.device) -> list[_Trial]:
    lam, mu, limits = _staircase(device)
    return [_Trial((lam, mu, 0.7), lambda returned: returned[0], limits.double(), 0.0)]


def _project(op: str, device: torch.device) -> list[_Trial]:
    """Trials of one of the projections, which takes a staircase or the same as a mask."""
    _, _, limits = _staircase(device)
    kept = torch.arange(_TOKENS) < limits[:, None]
    mask = torch.from_numpy(np.packbits(kept.numpy(), axis=1))
    trials = []
    for is_exact in (True, False):
        w, u_out, u_in = _rotated(is_exact)
        components = (u_out.mT @ w @ u_in) * kept
        truth = components if op == "staircase_rotate" else u_out @ components @ u_in.mT
        given = components if op == "staircase_restore" else w
        which = mask if op == "masked_project" else limits
        arguments = (given.float(), u_out.float(), u_in.float(), which)
        placed = tuple(value.to(device) for value in arguments)
        limit = 0.0 if is_exact else TOLERANCE
        trials.append(_Trial(placed, lambda returned: returned, truth, limit))
    return trials


def _rotated(is_exact: bool) -> tuple[Tensor, Tensor, Tensor]:
    """A weight and its bases, in float64: integers and permutations where nothing may round."""
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(_SIZE, _TOKENS, generator=generator)
    left, right = (torch.randn(n, n, generator=generator).double() for n in (_SIZE, _TOKENS))
    if is_exact:
        return w.mul(4).round().double(), _permutation(left), _permutation(right)
    return w.double(), torch.linalg.qr(left).Q, torch.linalg.qr(right).Q


def _permutation(square: Tensor) -> Tensor:
    return torch.eye(len(square), dtype=square.dtype)[square[0].argsort()]


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
