"""Graphs that are kept instead of built again: the same factors, within the memory given."""

import architectures
import models
import pytest
import torch
from test_architectures import CASES

import curvedit
from curvedit.passes import streaming

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
PLENTY = 1 << 30


def calls_of(monkeypatch):
    """How many of the last blocks keep their graphs, for every batch after the self-check."""
    found, real = [], streaming.streamed_backward

    def watched(*arguments, **options):
        found.append(options.get("kept", 1))
        return real(*arguments, **options)

    monkeypatch.setattr("curvedit.passes.run.streamed_backward", watched)
    return found


def assert_same(one, other):
    assert one.keys_of_sums() == other.keys_of_sums()
    for key in one.keys_of_sums():
        assert torch.equal(one.sum(key), other.sum(key)), key


@pytest.mark.parametrize("name", CASES)
def test_the_same_factors_for_every_family(name):
    case = CASES[name]
    model, batches = architectures.build(name), architectures.batches(case.inputs)
    fit = {"targets": "*", "labels": "data", "progress": False}
    try:
        plain = curvedit.fit(model, batches, **fit)
    except (ValueError, RuntimeError):
        pytest.skip("some of its maps cannot be fitted")
    assert_same(plain, curvedit.fit(model, batches, graph_bytes=PLENTY, **fit))


@pytest.mark.parametrize("kind", ["llama", "gpt2", "neox", "vit"])
def test_all_graphs_are_kept_where_there_is_room(kind, monkeypatch):
    model, batches = models.build(kind), models.ragged_batches(kind)
    fit = {"targets": models.targets(kind), "progress": False}
    plain = curvedit.fit(model, batches, **fit)
    kept = calls_of(monkeypatch)
    assert_same(plain, curvedit.fit(model, batches, graph_bytes=PLENTY, **fit))
    assert kept[0] == 1  # what one takes is not known yet
    assert all(number > 3 for number in kept[1:])


def test_no_more_is_kept_than_is_allowed(monkeypatch):
    """Of rows twice as long half as many graphs fit."""
    model = models.build("llama")
    draw = torch.Generator().manual_seed(0)
    batches = [torch.randint(3, 90, (4, length), generator=draw) for length in (16, 16, 32, 16)]
    fit = {"targets": "*.mlp.*", "progress": False}
    one = per_graph(model, batches[0])
    kept = calls_of(monkeypatch)
    plain = curvedit.fit(model, batches, **fit)
    assert kept == [1, 1, 1, 1]
    kept.clear()
    assert_same(plain, curvedit.fit(model, batches, graph_bytes=2 * one, **fit))
    assert kept == [1, 3, 2, 3]


def per_graph(model, ids):
    """What the last block's graph holds for a batch."""
    from curvedit.data import read_batch
    from curvedit.fitting.objective import Objective
    from curvedit.models import find_stack, find_targets, frozen
    from curvedit.passes import Observer

    targets = find_targets(model, "*.mlp.*")
    observer = Observer(targets, lambda *_: None, positions="all")
    batch = read_batch(ids, 0, 0, torch.device("cpu"), "language")
    with frozen(model), observer.attached():
        return streaming.streamed_backward(
            model,
            find_stack(model, list(targets)),
            batch,
            Objective("data", 0),
            observer,
            inputs_on=None,
            logits_bytes=1 << 20,
            weighed=True,
        )
