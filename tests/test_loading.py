"""What cannot be loaded is refused in one line, at once, and nothing that is loaded runs code."""

import json
import pickle

import models
import pytest
import torch
import transformers

from curvedit.models import load_model, load_tokenizer


@pytest.fixture
def saved(tmp_path):
    models.build("llama").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def configured(**changes):
    def change(directory):
        path = directory / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


class Runs:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return pytest.fail, ("a pickle was read",)


def pickled(directory):
    (directory / "model.safetensors").unlink()
    (directory / "pytorch_model.bin").write_bytes(pickle.dumps(Runs()))


def text(content):
    return lambda directory: (directory / "config.json").write_bytes(content)


def of_another_shape(directory):
    configured(hidden_size=64)(directory)


def remote(directory):
    configured(
        architectures=["MineForCausalLM"],
        model_type="mine",
        auto_map={"AutoConfig": "code.MineConfig", "AutoModelForCausalLM": "code.Mine"},
    )(directory)
    (directory / "code.py").write_text("raise SystemExit('remote code was run')")


FP8 = {"quant_method": "fp8"}
BAD = {
    "pickled weights": (pickled, r"got pytorch_model.bin; only safetensors are read"),
    "no weights": (
        lambda d: (d / "model.safetensors").unlink(),
        r"cannot be loaded \(.*model\.saf",
    ),
    "damaged weights": (
        lambda d: (d / "model.safetensors").write_bytes(b"\xff" * 40),
        r"model: .* cannot be loaded \(",
    ),
    "a shape that differs": (of_another_shape, r"model: .* cannot be loaded \("),
    "no config": (
        lambda d: (d / "config.json").unlink(),
        "a checkpoint directory with config.json",
    ),
    "a config cut off": (text(b'{"model_type": "lla'), "config.json is not JSON"),
    "a config that is a list": (text(b"[1, 2]"), "expected a JSON object in .*, got list"),
    "a config in another encoding": (text(b"\xff\xfe{\x00}\x00"), "config.json is not JSON"),
    "an unknown type": (configured(model_type="mine"), r"model: .* cannot be loaded \("),
    "a value of another type": (configured(hidden_size="wide"), r"model: .* cannot be loaded \("),
    "no class": (configured(architectures=[]), "names a transformers class in 'architectures'"),
    "a class that is no model": (configured(architectures=["AutoConfig"]), "transformers class in"),
    "a number for a class": (configured(architectures=[3]), r"model: "),
    "code of its own": (remote, "needs code of its own .*, which is not run"),
    "quantised": (configured(quantization_config=FP8), r"is quantised \(fp8\); edit the unquant"),
    "quantised in a part": (
        configured(text_config={"quantization_config": FP8}),
        r"quantised \(fp8",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_checkpoint_that_cannot_be_loaded_is_refused(saved, case):
    damage, message = BAD[case]
    damage(saved)
    with pytest.raises((ValueError, OSError), match=message) as caught:
        load_model(saved, device="cpu")
    assert "\n" not in str(caught.value)
    assert str(saved) in str(caught.value)


@pytest.mark.parametrize("name", ["cuda", "cuda:9", "quantum", "meta"])
def test_a_device_that_is_not_there_is_refused_before_the_model_is_read(tmp_path, name):
    if name.startswith("cuda") and torch.cuda.device_count() > 9 * (name == "cuda:9"):
        pytest.skip("it is there")
    with pytest.raises(
        ValueError, match=f"device: expected one .*, got '{name}'.*use cpu"
    ) as caught:
        load_model(tmp_path / "nowhere", device=name)
    assert "\n" not in str(caught.value)


def test_an_encoder_decoder_is_refused(tmp_path):
    config = transformers.T5Config(
        vocab_size=97, d_model=16, d_kv=4, d_ff=24, num_layers=1, num_heads=4
    )
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path / "t5")
    with pytest.raises(ValueError, match=r"expected a decoder or an encoder, got .*T5ForCondit"):
        load_model(tmp_path / "t5", device="cpu")


def test_a_damaged_tokenizer_is_refused(saved):
    (saved / "tokenizer.json").write_text("{]")
    with pytest.raises((ValueError, OSError), match=r"tokenizer: .* cannot be loaded \(") as caught:
        load_tokenizer(saved)
    assert "\n" not in str(caught.value)


def test_what_is_loaded_is_asked_not_to_run_code(saved, monkeypatch):
    asked = {}

    def record(owner, name):
        right = getattr(owner, name)

        def loaded(path, **options):
            asked[owner.__name__] = options
            return right(path, **options)

        monkeypatch.setattr(owner, name, loaded)

    record(transformers.AutoConfig, "from_pretrained")
    record(transformers.LlamaForCausalLM, "from_pretrained")
    record(transformers.AutoTokenizer, "from_pretrained")
    (saved / "tokenizer.json").write_text("{]")
    load_model(saved, device="cpu")
    with pytest.raises((ValueError, OSError)):
        load_tokenizer(saved)
    assert len(asked) == 3
    assert all(options["trust_remote_code"] is False for options in asked.values())
    assert asked["LlamaForCausalLM"]["use_safetensors"] is True
