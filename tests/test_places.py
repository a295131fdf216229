"""Sums that wait on the host come to the device and back as if they had never left it."""

import models
import pytest
import torch

import curvedit
from curvedit.factors import Key
from curvedit.fitting import places, stage
from curvedit.ops import tiles

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fewer positions:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*are not run block by block:UserWarning"),
]


class Event:
    """A copy that happens when somebody waits for it, and not before."""

    def __init__(self, copy=lambda: None, after=()):
        self.copy, self.after, self.happened = copy, list(after), False

    def happen(self):
        if self.happened:
            return
        self.happened = True
        for each in self.after:
            if each is not None:
                each.happen()
        self.copy()


class Lazy:
    """Copies as late as may be; ``forgets`` names what it is not told to wait for."""

    def __init__(self, forgets=""):
        self.forgets = forgets
        self.ahead = self.late = 0
        self._lanes = {"upload": Event(), "download": Event()}

    def _copy(self, lane, target, source, after):
        if self.forgets == lane:
            after = ()
        before = self._lanes[lane]  # a stream keeps its order
        copied = Event(lambda: target.copy_(source), [before, *after])
        self._lanes[lane] = copied
        return copied

    def upload(self, target, source, after):
        return self._copy("upload", target, source, after)

    def download(self, target, source, after):
        return self._copy("download", target, source, after)

    def computed(self):
        return Event()

    def wait(self, event):
        if event is not None and self.forgets != "wait":
            event.happen()

    def settle(self):
        if self.forgets != "settle":
            for each in self._lanes.values():
                each.happen()


def on_host(copier, largest=300, slots=4):
    return places.OnHost(largest, slots, torch.device("cpu"), copier, pinned=False)


ORDERS = {
    "the same in every batch": [list("abcdefgh")] * 4,
    "fewer than slots": [list("ab")] * 5,
    "one": [["a"]] * 5,
    "some left out": [list("abcdefgh"), list("acegh"), list("abcdefgh"), list("bdf")],
    "another order": [list("abcdefgh"), list("hgfedcba"), list("badcfehg")],
    "twice in a row": [list("aabbccaadd")] * 3,
    "back and forth": [list("abcbabcba")] * 3,
    "pairs": [["ab", "cd", "ef", "gh", "a", "c"]] * 4,
    "pairs in turn": [["ab", "bc", "ca", "db", "ha"]] * 4,
}


def follow(place, batches):
    """Add numbers of the caller's own to the sums, in this order."""
    step = 0
    for batch in batches:
        for names in batch:
            keys = [Key("A", each) for each in names]
            size = 300 if names[0] < "e" else 100
            if any((each < "e") != (names[0] < "e") for each in names):
                size = 300
            with place.lent(keys, torch.empty(2, size)) as sums:
                for each in sums:
                    step += 1
                    each.add_(step).mul_(1.25)
    return place.all()


@pytest.mark.parametrize("slots", [2, 3, 4, 6])
@pytest.mark.parametrize("order", ORDERS)
def test_any_order(order, slots):
    expected = follow(places.Resident(), ORDERS[order])
    found = follow(on_host(Lazy(), slots=slots), ORDERS[order])
    assert found.keys() == expected.keys()
    for key, each in expected.items():
        assert torch.equal(found[key], each), key


@pytest.mark.parametrize("forgotten", ["upload", "wait", "settle"])
def test_the_test_sees_a_forgotten_event(forgotten):
    """Downloads need no event here: what they wait for is done at once on a CPU."""
    batches = ORDERS["the same in every batch"]
    expected = follow(places.Resident(), batches)
    found = follow(on_host(Lazy(forgotten)), batches)
    assert any(not torch.equal(found[key], each) for key, each in expected.items())


def test_the_next_sums_are_copied_ahead():
    class Counting(Lazy):
        begun, waited = 0, 0

        def upload(self, target, source, after):
            self.begun += 1
            return super().upload(target, source, after)

    copier = Counting()
    place = on_host(copier)
    names = list("abcdefgh")
    follow(place, [names])
    assert copier.begun == 0  # a new sum is zero
    follow(place, [["a"]])
    assert copier.begun == 4  # itself and three more, as many as there are slots
    follow(place, [["b"]])
    assert copier.begun == 5


def test_filled_with_an_earlier_pass():
    first = follow(on_host(Lazy()), ORDERS["the same in every batch"])
    later, expected = on_host(Lazy()), places.Resident()
    for place in (later, expected):
        follow(place, [["h"], ["b"]])
        place.fill({key: each.clone() for key, each in first.items()})
    expected, found = (follow(place, ORDERS["another order"]) for place in (expected, later))
    assert all(torch.equal(found[key], each) for key, each in expected.items())


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "vit"])
def test_a_fit_is_the_same(kind, weighted, monkeypatch):
    def fitted():
        return curvedit.fit(
            models.build(kind),
            models.ragged_batches(kind),
            targets=models.targets(kind),
            weighted=weighted,
            progress=False,
        )

    expected = fitted()
    used = []

    def lazily(*_, **__):
        used.append(on_host(Lazy(), largest=400, slots=6 if weighted else 4))
        return used[-1]

    monkeypatch.setattr(stage, "_place", lazily)
    ours = fitted()
    assert used
    assert ours.keys_of_sums() == expected.keys_of_sums()
    assert all(torch.equal(ours.sum(key), expected.sum(key)) for key in expected.keys_of_sums())


@pytest.mark.parametrize("after", [1, 2, 4])
def test_a_fit_that_was_stopped_goes_on(after, tmp_path, monkeypatch):
    model, given = models.build("llama"), models.ragged_batches("llama") * 3
    options = {"targets": "*.mlp.*", "progress": False, "snapshot_every": 0}
    expected = curvedit.fit(model, given, **options)
    monkeypatch.setattr(stage, "_place", lambda *_, **__: on_host(Lazy(), slots=6))

    def broken():
        yield from given[:after]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        curvedit.fit(model, broken(), snapshots=tmp_path / "s", **options)
    ours = curvedit.fit(model, given, snapshots=tmp_path / "s", **options)
    assert all(torch.equal(ours.sum(key), expected.sum(key)) for key in expected.keys_of_sums())


def test_on_a_cpu_they_stay_where_they_are():
    model, given = models.build("llama"), models.ragged_batches("llama")
    options = {"targets": "*.mlp.*", "progress": False}
    one, other = (curvedit.fit(model, given, sums_on=each, **options) for each in ("cpu", None))
    assert all(torch.equal(one.sum(key), other.sum(key)) for key in one.keys_of_sums())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sums_on": "meta"}, "sums_on: expected 'cpu', where the model is, got 'meta'"),
        ({"sums_on": "cuda"}, "sums_on: expected 'cpu', where the model is, got 'cuda'"),
        ({"sums_on": "disk"}, "sums_on: expected a device such as 'cpu', got 'disk'"),
        ({"inputs_on": "disk"}, "inputs_on: expected a device such as 'cpu', got 'disk'"),
    ],
)
def test_refused(options, message):
    model, given = models.build("llama"), models.ragged_batches("llama")
    with pytest.raises(ValueError, match=message):
        curvedit.fit(model, given, targets="*.mlp.*", progress=False, **options)


@pytest.mark.parametrize(("model_on", "sums_on"), [("mps", "cpu"), ("cuda:0", "cuda:1")])
def test_only_a_cuda_devices_sums_wait_and_only_on_the_host(model_on, sums_on):
    with pytest.raises(ValueError, match=f"sums_on: expected '{model_on}', where the model is"):
        stage._place(sums_on, torch.device(model_on), {}, weighted=True, corrected=None)


def test_a_model_on_several_devices_keeps_its_sums_there():
    modules = {"a": torch.nn.Linear(2, 2), "b": torch.nn.Linear(2, 2, device="meta")}
    with pytest.raises(ValueError, match="sums_on: expected None for a model on several devices"):
        stage._place("cpu", torch.device("cuda"), modules, weighted=True, corrected=None)


def test_corrections_need_all_bases_at_once():
    with pytest.raises(ValueError, match="sums_on: expected the model's own device for corrected"):
        stage._place("cpu", torch.device("cuda"), {}, weighted=True, corrected="sequence")


def test_the_sums_are_as_large_as_the_largest_side():
    place = on_host(Lazy(), largest=300)
    with place.lent([Key("G", "a")], torch.empty(2, 300)) as (total,):
        assert total.shape == tiles.zeros(300).shape
        assert not total.any()
