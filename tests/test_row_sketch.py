"""Whether two sets of data overlap, told from a few hundred hashes of each."""

import models
import pytest
import torch

import curvedit
from curvedit.data import RowSketch, read_batch

pytestmark = pytest.mark.filterwarnings("ignore:.*fewer positions:UserWarning")


def sketch(rows, size=7):
    found = RowSketch()
    for number, part in enumerate(torch.tensor(rows).split(size)):
        found.add(read_batch({"input_ids": part}, number, 0, torch.device("cpu"), "language"))
    return found


def rows(start, stop):
    return [[number, number // 7, number * number % 1009, 5] for number in range(start, stop)]


@pytest.mark.parametrize(
    ("one", "other", "share"),
    [
        ((0, 100), (100, 200), 0.0),
        ((0, 100), (0, 100), 1.0),
        ((0, 100), (50, 150), 0.5),
        ((0, 100), (99, 100), 1.0),  # the smaller one is in the larger
    ],
)
def test_small_sets_are_compared_whole(one, other, share):
    first, second = sketch(rows(*one)), sketch(rows(*other))
    assert first.overlap(second) == second.overlap(first) == pytest.approx(share)
    assert first.count == one[1] - one[0]


@pytest.mark.parametrize("share", [0.0, 0.05, 0.3, 1.0])
def test_large_sets_are_estimated(share):
    count = 20_000
    first = sketch(rows(0, count), 500)
    second = sketch(rows(int((1 - share) * count), int((2 - share) * count)), 500)
    assert first.overlap(second) == pytest.approx(share, abs=0.07)
    assert len(first.to_json()["least"]) == 256
    again = RowSketch.from_json(first.to_json())
    assert (again.count, again.least) == (first.count, first.least)


def test_batching_padding_and_order_do_not_matter():
    whole = sketch(rows(0, 30))
    ids = torch.nn.functional.pad(torch.tensor(rows(0, 30)).flip(0), (0, 3))
    mask = (torch.arange(7) < 4).long().expand(30, -1)
    padded = RowSketch()
    batch = {"input_ids": ids.int(), "attention_mask": mask}
    padded.add(read_batch(batch, 0, 0, torch.device("cpu"), "language"))
    assert padded.least == whole.least
    halves = sketch(rows(0, 12)) + sketch(rows(12, 30))
    assert (halves.count, halves.least) == (whole.count, whole.least)


def test_all_inputs_of_a_sample_count():
    """A mask that is the same everywhere, before the numbers that differ, makes none the same."""
    draw = torch.Generator().manual_seed(0)

    def features():
        found = RowSketch()
        batch = {
            "attention_mask": torch.ones(9, 5, dtype=torch.long),
            "input_features": torch.randn(9, 5, 3, generator=draw),
            "labels": torch.zeros(9, dtype=torch.long),
        }
        found.add(read_batch(batch, 0, 0, torch.device("cpu"), "classification"))
        return found

    one, other = features(), features()
    assert len(one.least) == one.count == 9
    assert one.overlap(other) == 0.0


@pytest.mark.parametrize("found", [None, 3, {}, {"count": "x", "least": []}, {"count": 1}])
def test_what_an_older_manifest_has_is_passed_over(found):
    assert RowSketch.from_json(found) is None


@pytest.mark.parametrize("kind", ["llama", "vit"])
def test_overlapping_factors_are_not_merged(kind):
    model, batches = models.build(kind), models.ragged_batches(kind)
    options = {"targets": models.targets(kind), "progress": False}
    first, second = (curvedit.fit(model, [each], **options) for each in batches)
    whole = curvedit.fit(model, batches, **options)
    merged = curvedit.Factors.merge([first, second])
    assert merged.provenance["rows"] == whole.provenance["rows"]
    for key in ("samples", "positions", "loss_terms"):
        assert merged.provenance[key] == whole.provenance[key]
    with pytest.raises(ValueError, match=r"got parts 1 and 3, about 100% of whose samples are"):
        curvedit.Factors.merge([first, second, whole])
    other = curvedit.fit(model, [batches[0]], seed=1, **options)
    with pytest.raises(ValueError, match="expected factors of disjoint data, got parts 1 and 2"):
        curvedit.Factors.merge([first, other])
