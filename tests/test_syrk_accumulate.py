"""Every backend of syrk_accumulate against float64, and on cases that never round."""

from itertools import pairwise

import pytest
import torch
from cases import integers, normal, run
from compare import assert_as_accurate

from curvedit import _C, ops
from curvedit.kernels import splits, tiles
from curvedit.kernels import syrk_accumulate_ref as reference_kernel
from curvedit.ops import cpu

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HALVES = [torch.bfloat16, torch.float16]
CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
SIZES = [(1, 1), (7, 5), (5, 7), (64, 127), (300, 128), (33, 129), (513, 257)]  # (tokens, d)
INTERPRETED = [(7, 5), (33, 129)]  # the interpreter takes a second per case
BACKENDS = ops.backends("syrk_accumulate")

sized = pytest.mark.parametrize(
    ("backend", "tokens", "d"),
    [(b, *size) for b in BACKENDS for size in (INTERPRETED if b == "triton" else SIZES)],
)
dtyped = pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)


def accumulate(x, weight, backend, start=None):
    """Dense result of accumulating onto ``start`` (packed; zeros by default)."""
    d = x.shape[1]
    out = tiles.zeros(d) if start is None else start.clone()
    _, placed = run("syrk_accumulate", out, x, weight, backend=backend, device=DEVICE)
    return tiles.unpack(placed[0].cpu(), d)


def reference(x, weight, dtype):
    out = tiles.zeros(x.shape[1], dtype=dtype)
    reference_kernel.syrk_accumulate(out, x.to(dtype), None if weight is None else weight.to(dtype))
    return tiles.unpack(out, x.shape[1])


@sized
@dtyped
@pytest.mark.parametrize("weighted", [False, True])
def test_matches_float64(backend, tokens, d, dtype, weighted):
    x = normal(tokens, d, dtype=dtype)
    weight = normal(tokens, seed=1).abs() if weighted else None
    got = (
        accumulate(x, weight, backend) if backend != "reference" or dtype == torch.float32 else None
    )
    if got is None:
        pytest.skip("the reference multiplies in the input's own precision")
    plain, truth = (reference(x, weight, as_) for as_ in (torch.float32, torch.float64))
    if backend == "wgmma" and (dtype == torch.float32 or (weighted and dtype == torch.float16)):
        assert (got - truth).norm() <= 2.0**-16 * truth.norm()  # the sum of two bfloat16
        return
    if backend in ("triton", "cuda", "wgmma") and weighted and dtype in HALVES:
        # the root is applied in half precision
        assert (got - truth).norm() <= 2 * torch.finfo(dtype).eps * truth.norm()
        assert torch.equal(got, got.T)
        return
    assert_as_accurate(got, plain, truth, truncated=tokens if dtype in HALVES else 0)


@sized
@dtyped
def test_is_exact_when_nothing_rounds(backend, tokens, d, dtype):
    x = integers(tokens, d, dtype=dtype)
    weight = integers(tokens, seed=2).abs().square()  # 0, 1, 4, 9, 16: their roots are exact
    start = tiles.pack(torch.ones(d, d))
    got = accumulate(x, weight, backend, start)
    assert torch.equal(got.double(), reference(x, weight, torch.float64) + 1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_tokens_of_weight_zero_are_not_read(backend):
    x = integers(20, 9)
    weight = torch.ones(20)
    weight[[0, 7, 19]] = 0
    expected = reference(x, weight, torch.float64)
    x[[0, 7, 19]] = torch.nan
    assert torch.equal(accumulate(x, weight, backend).double(), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_tokens_change_nothing(backend):
    start = tiles.pack(torch.ones(130, 130))
    assert torch.equal(accumulate(torch.empty(0, 130), None, backend, start), torch.ones(130, 130))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("view", ["columns", "transposed", "every second token"])
def test_strides_are_respected(backend, view):
    base = integers(40, 140)
    x = {
        "columns": base[:, 3:33],
        "transposed": base.T[:, :20],
        "every second token": base[::2, :30],
    }[view]
    assert not x.is_contiguous()
    assert torch.equal(accumulate(x, None, backend).double(), reference(x, None, torch.float64))


@pytest.mark.parametrize("backend", BACKENDS)
def test_storage_outside_of_the_matrix_is_not_read(backend):
    x, d = integers(40, 130), 130
    inside = tiles.pack(torch.ones(128 * 2, 128 * 2).tril()) > 0
    inside &= tiles.pack(torch.nn.functional.pad(torch.ones(d, d), (0, 126, 0, 126))) > 0
    start = torch.where(inside, 1.0, torch.nan)  # above the diagonal, and beyond the last row
    got = accumulate(x, None, backend, start)
    assert torch.equal(got.double(), reference(x, None, torch.float64) + 1)


@pytest.mark.parametrize("d", [1, 100, 128, 200, 300])
def test_memory_around_the_output_is_untouched(d):
    count = tiles.tile_count(d) * tiles.TILE**2
    memory = torch.full((count + 2000,), 7.0)
    out = memory[1000:-1000].view(-1, tiles.TILE, tiles.TILE)
    out.zero_()
    cpu.syrk_accumulate(out, normal(50, d))
    assert (memory[:1000] == 7).all()
    assert (memory[-1000:] == 7).all()


@pytest.mark.parametrize("instruction_set", _C.instruction_sets("syrk_accumulate"))
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
@pytest.mark.parametrize(("tokens", "d"), [(1, 17), (256, 130), (300, 700), (1029, 1100)])
def test_every_instruction_set_is_exact(instruction_set, dtype, tokens, d):
    x = integers(tokens, d, dtype=dtype)
    weights = {
        "none": None,
        "mask": (integers(tokens, seed=3) > 0).float(),
        "some": integers(tokens, seed=3).abs().square(),
    }
    for kind, weight in weights.items():
        outs = [tiles.pack(torch.ones(d, d)) for _ in range(2)]
        given = x if weight is None else torch.where(weight[:, None] > 0, x, torch.nan)
        sums = [(outs[0].data_ptr(), 0 if weight is None else weight.data_ptr())]
        if kind != "none":  # two sums of the same tokens
            sums.append((outs[1].data_ptr(), weights["mask"].data_ptr()))
        source = (given.data_ptr(), CODES[dtype], d, *given.stride())
        _C.syrk_accumulate(sums, *source, [0, tokens], 2, instruction_set)
        for out, by in zip(outs[: len(sums)], (weight, weights["mask"])[: len(sums)], strict=True):
            expected = reference(x.float(), by, torch.float32) + 1
            assert torch.equal(tiles.unpack(out, d), expected), kind


@pytest.mark.parametrize("instruction_set", _C.instruction_sets("syrk_accumulate"))
def test_every_half_is_converted_exactly(instruction_set):
    for code, dtype in ((1, torch.bfloat16), (2, torch.float16)):
        values = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
        for row in values[values.isfinite()].split(2048):
            row[0] = 1  # column 0 of the product is then the row itself
            out = tiles.zeros(len(row))
            _C.syrk_accumulate(
                [(out.data_ptr(), 0)],
                row.data_ptr(),
                code,
                len(row),
                0,
                1,
                [0, 1],
                1,
                instruction_set,
            )
            expected = row.float()
            if dtype == torch.bfloat16 and instruction_set in ("amx", "avx512_bf16"):
                expected[expected.abs() < 2.0**-126] = 0  # they take subnormals as 0
            assert torch.equal(tiles.unpack(out, len(row))[0], expected)


def test_both_ops_choose_from_the_same_instruction_sets():
    sets = _C.instruction_sets("syrk_accumulate")
    order = ["amx", "avx512_bf16", "avx512", "avx2", "portable"]
    assert sets == [name for name in order if name in sets]
    assert sets[-1] == "portable"
    without_amx = [name for name in sets if name != "amx"]
    assert _C.instruction_sets("second_moment_accumulate") == without_amx
    with pytest.raises(
        ValueError, match="op: expected syrk_accumulate or second_moment_accumulate, got"
    ):
        _C.instruction_sets("gram")


def test_an_unknown_instruction_set_is_refused():
    with pytest.raises(ValueError, match="this machine has no sse9"):
        _C.syrk_accumulate([(0, 0)], 0, 0, 1, 1, 1, [0, 0], 1, "sse9")


OFFSETS = torch.tensor([0, 13, 13, 40, 41])  # one group of 13 tokens, an empty one, 27, one


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("weighted", [False, True])
def test_groups_have_sums_of_their_own(backend, weighted):
    x, weight = integers(45, 130), integers(45, seed=2).abs().square() if weighted else None
    out = torch.stack([tiles.pack(torch.full((130, 130), float(g))) for g in range(4)])
    _, placed = run("syrk_accumulate", out, x, weight, OFFSETS, backend=backend, device=DEVICE)
    for g, (start, stop) in enumerate(pairwise(OFFSETS.tolist())):
        expected = (
            reference(x[start:stop], None if weight is None else weight[start:stop], torch.float64)
            + g
        )
        assert torch.equal(tiles.unpack(placed[0][g].cpu(), 130).double(), expected)


@pytest.mark.parametrize("offsets", [None, OFFSETS], ids=["together", "in groups"])
@pytest.mark.parametrize("processors", [1, 16])
def test_triton_shares_and_flushes_tokens(offsets, processors, monkeypatch):
    triton_kernel = pytest.importorskip("curvedit.kernels.syrk_accumulate_triton")
    monkeypatch.setattr(triton_kernel, "_processors", lambda _: processors)
    monkeypatch.setattr(triton_kernel, "FLUSH", 16)
    monkeypatch.setattr(splits, "_LEAST", 4)
    x, weight = integers(45, 130), integers(45, seed=2).abs().square()
    out = torch.ones(tiles.zeros(130).shape if offsets is None else (4, *tiles.zeros(130).shape))
    expected = out.clone()
    _, (got, *_) = run("syrk_accumulate", out, x, weight, offsets, backend="triton", device=DEVICE)
    ops.call("syrk_accumulate", expected, x, weight, offsets, backend="reference")
    for one, other in zip(
        got.cpu().view(-1, 3, 128, 128), expected.view(-1, 3, 128, 128), strict=True
    ):
        assert torch.equal(tiles.unpack(one, 130), tiles.unpack(other, 130))


@pytest.mark.parametrize("backend", ops.backends("syrk_accumulate_pair"))
@dtyped
@pytest.mark.parametrize("offsets", [None, OFFSETS], ids=["together", "in groups"])
def test_the_pair_is_both_sums(backend, dtype, offsets):
    x, weight = integers(45, 130, dtype=dtype), integers(45, seed=2).abs().square()
    mask = (torch.arange(45) % 3 > 0).float()
    shape = (
        tiles.zeros(130).shape if offsets is None else (len(offsets) - 1, *tiles.zeros(130).shape)
    )
    _, (plain, weighed, *_) = run(
        "syrk_accumulate_pair",
        torch.zeros(shape),
        torch.zeros(shape),
        x,
        weight,
        mask,
        offsets,
        backend=backend,
        device=DEVICE,
    )
    for got, by in ((plain, mask), (weighed, weight)):
        expected = torch.zeros(shape)
        ops.call("syrk_accumulate", expected, x.float(), by, offsets, backend="reference")
        for one, other in zip(
            got.cpu().view(-1, 3, 128, 128), expected.view(-1, 3, 128, 128), strict=True
        ):
            assert torch.equal(tiles.unpack(one, 130), tiles.unpack(other, 130))


def test_the_number_of_threads_changes_nothing():
    x = normal(700, 900)
    results = []
    before = torch.get_num_threads()
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append(accumulate(x, None, "cpp"))
    torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_subnormal_and_infinite_halves_are_converted():
    x = torch.tensor([[2.0**-24], [2.0**-15], [65504.0], [0.0], [-1.5]]).half()
    out = tiles.zeros(1)
    for row in x:
        out.zero_()
        cpu.syrk_accumulate(out, row[None])
        assert out[0, 0, 0] == row.float().square()
    cpu.syrk_accumulate(out, torch.full((1, 1), torch.inf).half())
    assert out[0, 0, 0] == torch.inf


def test_tokens_are_shared_where_tiles_are_few():
    assert splits.shares_of(36, 16384, 132) == 8  # d = 1024 on 132 processors: 36 tiles
    assert splits.shares_of(528, 16384, 132) == 1  # d = 4096: four waves
    assert splits.shares_of(1, 100, 132) == 1
    assert splits.shares_of(0, 0, 132) == 1


def test_packing_round_trip():
    for size in (1, 128, 129, 300):
        matrix = normal(size, size)
        matrix = matrix + matrix.T
        assert torch.equal(tiles.unpack(tiles.pack(matrix), size), matrix)
        assert tiles.pack(matrix).shape[0] == tiles.tile_count(size)


def test_a_planted_fault_is_seen():
    x = normal(300, 129)
    got = accumulate(x, None, "cpp")
    got[128, 5] = 0
    with pytest.raises(AssertionError, match="error"):
        assert_as_accurate(
            got, reference(x, None, torch.float32), reference(x, None, torch.float64)
        )


def test_an_unmeasured_backend_runs_by_name_only():
    out, x = tiles.zeros(3), torch.ones(4, 3)
    assert ops.choose("syrk_accumulate", out, x).backend == "cpp"
    with pytest.raises(RuntimeError, match="has no backend 'opencl'"):
        ops.choose("syrk_accumulate", out, x, backend="opencl")
