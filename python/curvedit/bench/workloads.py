"""What ``curvedit bench`` times: the kernels at the shapes of real models, beside their rivals."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from curvedit import ops
from curvedit.bench import rivals
from curvedit.bench.sampled_error import (
    Reflections,
    packed_elements,
    second_moment_error,
    square_elements,
    syrk_error,
)
from curvedit.bench.timing import Candidate, Case
from curvedit.ops import plan, tiles

MODELS = {  # hidden size, intermediate size, experts
    "olmo2-1b": (2048, 8192, 0),
    "olmo2-7b": (4096, 11008, 0),
    "llama-3.1-8b": (4096, 14336, 0),
    "qwen3-14b": (5120, 17408, 0),
    "qwen3-30b-a3b": (2048, 768, 128),
}
OPS = ("syrk_accumulate", "second_moment_accumulate", "staircase_project")
SHARES = (0.6, 0.8, 0.95)  # of the mass of 1/i spectra that a projection keeps
_SEQUENCE = 128  # tokens
_STORED = 1 << 32  # bytes of stored gradients that a rival may take

Only = tuple[str, torch.dtype]  # a backend and an input dtype


def cases(
    op: str,
    shapes: Iterable[tuple[int, int, int]],
    *,
    tokens: int,
    device: torch.device,
    only: Only | None = None,
) -> Iterator[Case]:
    """Cases of one kernel, made one at a time.

    Args:
        op: One of ``OPS``.
        shapes: Hidden size, intermediate size and number of experts of each MLP; a dense one has
            0 experts.
        tokens: Tokens of the input; experts share them.
        device: Where the inputs lie.
        only: The one backend and input dtype to run, without rivals. None for all that can run.

    Raises:
        RuntimeError: the backend asked for cannot run here.
    """
    if op == "syrk_accumulate":
        sizes = sorted({(d, experts) for hidden, inner, experts in shapes for d in (hidden, inner)})
        for d, experts in sizes:
            yield _syrk(d, experts, tokens, device, only)
        return
    for hidden, inner, _ in sorted(set(shapes)):
        if op == "second_moment_accumulate":
            yield _second_moment(inner, hidden, tokens, device, only)
            continue
        for share in SHARES:
            yield _projection(inner, hidden, share, device, only)


def _own(
    op: str,
    arguments: dict[torch.dtype, tuple[Any, ...]],
    only: Only | None,
    error: Callable[[torch.dtype, Callable[[], Any]], float],
) -> Iterator[Candidate]:
    """The package's backends that can run, each with the input dtypes that it takes.

    They are chosen here, so that checks of the arguments are not timed.
    """
    if only is None:
        refusals = {dtype: ops.explain(op, *given) for dtype, given in arguments.items()}
        able = [
            (backend, dtype)
            for backend in ops.backends(op)
            for dtype in arguments
            if backend != "reference" and not refusals[dtype][backend]
        ]
    else:
        able = [only]
    for backend, dtype in able:
        implementation = ops.choose(op, *arguments[dtype], backend=backend)
        run = partial(implementation, *arguments[dtype])
        name = f"curvedit {implementation.label}"
        yield Candidate(name, dtype, run, partial(error, dtype, run))


def _syrk(d: int, experts: int, tokens: int, device: torch.device, only: Only | None) -> Case:
    dtypes = (torch.float32, torch.bfloat16) if only is None else (only[1],)
    x = torch.randn(tokens, d, device=device)
    inputs = {dtype: x.to(dtype) for dtype in dtypes}
    offsets = _routed(experts, tokens, device) if experts else None
    groups = [experts] if experts else []
    out = torch.zeros(*groups, tiles.tile_count(d), tiles.TILE, tiles.TILE, device=device)

    def error(dtype: torch.dtype, run: Callable[[], object]) -> float:
        out.zero_()
        run()
        return syrk_error(partial(packed_elements, out), inputs[dtype], offsets)

    arguments = {dtype: (out, given, None, offsets) for dtype, given in inputs.items()}
    candidates = [*_own("syrk_accumulate", arguments, only, error)]
    if only is None:
        candidates += _syrk_rivals(inputs, offsets)

    def size(dtype: torch.dtype) -> float:
        return tokens * d * dtype.itemsize + 2.0 * 4 * max(1, experts) * d * (d + 1) / 2

    what = f"d = {d}, {tokens} tokens" + (f" of {experts} experts" if experts else "")
    return Case("syrk_accumulate", what, tokens * d * (d + 1.0), size, candidates)


def _routed(experts: int, tokens: int, device: torch.device) -> Tensor:
    """Offsets of uneven groups, as routers make them."""
    generator = torch.Generator().manual_seed(0)
    cuts = torch.randint(tokens + 1, (experts - 1,), generator=generator).sort().values
    return torch.cat([torch.tensor([0]), cuts, torch.tensor([tokens])]).to(device)


def _syrk_rivals(inputs: dict[torch.dtype, Tensor], offsets: Tensor | None) -> Iterator[Candidate]:
    x, half = inputs[torch.float32], inputs[torch.bfloat16]
    d = x.shape[1]
    groups = [] if offsets is None else [len(offsets) - 1]
    square = torch.zeros(*groups, d, d, device=x.device)  # shared: each checks its own result

    def candidate(name: str, x: Tensor, run: rivals.Run) -> Candidate:
        def error() -> float:
            square.zero_()
            return syrk_error(partial(square_elements, run()), x, offsets)

        return Candidate(name, x.dtype, run, error)

    if offsets is not None:
        run = rivals.addmm_per_expert(square, x, offsets)
        yield candidate("torch addmm, a loop", x, run)
        return
    yield candidate("torch addmm", x, rivals.addmm(square, x))
    if x.is_cuda:
        run = rivals.addmm_float32_output(square, half)
        yield candidate("torch addmm, float32 output", half, run)
        return
    symmetric = rivals.ssyrk(square, x)
    if symmetric is not None:
        yield candidate("OpenBLAS ssyrk", x, symmetric)


def _second_moment(m: int, n: int, tokens: int, device: torch.device, only: Only | None) -> Case:
    g, a = torch.randn(tokens, m, device=device), torch.randn(tokens, n, device=device)
    offsets = torch.arange(0, tokens + _SEQUENCE, _SEQUENCE, device=device).clamp(max=tokens)
    sequences, out = len(offsets) - 1, torch.zeros(m, n, device=device)

    def error(_: torch.dtype, run: Callable[[], object]) -> float:
        out.zero_()
        run()
        return second_moment_error(out, g, a, _SEQUENCE)

    dtype = torch.float32 if only is None else only[1]
    arguments = {dtype: (out, g.to(dtype), a.to(dtype), offsets)}
    candidates = [*_own("second_moment_accumulate", arguments, only, error)]
    fits = 4 * sequences * m * n <= _STORED and tokens % _SEQUENCE == 0
    if only is None and fits:
        stored = rivals.stored_gradients(g, a, _SEQUENCE)
        candidates.append(
            Candidate(
                "torch, stored gradients",
                dtype,
                stored,
                lambda: second_moment_error(stored(), g, a, _SEQUENCE),
            )
        )

    def size(dtype: torch.dtype) -> float:
        return tokens * (m + n) * dtype.itemsize + 8.0 * m * n

    work = 2.0 * tokens * m * n + 2.0 * sequences * m * n
    what = f"{m} x {n}, {tokens} tokens in sequences of {_SEQUENCE}"
    return Case("second_moment_accumulate", what, work, size, candidates)


def _projection(m: int, n: int, share: float, device: torch.device, only: Only | None) -> Case:
    lam, mu = (1.0 / torch.arange(1, size + 1, dtype=torch.float64) for size in (m, n))
    limits = ops.call("staircase_limits", lam, mu, share)[0]
    dtype = torch.float32 if only is None else only[1]
    w, reflections = torch.randn(m, n, device=device).to(dtype), Reflections.draw(m, n, device)
    arguments = (w, *reflections.bases(), limits.to(device))

    def error(_: torch.dtype, run: Callable[[], Tensor]) -> float:
        return reflections.error(run(), w, arguments[-1])

    candidates = [*_own("staircase_project", {dtype: arguments}, only, error)]
    if only is None:
        dense = rivals.four_dense_products(*arguments)
        candidates.append(
            Candidate("torch, four dense products", dtype, dense, partial(error, dtype, dense))
        )
    found = plan(limits.numpy(), n)
    used = float((limits > 0).sum()) * m + float(limits[0]) * n  # elements of the bases
    share_of_dense = found.operations / found.dense
    what = f"{m} x {n}, keeps {share:g} of the mass: {share_of_dense:.3f} of the dense operations"
    size = 2.0 * m * n * dtype.itemsize + 4.0 * used
    return Case("staircase_project", what, found.operations, lambda _: size, candidates)
