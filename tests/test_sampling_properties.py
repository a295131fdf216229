"""Properties of label draws that hold for every input.

Hypothesis draws the inputs from a fixed seed, so a run can be repeated.
"""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_properties import repeatable

from curvedit.fitting import sampling

WORDS = st.integers(-(2**63), 2**63 - 1)  # any int64
KEYS = st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=12)


@repeatable
@given(seed=WORDS, keys=KEYS, columns=st.integers(1, 4), order=st.randoms(use_true_random=False))
def test_draws_depend_on_their_key_alone(seed, keys, columns, order):
    sample, position = (torch.tensor(words) for words in zip(*keys, strict=True))
    draws = sampling.uniform(seed, sample, position)
    assert draws.dtype == torch.float64
    assert ((draws >= 0) & (draws < 1)).all()
    for key, value in zip(keys, draws, strict=True):
        one = sampling.uniform(seed, torch.tensor(key[0]), torch.tensor(key[1]))
        assert one.shape == ()
        assert one == value == splitmix(seed, *key)
    shuffled = order.sample(range(len(keys)), len(keys))
    batches = torch.tensor(shuffled).split(columns)
    again = torch.cat([sampling.uniform(seed, sample[at], position[at]) for at in batches])
    assert torch.equal(again, draws[shuffled])
    grid = sampling.uniform(seed, sample[:, None], position)
    assert torch.equal(grid.diagonal(), draws)


def splitmix(seed, sample, position):
    """The generator of the module's docstring, in Python's integers."""
    state = 0
    for word in (seed, sample, position):
        state = (state ^ word) + 0x9E3779B97F4A7C15 & 2**64 - 1
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & 2**64 - 1
        state = (state ^ state >> 27) * 0x94D049BB133111EB & 2**64 - 1
        state ^= state >> 31
    return (state >> 11) / 2**53


DRAWS = st.lists(
    st.one_of(
        st.floats(0, 1, exclude_max=True),
        st.integers(0, 63).map(lambda n: n / 64),
        st.just(1 - 2.0**-53),
    ),
    min_size=1,
    max_size=8,
).map(lambda draws: torch.tensor(draws, dtype=torch.float64))


@repeatable
@given(
    counts=st.lists(st.sampled_from([0, 0, 0, 1, 2, 5]), min_size=1, max_size=40).filter(any),
    draws=DRAWS,
    group=st.integers(1, 45),
)
def test_labels_invert_the_cumulative_distribution(counts, draws, group):
    """Sums of whole numbers do not round, so that every label is known, whatever the groups."""
    ends = np.cumsum(counts)
    wanted = [float(draw) * float(ends[-1]) for draw in draws]
    expected = [int((ends <= value).sum()) for value in wanted]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "_GROUP", group)
        got = sampling.sample_labels(torch.tensor(counts).float().repeat(len(draws), 1), draws)
    # A draw just below 1 may round to the total: then the last class of any probability is meant.
    last = max(index for index, count in enumerate(counts) if count)
    assert got.tolist() == [min(label, last) for label in expected]
    assert all(counts[label] for label in got)


WEIGHTS = st.one_of(
    st.just(0.0),
    st.builds(
        lambda low, power: (1 + low * 2.0**-23) * 2.0**-power,
        st.integers(0, 2**23 - 1),
        st.integers(0, 40),
    ),
)


@settings(repeatable, max_examples=150)
@given(
    weights=st.lists(WEIGHTS, min_size=2, max_size=12).filter(any),
    draws=DRAWS,
    group=st.integers(1, 4),
)
# The group after the seam is so much larger that its sum rounds away where the seam lies.
@example(weights=[1.3969841949901252e-09, 0.0, 0.0, 1.0], draws=torch.zeros(1).double(), group=2)
# Summed in float32 the group exceeds its members, and ends with one of no probability.
@example(
    weights=[1.0, 1.5 * 2.0**-24, 0.0],
    draws=torch.tensor([1 - 2.0**-53], dtype=torch.float64),
    group=3,
)
def test_sampled_labels_have_positive_probability(weights, draws, group):
    """Also for draws at the seams between groups, where rounding might point past the class."""
    probabilities = torch.tensor(weights, dtype=torch.float32)
    sums = torch.stack([part.sum() for part in probabilities.split(group)])
    seams = sums.cumsum(0, dtype=torch.float64)
    seams = seams[:-1] / seams[-1]
    draws = torch.cat([draws, *(seams.nextafter(seams + step) for step in (-1, 0, 1))])
    draws = draws[(draws >= 0) & (draws < 1)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "_GROUP", group)
        together = sampling.sample_labels(probabilities.repeat(len(draws), 1), draws)
        alone = [int(sampling.sample_labels(probabilities, draw)) for draw in draws]
    assert together.tolist() == alone
    assert (probabilities[together] > 0).all()
    # The label's interval holds the draw, up to the rounding of float32 sums of groups.
    ends = probabilities.double().cumsum(-1) / probabilities.double().sum()
    starts = torch.cat([ends.new_zeros(1), ends[:-1]])
    slack = len(weights) * torch.finfo(torch.float32).eps
    assert (starts[together] - slack <= draws).all()
    assert (draws <= ends[together] + slack).all()
