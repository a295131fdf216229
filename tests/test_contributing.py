"""Which positions count in the factors: those that a loss term at or after them can reach."""

import models
import pytest
import torch

import curvedit
from curvedit.data import read_batch

pytestmark = pytest.mark.filterwarnings("ignore:.*fewer positions:UserWarning")


def batch_of(*, mask=None, labels=None, length=6):
    raw = {"input_ids": torch.arange(3, 3 + length)[None]}
    if mask is not None:
        raw["attention_mask"] = torch.tensor([mask])
    if labels is not None:
        raw["labels"] = torch.tensor([labels])
    return read_batch(raw, 0, 0, torch.device("cpu"), None)


@pytest.mark.parametrize(
    ("given", "terms", "contributing"),
    [
        ({}, "111110", "111110"),
        ({"mask": [1, 1, 1, 1, 0, 0]}, "111000", "111000"),
        ({"mask": [0, 0, 1, 1, 1, 1]}, "001110", "001110"),
        ({"labels": [-100, -100, -100, 6, 7, 8]}, "001110", "111110"),
        ({"labels": [3, 4, 5, -100, -100, -100]}, "110000", "110000"),
        ({"labels": [3, -100, 5, -100, 7, -100]}, "010100", "111100"),
        ({"mask": [0, 1, 1, 1, 1, 0], "labels": [-100] * 4 + [7, -100]}, "000100", "011100"),
    ],
)
def test_positions_by_definition(given, terms, contributing):
    batch = batch_of(**given)
    spelled = ["".join(str(int(x)) for x in rows[0]) for rows in (batch.terms, batch.contributing)]
    assert spelled == [terms, contributing]
    assert (batch.loss_terms, batch.positions) == (terms.count("1"), contributing.count("1"))


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_masked_prompt_keeps_what_later_losses_send_back(side):
    """``tr A tr G / sum S`` of keys and values is about as without a mask."""
    model = models.build("llama")
    ids = models.ragged_batches("llama", sizes=(6,))[0]["input_ids"]
    mask = torch.ones_like(ids)
    mask[1, :4] = mask[2, :9] = 0
    mask = mask if side == "left" else mask.flip(1)
    masked = ids.clone()
    masked[:, :12] = -100

    def ratios(labels):
        batches = [{"input_ids": ids, "attention_mask": mask, "labels": labels}]
        factors = curvedit.fit(
            model,
            batches,
            targets="model.layers.*.self_attn.{k,v}_proj",
            corrected="sequence",
            progress=False,
        )
        return {
            name: float(each.A.trace() * each.G.trace() / factors.mean("S", name).sum())
            for name, each in factors.items()
        }

    plain, prompt = ratios(ids), ratios(masked)
    for name, ratio in prompt.items():
        assert 1 / 3 < ratio / plain[name] < 3, name  # counting labelled positions alone: 6 or 7


def test_gradients_at_prompt_positions_are_not_lost():
    model = models.build("llama")
    ids = models.ragged_batches("llama", sizes=(6,))[0]["input_ids"]
    labels = ids.clone()
    labels[:, :12] = -100
    name = "model.layers.1.self_attn.v_proj"
    factors = curvedit.fit(
        model,
        [{"input_ids": ids, "labels": labels}],
        targets=name,
        labels="data",
        progress=False,
    )
    model.zero_grad()
    outputs = []
    module = model.get_submodule(name)
    handle = module.register_forward_hook(lambda _, __, y: y.retain_grad() or outputs.append(y))
    logits = model(ids, use_cache=False).logits
    handle.remove()
    loss = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum"
    )
    loss.backward()
    total = outputs[0].grad.square().sum()
    assert factors[name].tokens == 6 * 19
    torch.testing.assert_close(factors[name].G.trace() * 6 * 19, total, rtol=1e-4, atol=0)
