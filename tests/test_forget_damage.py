"""The damage that ``forget`` measures on held-out data, beside the model as it was."""

import dataclasses

import models
import pytest
import torch
from test_forget import general, recited

from curvedit.data import read_batch
from curvedit.editing import damage
from curvedit.forgetting import inputs, subject
from curvedit.forgetting.weights import Weights
from curvedit.models import find_targets, weight_of


def test_no_change_is_no_damage():
    model = models.build("llama")
    maps = find_targets(model, "*.1.mlp.*")
    state = Weights(maps, [])
    unedited = damage.Unedited(model, state.originals, None)
    found = damage.measure_damage(model, unedited, [general(5)], None)
    assert found.nats == 0.0
    assert found.loss == 0.0
    state.apply({name: weight_of(each).clone() for name, each in maps.items()}, 0.1)
    assert damage.measure_damage(model, unedited, [general(5)], None).nats > 0.0


def test_pieces_of_distributions_do_not_matter(monkeypatch):
    """How many rows of logits are compared at once, here 1, 7 and all, changes nothing."""
    draw = torch.Generator().manual_seed(0)
    before, after = (torch.randn(12, 50, generator=draw) for _ in range(2))
    batch = read_batch({"input_ids": torch.arange(12).view(2, 6)}, 0, 0, before.device, None)
    batch = dataclasses.replace(batch, terms=torch.ones(2, 6, dtype=torch.bool))
    found = []
    for rows in (1, 7, 12):
        monkeypatch.setattr(damage, "cached_rows", lambda _, n=rows: n)
        [(nats, *losses)] = damage._compare(before, after, batch)
        found.append(torch.stack([nats, *losses]))
    p, q = (each.double().log_softmax(-1) for each in (before, after))
    assert torch.allclose(found[0][0], (p.exp() * (p - q)).sum(-1).view(2, 6).sum(1), rtol=1e-5)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
def test_the_unedited_blocks_run_once(kind, monkeypatch):
    model = models.build(kind)
    maps = find_targets(model, "*.1.mlp.*")
    state = Weights(maps, [])
    data = subject.Data(inputs.numbered("x", recited(model), 4, 0), None, [general(3)] * 2)
    checked = subject.Subject(model, maps, data, False)
    unedited, plain = checked.unedited(state), damage.Unedited(model, state.originals, None)
    state.apply({name: weight_of(each).clone() for name, each in maps.items()}, 0.1)
    first = checked.damage(unedited)
    assert unedited.stack is not None
    monkeypatch.setattr(damage, "as_before", lambda _: pytest.fail("ran again"))
    second = checked.damage(unedited)
    monkeypatch.undo()
    assert first.nats > 0
    assert second.nats == pytest.approx(first.nats, rel=1e-5)
    assert checked.damage(plain).nats == pytest.approx(first.nats, rel=1e-5)


def test_a_head_that_sees_more_than_the_last_block_runs_again():
    model = models.build("llama")
    maps = find_targets(model, "*.1.mlp.*")
    seen = {}
    first = model.model.layers[0]
    first.register_forward_hook(lambda _, __, output: seen.update(output=output))
    model.lm_head.register_forward_pre_hook(lambda _, args: (args[0] + seen["output"],))
    data = subject.Data(inputs.numbered("x", recited(model), 4, 0), None, [general(3)])
    checked = subject.Subject(model, maps, data, False)
    unedited = checked.unedited(Weights(maps, []))
    assert unedited.stack is not None
    assert checked.damage(unedited).nats == 0.0
    assert unedited.stack is None


def test_damage_does_not_depend_on_padding_or_batches():
    model = models.build("llama")
    maps = find_targets(model, "*.1.mlp.*")
    state = Weights(maps, [])
    unedited = damage.Unedited(model, state.originals, None)
    state.apply({name: weight_of(each).clone() for name, each in maps.items()}, 0.2)
    rows = [models.draw(count, seed=count) for count in (9, 4, 12, 2)]
    together, alone = (
        damage.measure_damage(model, unedited, damage.held_out(rows, size, pad), None)
        for size, pad in ((4, 0), (1, 5))
    )
    assert together.terms.tolist() == alone.terms.tolist() == [8, 3, 11, 1]
    for name in ("divergence", "loss_before", "loss_after"):
        torch.testing.assert_close(getattr(together, name), getattr(alone, name), rtol=1e-4, atol=0)
