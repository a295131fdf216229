"""``fit`` against plain float64 autograd, and what it refuses."""

import copy
import warnings

import models
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import curvedit
from curvedit.fitting import sampling
from curvedit.models import find_targets

pytestmark = pytest.mark.filterwarnings("ignore:.*fewer positions:UserWarning")

DECODERS = ["llama", "olmo2", "qwen3", "mistral", "gemma2", "gpt2", "neox"]
SEED = 3


def summed_loss(logits, batch, labels, first):
    """The loss as the contract defines it, one label and one position at a time."""
    terms = []
    if logits.ndim == 2:
        for row in range(len(logits)):
            label = batch["labels"][row]
            if labels == "sampled":
                label = draw(logits[row], first + row, 0)
            terms.append(F.cross_entropy(logits[row], label))
        return torch.stack(terms).sum(), None
    ids, mask, own = batch["input_ids"], batch["attention_mask"], batch["labels"]
    counts = torch.zeros_like(mask, dtype=torch.bool)
    for row in range(len(ids)):
        for t in range(ids.shape[1] - 1):
            if mask[row, t] and mask[row, t + 1] and own[row, t + 1] != -100:
                counts[row, : t + 1] = mask[row, : t + 1] == 1  # the loss at t reaches them all
                label = (
                    draw(logits[row, t], first + row, t) if labels == "sampled" else ids[row, t + 1]
                )
                terms.append(F.cross_entropy(logits[row, t], label))
    return torch.stack(terms).sum(), counts


def draw(logits, sample, position):
    drawn = sampling.uniform(SEED, torch.tensor([sample]), torch.tensor([position]))
    return sampling.sample_labels(logits.detach()[None].float().softmax(-1), drawn)[0]


def truth(model, patterns, batches, labels):
    """Mean factors from ordinary backward passes in float64, one batch at a time."""
    model = copy.deepcopy(model).double()
    maps = find_targets(model, patterns)
    seen, totals, first = {}, {}, 0

    def remember(name):
        def hook(_, args, output):
            output.retain_grad()
            seen[name] = (args[0].detach(), output)

        return hook

    for name, module in maps.items():
        module.register_forward_hook(remember(name))
    for batch in batches:
        inputs = {
            k: v.double() if v.is_floating_point() else v for k, v in batch.items() if k != "labels"
        }
        logits = model(**inputs).logits
        loss, counts = summed_loss(logits, batch, labels, first)
        loss.backward()
        first += len(batch["labels"])
        for name, (a, y) in seen.items():
            a, g = a.flatten(0, -2), y.grad.flatten(0, -2)
            if counts is not None:
                a, g = a[counts.flatten()], g[counts.flatten()]
            norm_a, norm_g = (x.square().sum(1, keepdim=True) for x in (a, g))
            new = (a.T @ a, g.T @ g, (a * norm_g).T @ a, (g * norm_a).T @ g, len(a))
            totals[name] = tuple(
                x + y for x, y in zip(totals.get(name, (0,) * 5), new, strict=True)
            )
    return {name: (*(total / n for total in sums), n) for name, (*sums, n) in totals.items()}


def largest_error(factors, expected):
    worst = 0.0
    for name, (*moments, tokens) in expected.items():
        got = factors[name]
        assert got.tokens == tokens
        for ours, want in zip((got.A, got.G, got.A_w, got.G_w), moments, strict=True):
            worst = max(worst, float((ours - want).norm() / want.norm()))
    return worst


@pytest.mark.parametrize("labels", ["sampled", "data"])
@pytest.mark.parametrize("kind", [*DECODERS, "vit"])
def test_equals_plain_autograd(kind, labels):
    model, patterns = models.build(kind), models.targets(kind)
    batches = models.ragged_batches(kind)
    expected = truth(model, patterns, batches, labels)
    factors = curvedit.fit(
        model, batches, targets=patterns, labels=labels, seed=SEED, progress=False
    )
    assert factors.provenance["backward"].startswith("block by block")
    assert largest_error(factors, expected) < 1e-5


@pytest.mark.parametrize("patterns", ["model.layers.2.mlp.*", "model.layers.1.self_attn.q_proj"])
def test_stops_at_the_lowest_target(patterns):
    model, batches = models.build("llama"), models.ragged_batches("llama")
    runs = [0] * 3
    for number, layer in enumerate(model.model.layers):
        layer.self_attn.register_forward_hook(lambda *_, n=number: runs.__setitem__(n, runs[n] + 1))
    factors = curvedit.fit(model, batches, targets=patterns, seed=SEED, progress=False)
    lowest = int(patterns.split(".")[2])
    # two for the causality check, two or three for the self-check
    assert runs == [9 if lowest <= n < 2 else 6 for n in range(3)]
    assert largest_error(factors, truth(model, patterns, batches, "sampled")) < 1e-5


def test_head_is_a_target_like_any_other():
    model, batches = models.build("llama"), models.ragged_batches("llama")
    factors = curvedit.fit(
        model, batches, targets=["lm_head", "*.2.mlp.up_proj"], seed=SEED, progress=False
    )
    assert (
        largest_error(factors, truth(model, ["lm_head", "*.2.mlp.up_proj"], batches, "sampled"))
        < 1e-5
    )


@pytest.mark.parametrize("pieces", [12 * 97 * 3, 12 * 97 * 25])
def test_pieces_of_the_head_change_nothing(pieces):
    model, batches = models.build("gemma2"), models.ragged_batches("gemma2")
    factors = curvedit.fit(
        model, batches, targets="*.mlp.*", seed=SEED, logits_bytes=pieces, progress=False
    )
    assert largest_error(factors, truth(model, "*.mlp.*", batches, "sampled")) < 1e-5


@pytest.mark.parametrize("labels", ["sampled", "data"])
def test_batch_size_changes_nothing(labels):
    model = models.build("gpt2")
    whole, single = (
        curvedit.fit(
            model,
            models.ragged_batches("gpt2", sizes=sizes),
            targets=models.targets("gpt2"),
            labels=labels,
            progress=False,
        )
        for sizes in ((6,), (1, 2, 1, 1, 1))
    )
    for name in whole:
        assert whole[name].tokens == single[name].tokens
        for kind in ("A", "G", "A_w", "G_w"):
            torch.testing.assert_close(
                whole.mean(kind, name), single.mean(kind, name), rtol=1e-4, atol=1e-6
            )


def test_order_changes_nothing_when_samples_are_numbered():
    model = models.build("llama")
    batches = models.ragged_batches("llama", sizes=(2, 2, 2))
    for number, batch in enumerate(batches):
        batch["sample_index"] = torch.arange(2 * number, 2 * number + 2)
    there, back = (
        curvedit.fit(model, order, targets="*.mlp.*", progress=False)
        for order in (batches, batches[::-1])
    )
    for name in there:
        torch.testing.assert_close(there[name].G, back[name].G, rtol=1e-4, atol=1e-7)


def test_labels_that_are_no_class_are_refused():
    model = torch.nn.Sequential(torch.nn.Linear(3, 2))
    data = [(torch.randn(4, 3), torch.tensor([0, 1, 2, -100]))]
    with pytest.raises(ValueError, match="batches: expected labels from 0 to 1, got -100 to 2"):
        curvedit.fit(model, data, targets="*", labels="data", progress=False)


def test_shared_inputs_have_one_factor():
    model, batches = models.build("llama"), models.ragged_batches("llama")
    factors = curvedit.fit(model, batches, targets="model.layers.0.*", progress=False)
    prefix = "model.layers.0."
    assert factors.targets[prefix + "self_attn.v_proj"].input_group == prefix + "self_attn.q_proj"
    assert factors.targets[prefix + "mlp.up_proj"].input_group == prefix + "mlp.gate_proj"
    assert [str(key) for key in factors.keys_of_sums() if key.kind == "A"] == [
        f"A/{prefix}{name}"
        for name in ("mlp.down_proj", "mlp.gate_proj", "self_attn.o_proj", "self_attn.q_proj")
    ]


class Perceptron(nn.Module):
    """A model without a block list, with a map called twice and an in-place activation."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.out = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = F.relu_(self.first(x))
        return self.out(torch.tanh(self.second(torch.tanh(self.second(x)))))


def test_plain_module_with_a_reused_map():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Perceptron().eval()
        x, y = torch.randn(16, 5), torch.randint(3, (16,))
    factors = curvedit.fit(
        model, [(x[:10], y[:10]), (x[10:], y[10:])], targets="*", labels="data", progress=False
    )
    assert factors["second"].tokens == 32
    assert factors["first"].tokens == 16
    twin = copy.deepcopy(model).double()
    kept = []
    twin.second.register_forward_hook(
        lambda _, a, o: (o.retain_grad(), kept.append((a[0], o)))[1] and None
    )
    F.cross_entropy(twin(x.double()), y, reduction="sum").backward()
    a, g = torch.cat([a for a, _ in kept]), torch.cat([o.grad for _, o in kept])
    torch.testing.assert_close(factors["second"].A.double(), a.T @ a / 32, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(factors["second"].G.double(), g.T @ g / 32, rtol=1e-4, atol=1e-7)


def test_custom_loss():
    model = nn.Sequential(nn.Linear(3, 2))
    x, y = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), torch.zeros(6, 2)
    factors = curvedit.fit(
        model,
        [(x, y)],
        targets="0",
        labels="data",
        loss=lambda o, y: 0.5 * (o - y).square().sum(),
        progress=False,
    )
    residual = model(x).detach()
    torch.testing.assert_close(factors["0"].G, residual.T @ residual / 6)


def test_positions_first_takes_the_class_token_only():
    model, batches = models.build("vit"), models.ragged_batches("vit")
    factors = curvedit.fit(
        model, batches, targets=models.targets("vit"), positions="first", progress=False
    )
    assert {target.tokens for target in factors.targets.values()} == {6}


def test_leaves_the_model_as_it_was():
    model = models.build("llama").train()
    model.lm_head.weight.requires_grad_(False)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    curvedit.fit(model, models.ragged_batches("llama"), targets="*.mlp.*", progress=False)
    assert all(module.training for module in model.modules())
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["lm_head.weight"]
    assert all(torch.equal(p, before[n]) and p.grad is None for n, p in model.named_parameters())
    assert not any(
        m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in model.modules()
    )


@pytest.mark.filterwarnings("ignore:.*not run block by block:UserWarning")
def test_blocks_that_do_not_pass_one_tensor_along_are_fitted_whole():
    class Stack(nn.Module):
        def __init__(self):
            super().__init__()
            self.maps = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

        def forward(self, x):
            for layer in self.maps:
                x = torch.tanh(layer(x))
            return x

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Stack()
        data = [(torch.randn(8, 4), torch.randint(4, (8,)))]
    factors = curvedit.fit(model, data, targets="*", progress=False)
    assert factors.provenance["backward"].startswith("whole model: the output of block 0")
    assert factors["maps.0"].G.trace() > 0


def nan_weight(model):
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] = torch.nan


def nan_activation(model):
    model.model.layers[1].post_attention_layernorm.weight.data[0] = torch.nan


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (
            None,
            {"targets": "*.mlp.gat_proj"},
            r"targets: '\*.mlp.gat_proj' matches no linear map.*gate_proj",
        ),
        (None, {"targets": []}, "targets: expected at least one"),
        (None, {"labels": "true"}, "labels: expected one of"),
        (nan_weight, {}, "weight of 'model.layers.1.mlp.up_proj' is not finite"),
        (nan_activation, {}, "not finite in batch 0"),
    ],
)
def test_refuses_bad_arguments_and_models(change, options, message):
    model = models.build("llama")
    if change:
        change(model)
    with pytest.raises(ValueError, match=message):
        curvedit.fit(
            model,
            models.ragged_batches("llama"),
            **{"targets": "*.mlp.*", "progress": False, **options},
        )


@pytest.mark.parametrize(
    ("batches", "error", "message"),
    [
        ([], ValueError, "expected at least one batch, got none"),
        (
            [torch.ones(2, 1, dtype=torch.int64)],
            ValueError,
            r"batch 0 of shape \(2, 1\) has no position",
        ),
        (
            [
                {
                    "input_ids": torch.ones(2, 9, dtype=torch.int64),
                    "attention_mask": torch.zeros(2, 9),
                }
            ],
            ValueError,
            "has no position with a next token",
        ),
        ([3], TypeError, "got int as batch 0"),
        ([{}], ValueError, "expected at least one tensor"),
    ],
)
def test_refuses_bad_data(batches, error, message):
    with pytest.raises(error, match=message):
        curvedit.fit(models.build("llama"), batches, targets="*.mlp.*", progress=False)


def test_refuses_a_model_that_sees_the_future():
    import transformers

    config = transformers.BertConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
    )
    model = transformers.BertForMaskedLM(config)
    with pytest.raises(ValueError, match="causal"):
        curvedit.fit(
            model, [torch.randint(3, 97, (2, 9))], targets="*.output.dense", progress=False
        )


def test_warns_of_rank_deficient_factors():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        factors = curvedit.fit(
            models.build("llama"),
            [torch.arange(3, 12)[None]],
            targets="*.0.mlp.up_proj",
            progress=False,
        )
    assert "fewer positions than they have dimensions" in str(caught[-1].message)
    assert factors.provenance["warnings"]


def test_what_follows_a_target_may_write_to_its_output():
    torch.manual_seed(0)
    layers = [torch.nn.Linear(5, 7), torch.nn.ReLU(inplace=True), torch.nn.Linear(7, 3)]
    data = [(torch.randn(16, 5), torch.randint(3, (16,)))]
    factors = curvedit.fit(
        torch.nn.Sequential(*layers), data, targets="*", labels="data", progress=False
    )
    layers[1] = torch.nn.ReLU()
    expected = curvedit.fit(
        torch.nn.Sequential(*layers), data, targets="*", labels="data", progress=False
    )
    for name in expected:
        assert torch.equal(factors[name].A, expected[name].A)
        assert torch.equal(factors[name].G, expected[name].G)
