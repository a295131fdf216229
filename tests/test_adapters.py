"""Models with adapters: the base maps below them are fitted and edited under their own names."""

import copy
import inspect

import architectures
import models
import pytest
import torch
import transformers
from test_architectures import autograd, distance

import curvedit
from curvedit.cli import main

peft = pytest.importorskip("peft")

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*fewer positions:UserWarning",
    "ignore:keep_mass:UserWarning",
    "ignore:.*cannot be fitted:UserWarning",
    "ignore:.*not forgotten within:UserWarning",
)

ADAPTED = {"llama": ["gate_proj", "q_proj"], "gpt2": ["c_fc", "c_attn"]}
PREFIX = "base_model.model."


def with_adapter(kind, **options):
    """A model with an adapter that does something."""
    model = models.build(kind)
    config = peft.LoraConfig(
        r=2,
        target_modules=ADAPTED[kind],
        lora_dropout=0.1,
        fan_in_fan_out=kind == "gpt2",
        **options,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        adapted = peft.get_peft_model(model, config)
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.05)
    return adapted.eval()


@pytest.mark.parametrize("kind", ADAPTED)
def test_factors_are_those_of_the_base_maps_below_the_adapter(kind):
    model, batches = with_adapter(kind), models.ragged_batches(kind)
    torch.set_default_dtype(torch.float64)
    try:
        expected = autograd(copy.deepcopy(model).double().requires_grad_(True), batches)
    finally:
        torch.set_default_dtype(torch.float32)
    targets = models.targets(kind)
    factors = curvedit.fit(model, batches, targets=targets, labels="data", progress=False)
    adapted = [name for name in factors if any(name.endswith(each) for each in ADAPTED[kind])]
    assert adapted
    assert not any("lora" in name or "base_layer" in name for name in factors)
    for name in factors:
        assert name.startswith(PREFIX)
        a, g, *_, count = expected[f"{name}.base_layer" if name in adapted else name]
        assert factors[name].tokens == count
        for found, sums in ((factors[name].A, a), (factors[name].G, g)):
            assert distance(found, sums / count) < 1e-5


def rank_and_edit(model, batches, kind):
    factors = curvedit.fit(model, batches, targets=models.targets(kind), progress=False)
    return factors, curvedit.rank(factors, keep_mass=0.7, progress=False)


@pytest.mark.parametrize("kind", ADAPTED)
def test_an_edit_is_that_of_the_base_and_is_undone(kind):
    model, batches = with_adapter(kind), models.ragged_batches(kind)
    before = {name: each.clone() for name, each in model.state_dict().items()}
    _, selection = rank_and_edit(model, batches, kind)
    with curvedit.project(model, selection):
        changed = {
            name for name, each in model.state_dict().items() if not torch.equal(each, before[name])
        }
        assert changed
        assert not any("lora" in name for name in changed)
        assert any(name.endswith("base_layer.weight") for name in changed)
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())


def test_the_base_checkpoint_takes_the_same_edit(tmp_path):
    model, batches = with_adapter("llama"), models.ragged_batches("llama")
    models.build("llama").save_pretrained(tmp_path / "base")
    _, selection = rank_and_edit(model, batches, "llama")
    curvedit.project(tmp_path / "base", selection, out=tmp_path / "edited")
    edited = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "edited")
    ids = batches[0]["input_ids"]
    curvedit.project(model, selection)
    with model.disable_adapter(), torch.no_grad():
        torch.testing.assert_close(model(input_ids=ids).logits, edited(input_ids=ids).logits)


@pytest.mark.parametrize("criterion", ["svd", "random", "weighted"])
def test_criteria_that_read_the_weights(criterion):
    model, batches = with_adapter("llama"), models.ragged_batches("llama")
    factors, _ = rank_and_edit(model, batches, "llama")
    chosen = curvedit.rank(factors, keep_mass=0.5, criterion=criterion, model=model, progress=False)
    with curvedit.project(model, chosen) as edit:
        assert set(edit.targets) == set(factors)


def test_a_price_is_measured_and_passages_are_forgotten():
    model, batches = with_adapter("llama"), models.ragged_batches("llama")
    factors, _ = rank_and_edit(model, batches, "llama")
    before = {name: each.clone() for name, each in model.state_dict().items()}
    found = curvedit.rank(factors, keep_kl=0.05, model=model, holdout=batches, progress=False)
    assert 0 < found.recipe["measured_kl"] <= 0.05
    prefix = [5, 6, 7, 8]
    with torch.no_grad():
        said = model.generate(input_ids=torch.tensor([prefix]), max_new_tokens=6, do_sample=False)[
            0, 4:
        ].tolist()
    passages = curvedit.Passages([prefix], [said])
    with curvedit.forget(
        model, factors, passages, holdout=batches, budget=0.5, progress=False
    ) as edit:
        assert edit.record["recited"] == 1
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())


def test_an_adapters_own_maps_are_refused_by_name():
    model = with_adapter("llama")
    with pytest.raises(ValueError, match=r"lora_A.default', which cannot be fitted: it belongs to"):
        curvedit.fit(model, models.ragged_batches("llama"), targets="*.lora_A.*", progress=False)


def test_an_adapter_that_uses_the_weight_elsewhere_is_refused_by_name():
    model = with_adapter("llama", use_dora=True)
    with pytest.raises(ValueError, match=r"gate_proj', which cannot be fitted: its adapter \(DoRA"):
        curvedit.fit(model, models.ragged_batches("llama"), targets="*.gate_proj", progress=False)


def test_a_merged_model_is_a_plain_one():
    model, batches = with_adapter("llama"), models.ragged_batches("llama")
    merged = copy.deepcopy(model).merge_and_unload()
    factors = curvedit.fit(merged, batches, targets="*.gate_proj", progress=False)
    assert next(iter(factors)) == "model.layers.0.mlp.gate_proj"
    with pytest.raises(ValueError, match="model: "):
        curvedit.project(model, curvedit.rank(factors, keep_mass=0.7, progress=False))


def test_an_adapters_directory_alone_is_refused_with_a_hint(tmp_path, capsys):
    with_adapter("llama").save_pretrained(tmp_path / "adapter")
    (tmp_path / "text.txt").write_text("some text")
    arguments = ["--model", str(tmp_path / "adapter"), "--data", str(tmp_path / "text.txt")]
    arguments += ["--targets", "*", "--out", str(tmp_path / "factors")]
    assert main(["fit", *arguments]) == 1
    assert "an adapter alone; merge it into its base" in capsys.readouterr().err


def test_experts_below_an_adapter_of_their_parameters_are_refused():
    """PEFT replaces the fused parameter while it runs; what is left of the model is fitted."""
    if "target_parameters" not in inspect.signature(peft.LoraConfig).parameters:
        pytest.skip("this PEFT has no adapters of parameters")
    model = architectures.build("mixtral")
    if not any(".experts.0." in name for name in curvedit.models.maps_of(model)):
        pytest.skip("this transformers has no fused experts")
    config = peft.LoraConfig(
        target_modules=["q_proj"], target_parameters=["mlp.experts.down_proj"], lora_dropout=0.0
    )
    adapted = peft.get_peft_model(model, config)
    batches = architectures.batches("text")
    message = r"targets: .* which cannot be fitted: an adapter is laid over its experts; merge"
    with pytest.raises(ValueError, match=message):
        curvedit.fit(adapted, batches, targets="*.experts.*_proj", progress=False)
    factors = curvedit.fit(adapted, batches, targets="*.o_proj", progress=False)
    assert len(factors) == 2
