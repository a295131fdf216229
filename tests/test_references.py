"""Fits, rankings and edits of checkpoints beside plain references in float64, to 1e-5 or better."""

import copy
import functools

import models
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import curvedit
from curvedit.evaluation.bootstrap import ratio
from curvedit.evaluation.decoding import greedy_continuations
from curvedit.models import weight_hash, weight_of

pytestmark = pytest.mark.filterwarnings("ignore:.*fewer positions:UserWarning")


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """More threads only wait for each other on matrices this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def distance(got, want):
    return float((got.double() - want.double()).norm() / want.double().norm())


@functools.cache
def fitted(kind):
    """A model, which no test changes, and its factors, corrected too."""
    model, batches = models.build(kind), models.ragged_batches(kind)
    patterns = {"llama": "*.{0,2}.mlp.*", "gpt2": "*.1.*.c_*"}[kind]
    factors = curvedit.fit(model, batches, targets=patterns, corrected="sequence", progress=False)
    return model, factors


def edited(weight, selection, name, scale):
    """``U_G (C * M) U_A^T``, and ``scale`` times the rest, in float64, by the definition alone."""
    out, inputs = (basis.vectors.double() for basis in selection.bases(name, weight))
    rotated = out.T @ weight.double() @ inputs
    target, kept = selection[name], torch.zeros(weight.shape, dtype=torch.bool)
    if target.limits is not None:
        for row, limit in enumerate(target.limits.tolist()):
            kept[row, :limit] = True
    else:
        bits = np.unpackbits(target.mask.numpy(), axis=1)[:, : weight.shape[1]]
        kept = torch.from_numpy(bits).bool()
    return out @ torch.where(kept, rotated, scale * rotated) @ inputs.T


@pytest.mark.parametrize("scale", [0.0, 0.25, -0.5])
@pytest.mark.parametrize("criterion", ["curvature", "ekfac", "random"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])  # the second is stored transposed
def test_a_checkpoint_holds_the_edit(kind, criterion, scale, tmp_path):
    model, factors = fitted(kind)
    model.save_pretrained(tmp_path / "model")
    selection = curvedit.rank(factors, keep_mass=0.7, criterion=criterion, progress=False)
    curvedit.project(tmp_path / "model", selection, out=tmp_path / "edited", removed_scale=scale)
    after = type(model).from_pretrained(tmp_path / "edited")
    for name in selection:
        before = weight_of(model.get_submodule(name))
        got, want = weight_of(after.get_submodule(name)), edited(before, selection, name, scale)
        assert distance(got, want) < 2e-6, name
        assert distance(got, before) > 1e-3, name


def test_a_sweep_on_disk_holds_each_edit(tmp_path):
    model, factors = fitted("llama")
    model.save_pretrained(tmp_path / "model")
    places = {share: tmp_path / f"keep-{share}" for share in (0.2, 0.4, 0.8)}
    selections = [curvedit.rank(factors, keep_mass=share, progress=False) for share in places]
    list(curvedit.project_each(tmp_path / "model", selections, out=list(places.values())))
    for place, selection in zip(places.values(), selections, strict=True):
        after = type(model).from_pretrained(place)
        for name in selection:
            want = edited(weight_of(model.get_submodule(name)), selection, name, 0.0)
            assert distance(weight_of(after.get_submodule(name)), want) < 2e-6, (place, name)


def test_a_half_precision_checkpoint_is_rounded_once(tmp_path):
    model = models.build("llama").bfloat16()
    model.save_pretrained(tmp_path / "model")
    factors = curvedit.fit(model, models.ragged_batches("llama"), targets="*.mlp.*", progress=False)
    selection = curvedit.rank(factors, keep_mass=0.7, progress=False)
    curvedit.project(tmp_path / "model", selection, out=tmp_path / "edited")
    after = type(model).from_pretrained(tmp_path / "edited", dtype="auto")
    for name in selection:
        want = edited(weight_of(model.get_submodule(name)), selection, name, 0.0)
        got = weight_of(after.get_submodule(name))
        assert got.dtype == torch.bfloat16
        differs = got != want.bfloat16()  # where float32 and float64 round to different sides
        assert differs.float().mean() < 0.01
        assert distance(got, want.bfloat16()) < 1e-3


@pytest.mark.parametrize("scope", ["target", "model"])
def test_ekfac_keeps_the_sharpest(scope):
    """None that is left out is sharper than one that is kept, and no smaller set would do."""
    _, factors = fitted("llama")
    selection = curvedit.rank(
        factors, keep_mass=0.5, criterion="ekfac", scope=scope, progress=False
    )
    groups = [[name] for name in selection] if scope == "target" else [list(selection)]
    for names in groups:
        scores = torch.cat([factors[name].S.double().flatten() for name in names])
        flags = torch.cat([selection[name].dense_mask().flatten() for name in names])
        assert scores[flags].min() >= scores[~flags].max()
        assert scores[flags].sum() >= 0.5 * scores.sum() > scores[flags].sum() - scores[flags].min()


def test_a_half_precision_model_gives_the_moments_of_its_own_gradients():
    """The model runs in bfloat16 in both; the sums lose nothing more."""
    model, batches = models.build("llama").bfloat16(), models.ragged_batches("llama")
    assert_moments_of_own_gradients(model, batches)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_padding_on_the_left_is_left_out(kind):
    """A padded position's next token may be a real one; that is no loss term either."""
    model, batches = models.build(kind), models.ragged_batches(kind)
    for batch in batches:
        for value in batch.values():
            value.copy_(value.flip(1))
        batch["labels"] = batch["input_ids"].clone()  # not masked: the attention mask decides
    assert_moments_of_own_gradients(model, batches)


def assert_moments_of_own_gradients(model, batches):
    factors = curvedit.fit(model, batches, targets="*.mlp.*", labels="data", progress=False)
    twin, calls, sums = copy.deepcopy(model), {}, {}

    def watch(name):
        def hook(_, args, output):
            inputs = args[0].detach()
            output.register_hook(lambda g: calls.update({name: (inputs, g)}))

        return hook

    for name in factors:
        twin.get_submodule(name).register_forward_hook(watch(name))
    for batch in batches:
        ids, mask, labels = (batch[key] for key in ("input_ids", "attention_mask", "labels"))
        logits = twin(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].float()
        wanted = labels[:, 1:].masked_fill((mask[:, 1:] & mask[:, :-1]) == 0, -100)
        F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="sum").backward()
        terms = F.pad(wanted != -100, (0, 1))
        rows = (mask.bool() & (terms.flip(1).cumsum(1) > 0).flip(1)).flatten()
        for name, both in calls.items():
            a, g = (x.flatten(0, 1)[rows].double() for x in both)
            new = (a.T @ a, g.T @ g, len(a))
            sums[name] = [x + y for x, y in zip(sums.get(name, (0, 0, 0)), new, strict=True)]
    for name in factors:
        a, g, count = sums[name]
        assert factors[name].tokens == count
        assert distance(factors[name].A, a / count) < 1e-5
        assert distance(factors[name].G, g / count) < 1e-5


def test_plain_factors_are_the_same_without_the_weighted_ones():
    model, batches = models.build("llama"), models.ragged_batches("llama")
    both = [
        curvedit.fit(model, batches, targets="*.1.mlp.*", weighted=weighted, progress=False)
        for weighted in (True, False)
    ]
    for name in both[0]:
        assert distance(both[1][name].A, both[0][name].A) < 1e-6
        assert distance(both[1][name].G, both[0][name].G) < 1e-6


def test_chance_treats_no_two_targets_alike():
    size = 16
    same = {name: (torch.eye(size), torch.eye(size), 99) for name in ("one", "two")}
    factors = curvedit.Factors.from_moments(same)
    selection = curvedit.rank(factors, keep_mass=0.5, criterion="random", progress=False)
    assert not torch.equal(selection["one"].mask, selection["two"].mask)


def test_padded_passages_are_continued_as_each_alone():
    """In a model whose next token hangs on all the tokens before it, new ones included."""
    model = models.build("llama")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.mul_(30)
    prefixes = [models.draw(length, seed=length) for length in (3, 11, 6, 1, 8, 14)]
    passages = curvedit.Passages(prefixes, [models.draw(12, seed=90 + i) for i in range(6)])
    found = greedy_continuations(model, passages, batch_size=6)
    for prefix, got in zip(prefixes, found, strict=True):
        ids = torch.tensor([prefix])
        with torch.no_grad():
            for _ in range(12):
                best = model(input_ids=ids, use_cache=False).logits[:, -1:].argmax(-1)
                ids = torch.cat([ids, best], dim=1)
        assert list(got) == ids[0, len(prefix) :].tolist()


def test_a_hash_tells_shapes_and_dtypes_apart():
    flat = torch.zeros(2, 6)
    others = (flat.view(3, 4), flat.view(6, 2), torch.zeros(2, 12).bfloat16())
    assert len({weight_hash(weight) for weight in (flat, *others)}) == 4
    assert weight_hash(torch.arange(6.0).view(2, 3).mT) == weight_hash(
        torch.tensor([[0.0, 3], [1, 4], [2, 5]])
    )


class Chain(nn.Module):
    """Its blocks pass on a tensor that is changed in between."""

    def __init__(self):
        super().__init__()
        self.maps = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x):
        for layer in self.maps:
            x = torch.tanh(layer(x))
        return x


@pytest.mark.filterwarnings("ignore:the model is not run block by block:UserWarning")
def test_blocks_that_are_fitted_whole_are_fitted_right():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x, y = Chain(), torch.randn(8, 4), torch.randint(4, (8,))
    factors = curvedit.fit(model, [(x, y)], targets="*", labels="data", progress=False)
    twin, found = copy.deepcopy(model).double(), {}
    for name in factors:
        twin.get_submodule(name).register_forward_hook(
            lambda _, a, z, n=name: (
                z.register_hook(lambda g: found.update({n: (a[0].detach(), g)})) and None
            )
        )
    F.cross_entropy(twin(x.double()), y, reduction="sum").backward()
    for name, (a, g) in found.items():
        assert distance(factors[name].A, a.T @ a / 8) < 1e-6
        assert distance(factors[name].G, g.T @ g / 8) < 1e-6
    assert set(found) == set(factors)


@pytest.mark.parametrize("labels", ["sampled", "data"])
def test_neither_batching_nor_order_changes_a_factor(labels):
    model = models.build("llama")
    whole, *parts = (
        models.ragged_batches("llama", sizes=sizes) for sizes in ((6,), (1, 2, 3), (3, 3))
    )
    for batches in (whole, *parts):
        first = 0
        for batch in batches:
            batch["sample_index"] = torch.arange(first, first + len(batch["labels"]))
            first += len(batch["labels"])
    expected = curvedit.fit(model, whole, targets="*.mlp.*", labels=labels, progress=False)
    for batches in (*parts, parts[0][::-1]):
        factors = curvedit.fit(model, batches, targets="*.mlp.*", labels=labels, progress=False)
        for name in factors:
            assert factors[name].tokens == expected[name].tokens
            for kind in ("A", "G", "A_w", "G_w"):
                assert distance(factors.mean(kind, name), expected.mean(kind, name)) < 1e-5


def test_an_interval_holds_the_middle_95_percent():
    """Of the mean of many units it is 1.96 standard errors to either side."""
    units = np.random.default_rng(0).normal(3.0, 2.0, 2000)
    found = ratio(units, resamples=4000, seed=0)
    error = units.std() / len(units) ** 0.5
    assert found.value == pytest.approx(units.mean())
    assert (found.value - found.low) / error == pytest.approx(1.96, rel=0.05)
    assert (found.high - found.value) / error == pytest.approx(1.96, rel=0.05)
