"""``project`` in memory: what it changes, what it leaves alone, and how it is undone."""

import copy
import dataclasses

import models
import pytest
import torch
from torch import nn

import curvedit
from curvedit.models import find_targets, weight_hash, weight_of
from curvedit.projection import stage

pytestmark = pytest.mark.filterwarnings("ignore:.*fewer positions:UserWarning")


def fitted(kind, **options):
    model = models.build(kind)
    return model, curvedit.fit(
        model, models.ragged_batches(kind), targets=models.targets(kind), progress=False, **options
    )


def weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def same(ours, theirs):
    return all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "vit"])
@pytest.mark.parametrize("criterion", ["curvature", "random"])
def test_equals_the_formula(kind, criterion):
    model, factors = fitted(kind)
    before = {
        name: weight_of(module).clone()
        for name, module in find_targets(model, list(factors)).items()
    }
    selection = curvedit.rank(factors, keep_mass=0.7, criterion=criterion)
    edit = curvedit.project(model, selection)
    for name, target in selection.items():
        bases = selection.bases(name, before[name])
        out, inputs = (basis.vectors.double() for basis in bases)
        components = out.T @ before[name].double() @ inputs * target.dense_mask()
        expected = (out @ components @ inputs.T).float()
        got = weight_of(model.get_submodule(name))
        torch.testing.assert_close(got, expected, atol=2e-6, rtol=0)
        assert edit.targets[name].change > 0
        assert edit.targets[name].sha256_after == weight_hash(got)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_undo_restores_bit_for_bit(dtype):
    model = models.build("llama").to(dtype)
    factors = curvedit.fit(model, models.ragged_batches("llama"), targets="*.mlp.*", progress=False)
    before = weights(model)
    edit = curvedit.project(model, curvedit.rank(factors, keep_mass=0.5))
    after = weights(model)
    assert not same(after, before)
    assert [n for n in before if not torch.equal(before[n], after[n])] == [
        f"{name}.weight" for name in factors
    ]
    edit.undo()
    assert same(weights(model), before)
    with pytest.raises(RuntimeError, match="undo: nothing to restore"):
        edit.undo()


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.double(),
        lambda model: setattr(model[0], "weight", nn.Parameter(model[0].weight.detach().clone())),
    ],
    ids=["cast", "replaced"],
)
def test_undo_of_a_weight_that_is_elsewhere_is_refused(change):
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4))
    edit = curvedit.project(model, models.selection_of(model, ["1", "0"]))
    change(model)
    before = weights(model)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"undo: expected the weight of '.' where it was"):
            edit.undo()
    assert same(weights(model), before)


def test_context_undoes():
    model, factors = fitted("llama")
    before = weights(model)
    with curvedit.project(model, curvedit.rank(factors, keep_mass=0.5)):
        assert not same(weights(model), before)
    assert same(weights(model), before)


@pytest.mark.parametrize("criterion", ["curvature", "weighted", "svd", "random"])
def test_keeping_all_changes_nothing(criterion):
    model, factors = fitted("gpt2")
    before = weights(model)
    edit = curvedit.project(
        model, curvedit.rank(factors, keep_mass=1, criterion=criterion, model=model)
    )
    assert same(weights(model), before)
    assert {target.change for target in edit.targets.values()} == {0.0}


def test_removed_scale_mixes():
    model, factors = fitted("llama")
    selection = curvedit.rank(factors, keep_mass=0.5)
    name = next(iter(selection))
    weight = weight_of(model.get_submodule(name))
    original = weight.clone()
    with curvedit.project(model, selection):
        removed = weight.clone()
    with curvedit.project(model, selection, removed_scale=0.25):
        torch.testing.assert_close(weight, 0.75 * removed + 0.25 * original)
    curvedit.project(model, selection, removed_scale=1.0)
    assert torch.equal(weight, original)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_sweep_equals_single_edits(kind):
    model, factors = fitted(kind)
    before = weights(model)
    selections = [curvedit.rank(factors, keep_mass=share) for share in (0.3, 0.5, 0.7, 0.99, 1.0)]
    expected = []
    for selection in selections:
        with curvedit.project(model, selection):
            expected.append(weights(model))
    edits = []
    for edit, single in zip(curvedit.project_each(model, selections), expected, strict=True):
        for name, weight in weights(model).items():
            torch.testing.assert_close(weight, single[name], atol=2e-6, rtol=1e-4)
        edits.append(edit)
    assert same(weights(model), before)
    assert [sum(t.kept_share for t in edit.targets.values()) for edit in edits] == sorted(
        sum(t.kept_share for t in edit.targets.values()) for edit in edits
    )


def test_a_sweep_that_is_left_restores():
    model, factors = fitted("llama")
    before = weights(model)
    edits = curvedit.project_each(
        model, [curvedit.rank(factors, keep_mass=share) for share in (0.3, 0.5)]
    )
    next(edits)
    assert not same(weights(model), before)
    edits.close()
    assert same(weights(model), before)


def test_a_sweep_refuses_what_shares_no_bases(tmp_path):
    model, factors = fitted("llama")
    mixed = [
        curvedit.rank(factors, keep_mass=0.5, criterion=name) for name in ("curvature", "weighted")
    ]
    with pytest.raises(
        ValueError, match=r"selections: expected one criterion .* got \['curvature', 'weighted'\]"
    ):
        curvedit.project_each(model, mixed)
    with pytest.raises(ValueError, match="out: a module is edited in place"):
        curvedit.project_each(model, mixed[:1], out=[tmp_path])
    with pytest.raises(
        ValueError, match="out: expected 1 new directories, one for each selection, got 0"
    ):
        curvedit.project_each(tmp_path, mixed[:1])
    with pytest.raises(ValueError, match="out: expected different directories"):
        curvedit.project_each(tmp_path, mixed[:1] * 2, out=["a", "a"])


def test_failure_midway_restores(monkeypatch):
    model, factors = fitted("llama")
    before = weights(model)
    calls, edit_weight = [], stage.edit_weight

    def fail_third(*args):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("boom")
        return edit_weight(*args)

    monkeypatch.setattr(stage, "edit_weight", fail_third)
    with pytest.raises(RuntimeError, match="boom"):
        curvedit.project(model, curvedit.rank(factors, keep_mass=0.5))
    assert same(weights(model), before)


def test_refuses_another_model_before_changing_it():
    model, factors = fitted("llama")
    other = copy.deepcopy(model)
    other.model.layers[2].mlp.down_proj.weight.data[0, 0] += 1
    before = weights(other)
    selection = curvedit.rank(factors, keep_mass=0.5)
    with pytest.raises(
        ValueError, match=r"'model.layers.2.mlp.down_proj' is not the one the factors"
    ):
        curvedit.project(other, selection)
    assert same(weights(other), before)
    with pytest.raises(
        ValueError,
        match=r"expected a linear map 'model.layers.0.self_attn.q_proj'.*none of that name",
    ):
        curvedit.project(models.build("gpt2"), selection)


def test_refuses_a_second_edit():
    model, factors = fitted("llama")
    selection = curvedit.rank(factors, keep_mass=0.5)
    curvedit.project(model, selection)
    with pytest.raises(ValueError, match="or was already edited"):
        curvedit.project(model, selection)


def test_refuses_nan_weights():
    model, factors = fitted("llama")
    model.model.layers[0].mlp.up_proj.weight.data[0, 0] = torch.nan
    with pytest.raises(
        ValueError, match=r"weight of 'model.layers.0.mlp.up_proj': expected finite values"
    ):
        curvedit.project(model, curvedit.rank(factors, keep_mass=0.5))


def test_refuses_the_basis_of_another_factor():
    model, factors = fitted("llama")
    selection = curvedit.rank(factors, keep_mass=0.5)
    names = [name for name in selection if "up_proj" in name]
    values = selection[names[1]].values_out
    mixed = {names[0]: dataclasses.replace(selection[names[0]], values_out=values)}
    with pytest.raises(
        ValueError, match=r"up_proj: the output basis is not the one it was made from"
    ):
        curvedit.project(model, dataclasses.replace(selection, targets=mixed))


def test_refuses_tied_weights():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(9, 4)
            self.head = nn.Linear(4, 9, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, x):
            return self.head(torch.tanh(self.embedding(x)).mean(1))

    model = Tied()
    data = [(torch.arange(18).reshape(6, 3) % 9, torch.arange(6))]
    factors = curvedit.fit(model, data, targets="head", progress=False)
    with pytest.raises(ValueError, match=r"'head.weight' is tied to 'embedding.weight'"):
        curvedit.project(model, curvedit.rank(factors, keep_mass=0.5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"removed_scale": float("nan")}, "removed_scale: expected a finite"),
        ({"out": "x"}, "out: a module is edited in place"),
    ],
)
def test_refuses_bad_options(options, message):
    model, factors = fitted("llama")
    with pytest.raises(ValueError, match=message):
        curvedit.project(model, curvedit.rank(factors, keep_mass=0.5), **options)
