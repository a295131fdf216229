"""``syrk_accumulate`` by every backend beside torch's full products, at the widths of LLMs.

python benchmarks/gpu_measure/syrk.py --json FILE

Work is counted as tokens d (d + 1) operations, whoever does more. ``speedup`` is over ``addmm``
with half-precision output, which the goals are stated against; ``of_limit`` is the share of the
rate of the fastest full product measured here, of this shape or of an 8192-square.
"""

import sys
from functools import partial

import common
import torch

from curvedit import ops
from curvedit.bench import packed_elements, square_elements, syrk_error
from curvedit.ops import tiles

GOAL = "torch addmm"
FULL = (GOAL, "torch addmm, float32 output", "torch mm, float32 output, add")
_PRECISIONS = {"float32": "highest", "TF32": "high"}


def run(session):
    rate = _large_product(session)
    todo = _cases(session)
    for name in session.cases(todo, 1.5):
        _measure(session, Inputs(session, *todo[name]), rate)


def _cases(session):
    """Name to (d, tokens, dtype, variant)."""
    widths, tokens = (
        ((136, 264), (256,)) if session.dry else (common.SYRK_SIZES, common.SYRK_TOKENS)
    )
    small, wide = min(widths[-1], 4096) if session.dry else 4096, max(widths)
    found = [(d, count, "bfloat16", "") for count in tokens for d in widths]
    found += [(d, tokens[0], "bfloat16", kind) for d in (small, wide) for kind in _KINDS]
    found += [(small, tokens[0], dtype, "") for dtype in ("float16", "float32")]
    return {common.syrk_case(*each): each for each in found}


_KINDS = ("weighted", "pair")


class Inputs:
    """Several sets of inputs and outputs of one case, which do not fit the L2 cache together."""

    def __init__(self, session, d, tokens, dtype, kind):
        self.d, self.tokens, self.kind, self.dtype = d, tokens, kind, getattr(torch, dtype)
        self.device, self.count = session.device, session.sets(tokens * d * self.dtype.itemsize)
        self.scale = 0.1 if dtype == "float16" else 1.0  # sums of squares must not overflow
        wide = [self._normal(tokens, d) for _ in range(self.count)]
        self.x = [each.to(self.dtype) for each in wide]
        self.x32 = [each.float() for each in self.x]
        self.weight = torch.rand(tokens, device=self.device) if kind else None
        self.packed = [[tiles.zeros(d, device=self.device) for _ in self.x] for _ in range(2)]
        self.square, self.square32 = (
            [torch.zeros(d, d, dtype=dtype, device=self.device) for _ in self.x]
            for dtype in (self.dtype, torch.float32)
        )

    def _normal(self, *shape):
        return torch.empty(*shape, device=self.device).normal_() * self.scale

    @property
    def work(self):
        """Operations that the result takes."""
        return self.tokens * self.d * (self.d + 1.0) * (2 if self.kind == "pair" else 1)

    def error(self, elements, *, weighted):
        """The largest sampled error of what set 0 holds."""
        x = self.x[0].double()
        return syrk_error(elements, x * self.weight.double().sqrt()[:, None] if weighted else x)


def own(session, inputs):
    """Name to (call of a set's number, error) of every backend that takes this case."""
    op = "syrk_accumulate_pair" if inputs.kind == "pair" else "syrk_accumulate"
    outs = inputs.packed if inputs.kind == "pair" else inputs.packed[:1]
    rest = (inputs.weight,) if inputs.kind else ()
    sets = [(*(out[i] for out in outs), x, *rest) for i, x in enumerate(inputs.x)]

    def error(call):
        for out in outs:
            out[0].zero_()
        call(0)
        return max(
            inputs.error(partial(packed_elements, out[0]), weighted=weighted)
            for out, weighted in zip(outs, _weighted(inputs.kind), strict=True)
        )

    found = {}
    for backend, why in reversed(ops.explain(op, *sets[0]).items()):
        if backend == "reference" or why:
            session.write("refused", candidate=backend, why=why or "a reference")
            continue
        calls = [partial(ops.choose(op, *given, backend=backend), *given) for given in sets]
        found[f"curvedit {backend}"] = (lambda i, calls=calls: calls[i % len(calls)](), error)
    return found


def _weighted(kind):
    """Which of the outputs are weighted."""
    return {"": (False,), "weighted": (True,), "pair": (False, True)}[kind]


def rivals(inputs):
    """The same for torch's products, which compute the whole square; a pair takes two."""
    x, x32, weight = inputs.x, inputs.x32, inputs.weight
    times = 2 if inputs.kind == "pair" else 1

    def plain(i):
        inputs.square[i % len(x)].addmm_(x[i % len(x)].mT, x[i % len(x)])

    def into_float32(i):
        square, rows = inputs.square32[i % len(x)], x[i % len(x)]
        torch.addmm(square, rows.mT, rows, out_dtype=torch.float32, out=square)

    def then_added(i):
        rows = x[i % len(x)]
        inputs.square32[i % len(x)] += torch.mm(rows.mT, rows, out_dtype=torch.float32)

    def wide(i):
        rows = x32[i % len(x)]
        left = rows if weight is None else rows * weight[:, None]
        inputs.square32[i % len(x)].addmm_(left.mT, rows)

    calls = {GOAL: (plain, inputs.square, False)}
    if inputs.dtype != torch.float32:
        calls |= {
            FULL[1]: (into_float32, inputs.square32, False),
            FULL[2]: (then_added, inputs.square32, False),
        }
    for name, precision in _PRECISIONS.items():
        call = common.at(precision, wide)
        calls[f"torch addmm of {name}"] = (call, inputs.square32, weight is not None)
    return {
        name: (_repeated(call, times), partial(_square_error, inputs, squares, weighted, times))
        for name, (call, squares, weighted) in calls.items()
    }


def _repeated(call, times):
    return call if times == 1 else lambda i: (call(i), call(i))


def _square_error(inputs, squares, weighted, times, call):
    squares[0].zero_()
    call(0)
    squares[0].div_(times)
    return inputs.error(partial(square_elements, squares[0]), weighted=weighted)


def _large_product(session):
    side, session.case = 256 if session.dry else 8192, "product 8192"
    x = torch.randn(side, side, device=session.device).bfloat16()
    timed = common.interleaved(session, {"bfloat16": lambda _: x.mT @ x})
    rate = 0.0
    for name, found in timed.items():
        rate = 2e-9 * side**3 / found["ms"]
        session.write("row", candidate=name, tflops=round(rate, 2), **found)
    return rate


def _measure(session, inputs, rate):
    candidates = {**rivals(inputs), **own(session, inputs)}
    errors = {
        name: session.attempt(name, partial(error, call))
        for name, (call, error) in candidates.items()
    }
    runs = {name: candidates[name][0] for name, error in errors.items() if error is not None}
    timed = common.interleaved(session, runs, budget=4)
    rates = {name: 1e-9 * inputs.work / found["ms"] for name, found in timed.items()}
    full = [2 * inputs.d / (inputs.d + 1) * rates[name] for name in FULL if name in rates]
    limit = max([rate if inputs.dtype != torch.float32 else 0.0, *full])
    for name, found in timed.items():
        found |= {
            "tflops": round(rates[name], 2),
            "speedup": round(rates[name] / rates[GOAL], 4) if GOAL in rates else None,
            "of_limit": round(rates[name] / limit, 4) if limit else None,
            "error": float(f"{errors[name]:.3g}"),
        }
        session.write("row", candidate=name, full_tflops=round(limit, 2), **found)
        text = f"{found['ms']:9.3f} ms {found['tflops']:8.1f} TFLOP/s, {found['speedup']} x addmm,"
        session.show(name, f"{text} {found['of_limit']} of the limit, off {errors[name]:.1e}")


if __name__ == "__main__":
    sys.exit(common.main(__doc__, run, seconds=40))
