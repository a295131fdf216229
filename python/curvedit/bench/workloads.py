"""What ``curvedit bench`` times: the kernels at the shapes of real models, each backend beside its rivals."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from curvedit import ops
from curvedit.bench.timing import Candidate, Case
from curvedit.ops import plan, tiles

MODELS = {  # hidden and intermediate size; experts
    "olmo2-1b": (2048, 8192, 0),
    "olmo2-7b": (4096, 11008, 0),
    "llama-3.1-8b": (4096, 14336, 0),
    "qwen3-14b": (5120, 17408, 0),
    "qwen3-30b-a3b": (2048, 768, 128),
}
OPS = ("syrk_accumulate", "second_moment_accumulate", "staircase_project")
SHARES = (0.6, 0.8, 0.95)  # of the mass of 1/i spectra that a projection keeps
_SEQUENCE = 128  # tokens
_SAMPLE = 256  # elements checked
_STORED = 1 << 32  # bytes of stored gradients that a rival may take

At = Callable[[int, Tensor, Tensor], Tensor]  # (group, rows, columns) to the elements of a result


def cases(
    op: str,
    shapes: Iterable[tuple[int, int, int]],
    *,
    tokens: int,
    device: torch.device,
    only: tuple[str, torch.dtype] | None = None,
) -> Iterator[Case]:
    """Cases of one kernel, made one at a time.

    Args:
        op: One of ``OPS``.
        shapes: Hidden and intermediate size of an MLP, and its experts, 0 for none.
        tokens: Of the input, shared among experts.
        device: Where.
        only: A backend and an input dtype; no rivals then, and no checks.

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


def _backends(
    op: str,
    arguments: Callable[[torch.dtype], tuple[object, ...]],
    only: tuple[str, torch.dtype] | None,
    dtypes: Sequence[torch.dtype],
) -> Iterator[tuple[str, torch.dtype]]:
    """Backends that can run, with the dtypes they can run on."""
    if only is not None:
        ops.choose(op, *arguments(only[1]), backend=only[0])
        yield only
        return
    for backend in ops.backends(op):
        for dtype in dtypes:
            if backend == "reference":
                continue
            try:
                ops.choose(op, *arguments(dtype), backend=backend)
            except RuntimeError:
                continue
            yield backend, dtype


def _syrk(
    d: int, experts: int, tokens: int, device: torch.device, only: tuple[str, torch.dtype] | None
) -> Case:
    dtypes = (torch.float32, torch.bfloat16) if only is None else (only[1],)
    x = torch.randn(tokens, d, device=device)
    inputs = {dtype: x.to(dtype) for dtype in dtypes}
    offsets = _routed(experts, tokens, device) if experts else None
    groups = [experts] if experts else []
    out = torch.zeros(*groups, tiles.tile_count(d), tiles.TILE, tiles.TILE, device=device)

    def at(group: int, rows: Tensor, columns: Tensor) -> Tensor:
        packed = out if offsets is None else out[group]
        row, column = rows // tiles.TILE, columns // tiles.TILE
        return packed[row * (row + 1) // 2 + column, rows % tiles.TILE, columns % tiles.TILE]

    candidates = []
    for backend, dtype in _backends(
        "syrk_accumulate", lambda t: (out, inputs[t], None, offsets), only, dtypes
    ):
        run = partial(
            ops.call, "syrk_accumulate", out, inputs[dtype], None, offsets, backend=backend
        )
        error = partial(_syrk_error, inputs[dtype], offsets, run, out.zero_, at)
        candidates.append(Candidate(f"curvedit {backend}", dtype, run, error))
    if only is None:
        candidates += (
            _syrk_loop(d, inputs, offsets) if offsets is not None else _syrk_rivals(d, inputs)
        )

    def size(dtype: torch.dtype) -> float:
        return tokens * d * dtype.itemsize + 2.0 * 4 * max(1, experts) * d * (d + 1) / 2

    what = f"d = {d}, {tokens} tokens" + (f" of {experts} experts" if experts else "")
    return Case("syrk_accumulate", what, tokens * d * (d + 1.0), size, candidates)


def _routed(experts: int, tokens: int, device: torch.device) -> Tensor:
    """Offsets of uneven groups, as routers make them."""
    cuts = (
        torch.randint(tokens + 1, (experts - 1,), generator=torch.Generator().manual_seed(0))
        .sort()
        .values
    )
    return torch.cat([torch.tensor([0]), cuts, torch.tensor([tokens])]).to(device)


def _syrk_rivals(d: int, inputs: dict[torch.dtype, Tensor]) -> Iterator[Candidate]:
    x, half = inputs[torch.float32], inputs[torch.bfloat16]
    square = torch.zeros(d, d, device=x.device)

    def at(_: int, rows: Tensor, columns: Tensor) -> Tensor:
        return square[rows, columns]

    def candidate(name: str, x: Tensor, run: Callable[[], object]) -> Candidate:
        return Candidate(name, x.dtype, run, partial(_syrk_error, x, None, run, square.zero_, at))

    yield candidate("torch addmm", x, lambda: square.addmm_(x.mT, x))
    if x.is_cuda:

        def addmm() -> None:
            torch.addmm(square, half.mT, half, out_dtype=torch.float32, out=square)

        yield candidate("torch addmm, float32 output", half, addmm)
        return
    try:
        from scipy.linalg import blas  # type: ignore[import-untyped]
    except ImportError:
        return
    packed, columns_first = (
        square.numpy().T,
        x.numpy().T,
    )  # the upper triangle by columns is the lower by rows

    def ssyrk() -> None:
        blas.ssyrk(1.0, columns_first, 1.0, packed, trans=0, lower=0, overwrite_c=1)

    yield candidate("OpenBLAS ssyrk", x, ssyrk)


def _syrk_loop(d: int, inputs: dict[torch.dtype, Tensor], offsets: Tensor) -> Iterator[Candidate]:
    """What there is for experts: one product after the other."""
    x = inputs[torch.float32]
    square = torch.zeros(len(offsets) - 1, d, d, device=x.device)
    bounds = offsets.tolist()

    def run() -> None:
        for group, (start, stop) in enumerate(pairwise(bounds)):
            square[group].addmm_(x[start:stop].mT, x[start:stop])

    error = partial(_syrk_error, x, offsets, run, square.zero_, lambda g, r, c: square[g, r, c])
    yield Candidate("torch addmm, a loop", torch.float32, run, error)


def _syrk_error(
    x: Tensor,
    offsets: Tensor | None,
    run: Callable[[], object],
    clear: Callable[[], object],
    at: At,
) -> float:
    """Relative to the roots of an element's two diagonal elements."""
    rows, columns = _sampled(x.shape[1], x.shape[1], x.device)
    rows, columns = torch.maximum(rows, columns), torch.minimum(rows, columns)
    bounds = [0, len(x)] if offsets is None else offsets.tolist()
    clear()
    run()
    worst = 0.0
    for group in {0, len(bounds) // 2, len(bounds) - 2} & set(range(len(bounds) - 1)):
        part = x[bounds[group] : bounds[group + 1]].double()
        left, right = part[:, rows], part[:, columns]
        scale = (left.square().sum(0) * right.square().sum(0)).sqrt().clamp_min(1e-30)
        off = at(group, rows, columns).double() - (left * right).sum(0)
        worst = max(worst, float((off.abs() / scale).max()))
    return worst


def _sampled(rows: int, columns: int, device: torch.device) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    row, column = (
        torch.randint(size, (_SAMPLE,), generator=generator).to(device) for size in (rows, columns)
    )
    return row, column


def _second_moment(
    m: int, n: int, tokens: int, device: torch.device, only: tuple[str, torch.dtype] | None
) -> Case:
    g, a = torch.randn(tokens, m, device=device), torch.randn(tokens, n, device=device)
    offsets = torch.arange(0, tokens + _SEQUENCE, _SEQUENCE, device=device).clamp(max=tokens)
    sequences, out = len(offsets) - 1, torch.zeros(m, n, device=device)

    def arguments(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return out, g.to(dtype), a.to(dtype), offsets

    def error(run: Callable[[], object], result: Callable[[], Tensor]) -> float:
        rows, columns = _sampled(m, n, device)
        products = torch.zeros(sequences, _SAMPLE, dtype=torch.float64, device=device)
        sequence = torch.arange(tokens, device=device) // _SEQUENCE
        products.index_add_(0, sequence, g[:, rows].double() * a[:, columns].double())
        truth = products.square().sum(0)
        out.zero_()
        run()
        return float(
            ((result()[rows, columns].double() - truth).abs() / truth.clamp_min(1e-30)).max()
        )

    candidates = []
    for backend, dtype in _backends("second_moment_accumulate", arguments, only, (torch.float32,)):
        run = partial(ops.call, "second_moment_accumulate", *arguments(dtype), backend=backend)
        candidates.append(
            Candidate(f"curvedit {backend}", dtype, run, partial(error, run, lambda: out))
        )
    if only is None and 4 * sequences * m * n <= _STORED and tokens % _SEQUENCE == 0:
        kept: list[Tensor] = []

        def stored() -> None:
            gradients = torch.bmm(g.view(sequences, -1, m).mT, a.view(sequences, -1, n))
            kept[:] = [gradients.square_().sum(0)]

        candidates.append(
            Candidate(
                "torch, stored gradients", g.dtype, stored, partial(error, stored, lambda: kept[0])
            )
        )
    work = 2.0 * tokens * m * n + 2.0 * sequences * m * n
    what = f"{m} x {n}, {tokens} tokens in sequences of {_SEQUENCE}"
    return Case(
        "second_moment_accumulate",
        what,
        work,
        lambda t: tokens * (m + n) * t.itemsize + 8.0 * m * n,
        candidates,
    )


def _projection(
    m: int, n: int, share: float, device: torch.device, only: tuple[str, torch.dtype] | None
) -> Case:
    """Bases are reflections, whose products with anything take few operations: the truth is in float64."""
    spectra = [1.0 / torch.arange(1, size + 1, dtype=torch.float64) for size in (m, n)]
    limits = ops.call("staircase_limits", *spectra, share)[0]
    w = torch.randn(m, n, device=device)
    mirrors = [
        torch.nn.functional.normalize(torch.randn(size, device=device).double(), dim=0)
        for size in (m, n)
    ]
    u_out, u_in = (
        (torch.eye(len(mirror), device=device) - 2 * torch.outer(mirror, mirror).float())
        for mirror in mirrors
    )
    found, on_device = plan(limits.numpy(), n), limits.to(device)

    def reflected(x: Tensor) -> Tensor:
        x = x - 2 * torch.outer(mirrors[0], mirrors[0] @ x)
        return x - 2 * torch.outer(x @ mirrors[1], mirrors[1])

    def error(run: Callable[[], Tensor]) -> float:
        kept = torch.arange(n, device=device) < on_device[:, None]
        truth = reflected(reflected(w.double()) * kept)
        return float((run().double() - truth).abs().max() / truth.abs().max())

    candidates = []
    for backend, dtype in _backends(
        "staircase_project", lambda _: (w, u_out, u_in, on_device), only, (w.dtype,)
    ):
        run = partial(ops.call, "staircase_project", w, u_out, u_in, on_device, backend=backend)
        candidates.append(Candidate(f"curvedit {backend}", dtype, run, partial(error, run)))
    if only is None:
        dense = partial(
            ops.call, "staircase_project", w, u_out, u_in, on_device, backend="reference"
        )
        candidates.append(
            Candidate("torch, four dense products", w.dtype, dense, partial(error, dense))
        )
    used = float((limits > 0).sum()) * m + float(limits[0]) * n
    what = f"{m} x {n}, keeps {share:g} of the mass: {found.operations / found.dense:.3f} of the dense operations"
    return Case(
        "staircase_project", what, found.operations, lambda _: 4.0 * (2 * m * n + used), candidates
    )
