"""Models with quantised linear maps: fitted as they are, edited in the unquantised checkpoint."""

import copy
import json

import models
import pytest
import torch
import transformers
from test_architectures import autograd, distance
from torch import nn

import curvedit
from curvedit.cli import main

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*fewer positions:UserWarning",
    "ignore:keep_mass:UserWarning",
    "ignore:.*are quantised:UserWarning",
    "ignore::DeprecationWarning",
    "ignore::FutureWarning",
)
TARGETS = ["model.layers.*.mlp.*", "model.layers.*.self_attn.{q,v}_proj"]


def replaced(model, make):
    """The model with every linear map of its blocks made anew, and a twin of the same numbers."""
    twin = copy.deepcopy(model)
    for name, module in list(model.model.layers.named_modules()):
        if isinstance(module, nn.Linear):
            quantised, weight = make(module)
            owner, _, last = name.rpartition(".")
            setattr(model.model.layers.get_submodule(owner), last, quantised)
            twin.model.layers.get_submodule(name).weight.data = weight
    return model, twin


def bitsandbytes(model):
    """Four bits by bitsandbytes."""
    bnb = pytest.importorskip("bitsandbytes")

    def make(module):
        made = bnb.nn.Linear4bit(
            module.in_features,
            module.out_features,
            bias=False,
            compute_dtype=torch.float32,
            quant_type="nf4",
        )
        made.load_state_dict(module.state_dict())
        made = made.to("cpu")
        return made, bnb.functional.dequantize_4bit(made.weight.data, made.weight.quant_state)

    return replaced(model, make)


def torchao(model):
    """Eight bits by torchao."""
    quantization = pytest.importorskip("torchao.quantization")

    def make(module):
        made = nn.Sequential(copy.deepcopy(module))
        quantization.quantize_(made, quantization.Int8WeightOnlyConfig())
        return made[0], made[0].weight.dequantize()

    return replaced(model, make)


@pytest.fixture(params=[bitsandbytes, torchao], ids=["bitsandbytes", "torchao"])
def pair(request):
    """A quantised model and the one that it stands for."""
    return request.param(models.build("llama"))


def test_factors_are_those_of_the_numbers_it_stands_for(pair):
    model, twin = pair
    batches = models.ragged_batches("llama")
    torch.set_default_dtype(torch.float64)
    try:
        expected = autograd(copy.deepcopy(twin).double(), batches)
    finally:
        torch.set_default_dtype(torch.float32)
    with pytest.warns(UserWarning, match=r"15 of 15 targets are quantised, .*edit the unquantised"):
        factors = curvedit.fit(model, batches, targets=TARGETS, labels="data", progress=False)
    assert factors.provenance["coverage"]["targets"] == 15
    for name in factors:
        a, g, *_, count = expected[name]
        assert factors.targets[name].weight_sha256 == ""
        assert factors[name].tokens == count
        assert distance(factors[name].A, a / count) < 1e-4
        assert distance(factors[name].G, g / count) < 1e-4


def test_the_unquantised_checkpoint_is_edited(pair, tmp_path):
    model, _ = pair
    plain = models.build("llama")
    plain.save_pretrained(tmp_path / "plain")
    batches = models.ragged_batches("llama")
    factors = curvedit.fit(model, batches, targets=TARGETS, progress=False)
    factors.save(tmp_path / "factors")
    selection = curvedit.rank(
        curvedit.Factors.load(tmp_path / "factors"), keep_mass=0.7, progress=False
    )
    edit = curvedit.project(tmp_path / "plain", selection, out=tmp_path / "edited")
    assert set(edit.targets) == set(factors)
    with curvedit.project(plain, selection) as inside:
        for name, each in inside.targets.items():
            assert each.sha256_after == edit.targets[name].sha256_after


def test_the_quantised_model_itself_is_not_edited(pair):
    model, _ = pair
    batches = models.ragged_batches("llama")
    factors = curvedit.fit(model, batches, targets=TARGETS, progress=False)
    selection = curvedit.rank(factors, keep_mass=0.7, progress=False)
    message = "one whose weight is quantised .* give the unquantised model"
    with pytest.raises(ValueError, match=message):
        curvedit.project(model, selection)
    with pytest.raises(ValueError, match=message):
        curvedit.rank(factors, keep_mass=0.7, criterion="svd", model=model, progress=False)
    with pytest.raises(ValueError, match=message):
        curvedit.rank(factors, keep_kl=0.1, model=model, progress=False)


def test_an_adapter_over_a_quantised_map():
    """As QLoRA trains it."""
    peft = pytest.importorskip("peft")
    model, _ = bitsandbytes(models.build("llama"))
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["gate_proj"])).eval()
    batches = models.ragged_batches("llama")
    factors = curvedit.fit(adapted, batches, targets="model.layers.*.gate_proj", progress=False)
    assert [name.removeprefix("base_model.model.") for name in factors] == [
        f"model.layers.{number}.mlp.gate_proj" for number in range(3)
    ]
    plain = models.build("llama")
    selection = curvedit.rank(factors, keep_mass=0.7, progress=False)
    with pytest.raises(ValueError, match="expected a linear map 'base_model"):
        curvedit.project(plain, selection)


def test_a_weight_that_was_repacked_for_inference_is_refused():
    model, _ = bitsandbytes(models.build("llama"))
    model.model.layers[1].mlp.up_proj.weight.quant_state.packing_format_for_cpu = True
    with pytest.raises(ValueError, match=r"up_proj' repacked for inference by bitsandbytes; load"):
        curvedit.fit(model, models.ragged_batches("llama"), targets=TARGETS, progress=False)


def test_measuring_does_not_repack():
    model, _ = bitsandbytes(models.build("llama"))
    model.eval()
    suite = curvedit.Suite(text=[[3, 4, 5, 6]])
    first = curvedit.evaluate(model, suite, progress=False)
    modules = [each for each in model.modules() if hasattr(each, "quant_state")]
    assert modules
    assert not any(
        getattr(each.weight.quant_state, "packing_format_for_cpu", 0) for each in modules
    )
    assert not model.training
    assert not any(each.training for each in modules)
    assert curvedit.evaluate(model, suite, progress=False).before == first.before


@pytest.fixture(params=["bitsandbytes", "torchao"])
def checkpoint(request, tmp_path):
    """A quantised checkpoint directory beside the plain one it was made from."""
    models.build("llama").save_pretrained(tmp_path / "plain")
    pytest.importorskip(request.param)
    if request.param == "bitsandbytes":
        config = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    else:
        quantization = pytest.importorskip("torchao.quantization")
        config = transformers.TorchAoConfig(quantization.Int8WeightOnlyConfig())
    transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "plain", quantization_config=config, device_map={"": "cpu"}
    ).save_pretrained(tmp_path / "quantised")
    rows = [{"input_ids": list(range(3 + start, 23 + start))} for start in range(40)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def run(verb, **flags):
    arguments = [
        part for name, value in flags.items() for part in (f"--{name.replace('_', '-')}", value)
    ]
    return main([verb, *(str(part) for part in arguments), "--no-progress"])


def test_from_the_command_line(checkpoint, capsys):
    place = checkpoint
    data = {"window": 20, "device": "cpu"}
    source = {"data": place / "data.jsonl", "targets": "model.layers.*.mlp.*", **data}
    assert run("fit", model=place / "quantised", out=place / "factors", **source) == 0
    assert run("rank", factors=place / "factors", keep_mass=0.7, out=place / "kept") == 0
    edit = {"selection": place / "kept"}
    assert run("project", model=place / "quantised", out=place / "no", **edit) == 1
    assert "expected" in capsys.readouterr().err
    assert not (place / "no").exists()
    assert run("project", model=place / "plain", out=place / "edited", **edit) == 0
    text = {"text": place / "data.jsonl", "baseline": place / "quantised", **data}
    assert run("evaluate", model=place / "edited", out=place / "report", **text) == 0
    assert "Perplexity" in capsys.readouterr().out


def test_a_package_that_is_missing_is_named(checkpoint, monkeypatch, capsys):
    monkeypatch.setattr("curvedit.models.loading.find_spec", lambda _: None)
    source = {"data": checkpoint / "data.jsonl", "targets": "*", "window": 20}
    assert run("fit", model=checkpoint / "quantised", out="f", **source) == 1
    assert "is quantised by" in capsys.readouterr().err
