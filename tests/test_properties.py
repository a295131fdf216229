"""Properties that hold for every input: staircases, plans, tiles, thresholds, backends.

Hypothesis draws the inputs from a fixed seed, so a run can be repeated. Where arithmetic rounds,
the truth is computed with fractions and the tolerance follows from the number of roundings.
"""

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from cases import integers, permutation
from hypothesis import given, settings
from hypothesis import strategies as st

from curvedit import ops
from curvedit.kernels import staircase_limits_ref, staircase_project_plan, staircase_project_ref
from curvedit.kernels.staircase_project_plan import plan
from curvedit.ops import tiles
from curvedit.ranking.thresholds import ProductScores, TableScores, common_threshold

# No database: an example found once on one machine must not decide what another machine tests.
repeatable = settings(derandomize=True, deadline=None, database=None, max_examples=60)

SHARES = st.one_of(
    st.integers(1, 1000).map(lambda n: n / 1000),
    st.floats(1e-12, 1.0),
    st.sampled_from([0.25, 0.5, 1.0, 1.0 - 2.0**-53, 2.0**-53]),
)
EPSILON = Fraction(1, 2**52)


def descending(values):
    return torch.tensor(sorted(values, reverse=True), dtype=torch.float64)


def spectra(values):
    return st.lists(values, min_size=1, max_size=8).map(descending)


WHOLE = spectra(st.integers(0, 4))  # ties and zeros; every sum is exact
NEAR = spectra(st.integers(0, 1000).map(lambda n: n / 1000))  # sums round
# Products from 1e-280 to 1e280, often 1e-20 of their neighbours.
WIDE = spectra(
    st.builds(lambda n, power: n / 1000 * 10.0**power, st.integers(0, 1000), st.integers(-139, 139))
)
ALL = st.tuples(WHOLE, WHOLE) | st.tuples(NEAR, NEAR) | st.tuples(WIDE, WIDE)
ROUNDED = st.tuples(NEAR, NEAR) | st.tuples(WIDE, WIDE)


def row_major(lam, mu):
    """Products from the largest down, ties row by row: ((i, j), float64 product, exact product)."""
    pairs = [(i, j) for i in range(len(lam)) for j in range(len(mu))]
    rounded = (lam[:, None] * mu).tolist()
    pairs.sort(key=lambda pair: -rounded[pair[0]][pair[1]])
    return [
        ((i, j), rounded[i][j], Fraction(float(lam[i])) * Fraction(float(mu[j]))) for i, j in pairs
    ]


def rounding(lam, mu):
    """Bound on the relative error of a sum of products: one rounding per term and per addition."""
    return 2 * (len(lam) * len(mu) + 2) * EPSILON


@repeatable
@given(spectra=ALL, share=SHARES)
def test_staircase_limits_hold_the_share_and_no_more(spectra, share):
    lam, mu = spectra
    limits, threshold, kept, mass = ops.call("staircase_limits", lam, mu, share, backend="cpp")
    ordered = row_major(lam, mu)
    total = sum(exact for *_, exact in ordered)
    slack = rounding(lam, mu) * total
    assert 0 <= int(limits.min()) <= int(limits.max()) <= len(mu)
    assert not (limits.diff() > 0).any()
    assert kept == int(limits.sum())
    if share == 1.0:
        assert kept == len(ordered)
        assert mass == 1.0
        return
    if total == 0:
        assert (kept, mass, threshold) == (0, 0.0, float("inf"))
        return
    # What is kept is the head of the row-major order, ties included.
    assert {pair for pair, *_ in ordered[:kept]} == {
        (i, j) for i, limit in enumerate(limits.tolist()) for j in range(limit)
    }
    assert threshold == ordered[kept - 1][1]
    held = sum(exact for *_, exact in ordered[:kept])
    target = Fraction(share) * total
    assert held >= target - slack
    assert held - ordered[kept - 1][2] < target + slack
    assert abs(Fraction(mass) * total - held) <= slack


@repeatable
@given(lam=WHOLE, mu=WHOLE, share=SHARES, edge=st.integers(0, 35))
def test_staircase_limits_equal_the_reference_at_every_edge(lam, mu, share, edge):
    """Sums of whole numbers do not round, so that a share may be that of a partial sum itself."""
    ordered = row_major(lam, mu)
    total = sum(product for _, product, _ in ordered)
    partial = sum(product for _, product, _ in ordered[: edge % len(ordered) + 1])
    for wanted in (share, partial / total if partial else share):
        got = ops.call("staircase_limits", lam, mu, wanted, backend="cpp")
        expected = staircase_limits_ref.staircase_limits(lam, mu, wanted)
        assert torch.equal(got[0], expected[0])
        assert got[1:3] == expected[1:3]
        assert got[3] == pytest.approx(expected[3], rel=1e-15)


@repeatable
@given(spectra=ROUNDED, share=SHARES)
def test_staircase_limits_equal_the_reference_away_from_edges(spectra, share):
    lam, mu = spectra
    ordered = row_major(lam, mu)
    total = sum(exact for *_, exact in ordered)
    partial, away = Fraction(0), True
    for *_, exact in ordered:
        partial += exact
        away &= abs(partial - Fraction(share) * total) > rounding(lam, mu) * total
    got = ops.call("staircase_limits", lam, mu, share, backend="cpp")
    expected = staircase_limits_ref.staircase_limits(lam, mu, share)
    if away or share == 1.0:
        assert torch.equal(got[0], expected[0])
        assert got[1:3] == expected[1:3]
    assert got[3] == pytest.approx(expected[3], abs=float(rounding(lam, mu))) or not away


@repeatable
@given(spectra=ALL, shares=st.lists(SHARES, min_size=2, max_size=6))
def test_staircase_limits_grow_with_the_share(spectra, shares):
    lam, mu = spectra
    found = [ops.call("staircase_limits", lam, mu, share)[0] for share in sorted(shares)]
    for fewer, more in pairwise(found):
        assert (fewer <= more).all()


@st.composite
def staircases(draw, most=40):
    """(limits, columns): any non-increasing numbers, long runs of equal ones among them."""
    columns = draw(st.integers(1, most))
    limits = draw(st.lists(st.integers(0, columns), min_size=1, max_size=8))
    runs = draw(st.lists(st.integers(1, 12), min_size=len(limits), max_size=len(limits)))
    return np.repeat(sorted(limits, reverse=True), runs), columns


def small_bands(patch, least, most):
    """Bands and chunks of few lines, so that small matrices have many of either."""
    patch.setattr(staircase_project_plan, "_LEAST", least)
    patch.setattr(staircase_project_plan.Part, "most", property(lambda _: most))
    patch.setattr(staircase_project_plan, "_OVERHEAD", -1e30)  # every plan pays


BANDS = st.tuples(st.integers(1, 4), st.integers(4, 16))


@repeatable
@given(case=staircases(), complement=st.sampled_from([None, False, True]), bands=BANDS)
def test_a_plan_covers_its_side_exactly_once(case, complement, bands):
    limits, n = case
    m = len(limits)
    with pytest.MonkeyPatch.context() as patch:
        small_bands(patch, *bands)
        found = plan(limits, n, complement=complement)
        times, operations = np.zeros((m, n), dtype=int), 0
        for part in found.parts:
            lines = times if part.by_rows else times.T
            area, reached = int((part.end - part.begin).sum()), []
            operations += 4 * m * n * len(part.begin) + 4 * area * (n if part.by_rows else m)
            for band in (band for chunk in part.chunks() for band in chunk):
                for line in range(band.start, band.stop):
                    low, high = part.begin[line - part.first], part.end[line - part.first]
                    assert band.low <= low <= high <= band.high
                    lines[line, low:high] += 1
                    reached.append(line)
            assert reached == list(range(part.first, part.first + len(part.begin)))
    assert complement is None or found.is_complement == complement
    inside = np.arange(n) < limits[:, None]
    assert np.array_equal(times, inside ^ found.is_complement)
    assert found.operations == operations <= found.dense == 4 * m * n * (m + n)
    assert found.operations >= plan(limits, n).operations


@repeatable
@given(case=staircases(most=24), bands=BANDS, seed=st.integers(0, 99))
def test_a_planned_projection_equals_the_dense_one(case, bands, seed):
    limits, n = torch.from_numpy(case[0]), case[1]
    m = len(limits)
    w, u_out, u_in = integers(m, n, seed=seed), permutation(m, seed), permutation(n, seed + 1)
    expected = staircase_project_ref.staircase_project(w, u_out, u_in, limits)
    components = staircase_project_ref.staircase_rotate(w, u_out, u_in, limits)
    with pytest.MonkeyPatch.context() as patch:
        small_bands(patch, *bands)
        for op, source, truth in (
            ("staircase_project", w, expected),
            ("staircase_rotate", w, components),
            ("staircase_restore", components, expected),
        ):
            assert torch.equal(ops.call(op, source, u_out, u_in, limits, backend="torch"), truth)


@settings(repeatable, max_examples=20)
@given(size=st.one_of(st.integers(1, 300), st.sampled_from([127, 128, 129, 256, 257])))
def test_packed_tiles_unpack_to_the_same_matrix(size):
    matrix = torch.arange(size * size).reshape(size, size)
    matrix = matrix.tril() + matrix.tril(-1).T
    packed = tiles.pack(matrix)
    assert packed.shape == (tiles.tile_count(size), tiles.TILE, tiles.TILE)
    assert torch.equal(tiles.unpack(packed, size), matrix)
    # Storage above the diagonal and outside the matrix is never read.
    side = -(-size // tiles.TILE)
    rows, columns = np.tril_indices(side)
    offset = torch.arange(tiles.TILE)
    row = (torch.from_numpy(rows) * tiles.TILE)[:, None, None] + offset[:, None]
    column = (torch.from_numpy(columns) * tiles.TILE)[:, None, None] + offset
    unread = (row >= size) | (column > row)
    assert int((~unread).sum()) == size * (size + 1) // 2
    assert torch.equal(tiles.unpack(packed.masked_fill(unread, -1), size), matrix)


TABLES = st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(0, 999)).map(
    lambda case: integers(case[0], case[1], seed=case[2]).abs()
)


@st.composite
def targets(draw):
    """Scores and all of their values, in whole numbers: sums are exact, ties are many."""
    found, values = [], []
    for _ in range(draw(st.integers(1, 3))):
        if draw(st.booleans()):
            lam, mu = draw(WHOLE), draw(WHOLE)
            found.append(ProductScores(lam, mu))
            values += (lam[:, None] * mu).flatten().tolist()
        else:
            table = draw(TABLES)
            found.append(TableScores(table))
            values += table.flatten().tolist()
    return found, values


@repeatable
@given(case=targets(), share=SHARES, edge=st.integers(0, 99))
def test_a_common_threshold_is_that_of_sorting_everything(case, share, edge):
    scores, values = case
    values.sort(reverse=True)
    total = sum(values)
    partial = sum(values[: edge % len(values) + 1])
    for wanted in (share, partial / total if partial else share):
        reached = [
            value for value in values if sum(v for v in values if v >= value) >= wanted * total
        ]
        threshold = common_threshold(scores, [1.0] * len(scores), wanted)
        assert threshold == reached[0]
        assert sum(each.mass_above(threshold) for each in scores) == sum(
            value for value in values if value >= threshold
        )


@repeatable
@given(
    lam=spectra(st.floats(0, 1e3)),
    mu=spectra(st.floats(0, 1e3)),
    table=st.lists(st.floats(0, 1e3, width=32), min_size=1, max_size=24).filter(any),
    threshold=st.floats(0, 1e6),
    pick=st.integers(0, 99),
)
def test_what_is_above_a_threshold_is_kept_and_nothing_else(lam, mu, table, threshold, pick):
    products = lam[:, None] * mu
    for each in (threshold, float(products.flatten()[pick % products.numel()])):
        limits = ProductScores(lam, mu).keep_above(each).limits
        assert torch.equal(torch.arange(len(mu)) < limits[:, None], products >= each)
    scores = TableScores(torch.tensor([table]))
    for each in (threshold, table[pick % len(table)], np.nextafter(table[pick % len(table)], 2e3)):
        expected = [value for value in table if value >= each]
        kept = scores.keep_above(float(each))
        assert kept.number == len(expected)
        flags = np.unpackbits(kept.mask.numpy(), axis=1)[0, : len(table)]
        assert flags.tolist() == [value >= each for value in table]
        exact = pytest.approx(sum(expected), rel=1e-12, abs=1e-12 * sum(table))
        assert scores.mass_above(float(each)) == exact


@st.composite
def wishes(draw):
    """A bare backend or "", and backends of some ops."""
    known = {op: ops.backends(op) for op in ops.operations()}
    chosen = draw(st.lists(st.sampled_from(sorted(known)), unique=True))
    by_op = {op: draw(st.sampled_from(known[op])) for op in chosen}
    bare = draw(
        st.sampled_from(["", *sorted({name for names in known.values() for name in names})])
    )
    return bare, by_op


@repeatable
@given(
    wish=wishes(), order=st.randoms(use_true_random=False), space=st.sampled_from(["", " ", "\t"])
)
def test_backends_are_parsed_as_they_are_written(wish, order, space):
    bare, by_op = wish
    parts = [f"{op}{space}={space}{backend}" for op, backend in by_op.items()]
    parts += [bare] * bool(bare) + [""] * order.randrange(2)
    order.shuffle(parts)
    text = ",".join(f"{space}{part}{space}" for part in parts)
    assert ops.parse_backends(text) == wish
