"""Projections, their halves and second moments by every backend, beside torch's dense products.

python benchmarks/gpu_measure/staircase.py --json FILE

``of_dense`` is the time over that of the dense projection in the same precision of the same case;
errors are against float64, of the largest element (``error``) and of the norm (``rms``).
"""

import sys
from functools import partial

import common
import torch

from curvedit import ops
from curvedit.bench import rivals, second_moment_error

_SEQUENCES = 16
_AHEAD = 1e-3  # seconds: most of our calls wait for the device themselves
_DENSE = {"dense float32": "highest", "dense TF32": "high"}


def run(session):
    shapes = ((136, 72),) if session.dry else common.STAIRCASE_SHAPES
    _projections(session, shapes[0], exponents=common.EXPONENTS[:2])
    moments = ((72, 136, 256),) if session.dry else _MOMENTS
    todo = {
        f"second moments {m}x{n} tokens={tokens} {dtype}": (m, n, tokens, dtype)
        for m, n, tokens in moments
        for dtype in ("bfloat16", "float32")
    }
    for name in session.cases(todo, 1.5):
        _moments(session, *todo[name])
    _projections(session, shapes[0], exponents=common.EXPONENTS[2:], halves=True)
    for shape in shapes[1:]:
        _projections(session, shape, exponents=common.EXPONENTS)


_MOMENTS = ((4096, 11008, 16384), (11008, 4096, 16384), (4096, 4096, 16384), (4096, 4096, 4096))


def orthogonal(size, device):
    """A dense reflection in half of a space: I - 2 V V^T, to the precision of float32."""
    z = torch.randn(size, size // 2, dtype=torch.float64, device=device)
    lower = torch.linalg.cholesky(z.mT @ z)
    v = torch.linalg.solve_triangular(lower, z.mT, upper=False)
    return (torch.eye(size, dtype=torch.float64, device=device) - 2 * (v.mT @ v)).float()


class _Bases:
    """A weight, its bases and what comes of them in float64."""

    def __init__(self, device, m, n):
        self.w = torch.randn(m, n, device=device)
        self.u_out, self.u_in = orthogonal(m, device), orthogonal(n, device)
        self.turned = self.u_out.mT.double() @ self.w.double() @ self.u_in.double()

    def truth(self, op, mask):
        """In float64: the projection, or the half that ``op`` is."""
        if op == "rotate":
            return self.turned * mask
        kept = (self.turned if op == "project" else self.turned.float().double()) * mask
        return self.u_out.double() @ kept @ self.u_in.mT.double()

    def source(self, op):
        return self.turned.float() if op == "restore" else self.w


def _projections(session, shape, exponents, *, halves=False):
    m, n = shape
    todo = {
        common.staircase_case(m, n, a, share): (a, share, "project")
        for a in exponents
        for share in common.SHARES
    }
    if halves:
        for op in ("rotate", "restore"):
            todo |= {
                common.staircase_case(m, n, a, 0.8, op): (a, 0.8, op) for a in common.EXPONENTS[:2]
            }
    bases = None
    for name in session.cases(todo, 2):
        bases = bases or _Bases(session.device, m, n)
        _project(session, bases, *todo[name])


def _project(session, bases, exponent, share, op):
    m, n = bases.w.shape
    lam, mu = (torch.arange(1, size + 1).double() ** -exponent for size in (m, n))
    found = ops.call("staircase_limits", lam, mu, share)[0]
    todo = ops.plan(found.numpy(), n)
    limits = found.to(session.device)
    mask = torch.arange(n, device=session.device) < limits[:, None]
    arguments = (bases.source(op), bases.u_out, bases.u_in, limits)
    candidates = {
        name: partial(common.at(precision, _dense), op, *arguments[:3], mask)
        for name, precision in _DENSE.items()
    }
    for backend, why in reversed(ops.explain(f"staircase_{op}", *arguments).items()):
        if backend != "reference" and not why:
            chosen = ops.choose(f"staircase_{op}", *arguments, backend=backend)
            candidates[f"curvedit {backend}"] = partial(chosen, *arguments)
    torch_backend = ops.choose(f"staircase_{op}", *arguments, backend="torch")
    candidates["curvedit torch in TF32"] = partial(common.at("high", torch_backend), *arguments)
    share_of_dense = todo.operations / todo.dense
    facts = {"kept": int(found.sum()), "operations_of_dense": round(share_of_dense, 4)}
    truth = bases.truth(op, mask)
    _compare(session, candidates, partial(_errors, truth), facts | {"dense_operations": todo.dense})


def _dense(op, w, u_out, u_in, mask):
    if op != "restore":
        w = u_out.mT @ w @ u_in
    w = w * mask
    if op != "rotate":
        w = u_out @ w @ u_in.mT
    return w


def _errors(truth, run):
    off = run().double() - truth
    largest = float(off.abs().max() / truth.abs().max())
    return {"error": largest, "rms": float(off.norm() / truth.norm())}


def _compare(session, candidates, errors, facts):
    off = {name: session.attempt(name, partial(errors, run)) for name, run in candidates.items()}
    runs = {
        name: lambda _, run=run: run() for name, run in candidates.items() if off[name] is not None
    }
    timed = common.interleaved(session, runs, rounds=10, budget=2.5, ahead=_AHEAD)
    dense = {name: timed.get(name, {}).get("ms") for name in _DENSE}
    for name, found in timed.items():
        for of, its in (("of_dense", "dense float32"), ("of_dense_tf32", "dense TF32")):
            found |= {of: round(found["ms"] / dense[its], 4)} if dense[its] else {}
        found |= {key: float(f"{value:.3g}") for key, value in off[name].items()}
        session.write("row", candidate=name, **facts, **found)
        shown = f"{found.get('of_dense')} of dense, {found.get('of_dense_tf32')} of TF32"
        session.show(name, f"{found['ms']:9.3f} ms, {shown}, off {found['error']:.1e}")


def _moments(session, m, n, tokens, dtype):
    kind, length = getattr(torch, dtype), tokens // _SEQUENCES
    sizes = session.sets(tokens * (m + n) * kind.itemsize)
    pairs = [
        [torch.randn(tokens, size, device=session.device).to(kind) for size in (m, n)]
        for _ in range(min(3, sizes))
    ]
    out = torch.zeros(m, n, device=session.device)
    offsets = torch.arange(0, tokens + length, length, device=session.device)
    candidates = {}
    for name, precision in {"": "highest", " in TF32": "high"}.items():
        if name and kind != torch.float32:
            continue
        runs = [common.at(precision, rivals.stored_gradients(g, a, length)) for g, a in pairs]
        candidates[f"torch, stored gradients{name}"] = runs, True
        runs = [common.at(precision, rivals.one_product(g, a)) for g, a in pairs]
        candidates[f"torch, one product{name}, a bound"] = runs, False
    given = [(out, g, a, offsets) for g, a in pairs]
    op = "second_moment_accumulate"
    for backend, why in reversed(ops.explain(op, *given[0]).items()):
        if backend != "reference" and not why:
            runs = [partial(ops.choose(op, *each, backend=backend), *each) for each in given]
            candidates[f"curvedit {backend}"] = runs, None
    _compare_moments(session, candidates, out, *pairs[0], length)


def _compare_moments(session, candidates, out, g, a, length):
    def error(run, returns):
        out.zero_()
        result = run()
        return (
            0.0
            if returns is False
            else second_moment_error(result if returns else out, g, a, length)
        )

    off, runs = {}, {}
    for name, (calls, returns) in candidates.items():
        off[name] = session.attempt(name, partial(error, calls[0], returns))
        if off[name] is not None:
            runs[name] = lambda i, calls=calls: calls[i % len(calls)]()
    work = 2.0 * (len(g) + _SEQUENCES) * out.numel()
    for name, found in common.interleaved(
        session, runs, rounds=10, budget=2.5, ahead=_AHEAD
    ).items():
        rate = 1e-9 * work / found["ms"]
        found |= {"tflops": round(rate, 2), "error": float(f"{off[name]:.3g}")}
        session.write("row", candidate=name, **found)
        session.show(name, f"{found['ms']:9.3f} ms {rate:8.1f} TFLOP/s, off {off[name]:.1e}")


if __name__ == "__main__":
    sys.exit(common.main(__doc__, run, seconds=30))
