"""What a fit covers: every parameter once, and a reason for those that are left out."""

import architectures
import models
import pytest
import torch
from torch import nn

import curvedit
from curvedit.models import find_targets

pytestmark = pytest.mark.filterwarnings("ignore:.*fewer positions:UserWarning")


def fit(model, batches, targets, **options):
    return curvedit.fit(model, batches, targets=targets, labels="data", progress=False, **options)


def rows_of(factors):
    return {row["name"]: row for row in factors.provenance["coverage"]["table"]}


def mixture():
    return architectures.build("mixtral"), architectures.batches("text")


def test_every_parameter_is_counted_once():
    model, batches = models.build("llama"), models.ragged_batches("llama")
    factors = fit(model, batches, ["*.mlp.*", "lm_head"])
    table = factors.provenance["coverage"]["table"]
    assert sum(row["parameters"] for row in table) == sum(p.numel() for p in model.parameters())
    rows = rows_of(factors)
    assert rows["model.layers.*.mlp.up_proj.weight"] == {
        **{"name": "model.layers.*.mlp.up_proj.weight", "kind": "Linear", "tensors": 3},
        **{"parameters": 3 * 48 * 32, "fitted": True, "why": ""},
    }
    assert rows["model.layers.*.self_attn.q_proj.weight"]["why"] == "no pattern matches it"
    assert rows["model.embed_tokens.weight"]["why"] == "an embedding"
    fitted = sum(row["parameters"] for row in table if row["fitted"])
    assert fitted == sum(m.weight.numel() for m in find_targets(model, [*factors]).values())


def test_tied_weights_count_once():
    model = models.build("llama")
    model.model.layers[1].mlp.up_proj.weight = model.model.layers[0].mlp.up_proj.weight
    factors = fit(model, models.ragged_batches("llama"), "*.{0,1}.mlp.up_proj")
    total = sum(p.numel() for p in model.parameters())
    assert factors.provenance["coverage"]["parameters"] == pytest.approx(48 * 32 / total, abs=1e-4)


class Bank(nn.Module):
    """Matrices in one parameter, of which nothing says how they are used."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 3)
        self.bank = nn.Parameter(torch.randn(3, 4, 4))

    def forward(self, x):
        return self.last(torch.einsum("bi,kij->bj", self.first(x), self.bank))


PAIRS = [(torch.randn(8, 4), torch.randint(3, (8,)))]


def test_fused_matrices_are_not_passed_over_in_silence():
    with pytest.warns(UserWarning, match=r"1 of the weights .* cannot be fitted .* bank: several"):
        factors = fit(Bank(), PAIRS, "*")
    row = rows_of(factors)["bank"]
    assert not row["fitted"]
    assert "several matrices in one tensor" in row["why"]
    assert any("cannot be fitted" in note for note in factors.provenance["warnings"])


def test_targets_that_are_only_fused_matrices_are_refused():
    with pytest.raises(ValueError, match=r"matches no linear map; it matches 'bank', .* several"):
        fit(Bank(), PAIRS, "bank")


@pytest.mark.filterwarnings("error")
def test_attention_alone_needs_no_warning():
    model, batches = mixture()
    assert len(fit(model, batches, "*.self_attn.q_proj"))


def test_a_share_that_is_not_reached_is_an_error_before_any_work():
    model, _ = mixture()

    def never():
        raise AssertionError("the data was read")
        yield

    with pytest.raises(
        ValueError,
        match=r"min_coverage: expected .* at least 90.0%.* got .*%; not fitted are .*expert",
    ):
        fit(model, never(), "*.self_attn.*", min_coverage=0.9)
    for share in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match="min_coverage: expected a share from 0 to 1"):
            fit(model, never(), "*.self_attn.*", min_coverage=share)


class Idle(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.idle = nn.Linear(4, 3), nn.Linear(4, 30)

    def forward(self, x):
        return self.used(x)


def test_maps_that_are_never_called_are_not_covered():
    pairs = [(torch.randn(8, 4), torch.randint(3, (8,)))]
    with pytest.warns(UserWarning, match="never called"):
        factors = fit(Idle(), pairs, "*")
    assert rows_of(factors)["idle.weight"]["why"] == "it was never called"
    assert factors.provenance["coverage"]["parameters"] < 0.1
    with pytest.raises(ValueError, match=r"min_coverage: expected .* idle.weight"):
        fit(Idle(), pairs, "*", min_coverage=0.5)


class Wrapped(torch.Tensor):
    """A tensor that is made of others, as quantisation libraries and DTensor use."""

    def __tensor_flatten__(self):
        return [], None


def quantised(module):
    module.weight = nn.Parameter(module.weight.data.to(torch.int8), requires_grad=False)


def float8(module):
    module.weight = nn.Parameter(module.weight.data.to(torch.float8_e4m3fn), requires_grad=False)


def of_another_class(module):
    module.weight = nn.Parameter(module.weight.data.as_subclass(Wrapped))


def parametrised(module):
    torch.nn.utils.parametrizations.weight_norm(module)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (quantised, "it is quantised, int8"),
        (float8, "it is quantised, float8_e4m3fn"),
        (of_another_class, "its weight is stored as Wrapped"),
        (parametrised, "its weight is computed from other parameters"),
    ],
)
def test_a_weight_that_is_not_plain_numbers_is_named(change, reason):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    change(model[0])
    pairs = [(torch.randn(8, 4), torch.randint(3, (8,)))]
    with pytest.raises(ValueError, match=rf"it matches '0', which cannot be fitted: {reason}"):
        fit(model, pairs, "0")
    if change in (of_another_class, parametrised):
        with pytest.warns(UserWarning, match=rf"cannot be fitted .* 0: {reason}"):
            assert list(fit(model, pairs, "*")) == ["1"]


def test_weights_that_are_not_in_memory_are_refused():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 3))
    with pytest.raises(ValueError, match="model: expected weights in memory, got that of '0' on"):
        fit(model, [(torch.randn(8, 4), torch.randint(3, (8,)))], "*")


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([[3, 96, 97]], "batches: batch 1: expected token ids below 97, the model's vocabulary"),
        ([[3, -1, 4]], "batches: batch 1: expected token ids of at least 0, got -1"),
        ([[3] * 65], "batches: batch 1: expected at most 64 tokens, the model's context"),
    ],
)
def test_tokens_that_do_not_fit_the_model_are_refused(ids, message):
    good, bad = torch.tensor([[3, 4, 5]]), torch.tensor(ids)
    with pytest.raises(ValueError, match=message):
        fit(models.build("llama"), [good, bad], "*.mlp.*")
