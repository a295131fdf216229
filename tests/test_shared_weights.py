"""``project`` refuses weights that are another module's too, in memory and on disk."""

import models
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import curvedit


def tied_head():
    config = models.build("llama").config
    config.tie_word_embeddings = True
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.LlamaForCausalLM(config).eval(), ["lm_head"]


def shared_blocks():
    config = transformers.Zamba2Config(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_mem_blocks=1,
        mamba_d_state=8,
        mamba_headdim=8,
        n_mamba_heads=8,
        layers_block_type=["mamba", "hybrid", "mamba", "hybrid"],
    )
    name = "model.layers.{}.shared_transformer.feed_forward.down_proj"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.Zamba2ForCausalLM(config).eval()
    return model, [name.format(1), name.format(3)]


@pytest.mark.parametrize("make", [tied_head, shared_blocks])
@pytest.mark.parametrize("known", [True, False], ids=["known class", "unknown class"])
def test_refuses_tensors_that_are_another_modules_too(tmp_path, make, known):
    model, names = make()
    model.save_pretrained(tmp_path / "model")
    if not known:
        (tmp_path / "model/config.json").write_text("{}")
    for chosen in (names, names[-1:]):
        with pytest.raises(ValueError, match=r"is tied to|are one tensor|got its content as"):
            curvedit.project(
                tmp_path / "model", models.selection_of(model, chosen), out=tmp_path / "edited"
            )
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_refuses_a_tied_weight_that_is_stored_twice(tmp_path):
    model, names = tied_head()
    model.save_pretrained(tmp_path / "model")
    path = tmp_path / "model/model.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, path)
    for message in ("is tied to", "is also stored as"):
        with pytest.raises(ValueError, match=message):
            curvedit.project(
                tmp_path / "model", models.selection_of(model, names), out=tmp_path / "out"
            )
        (tmp_path / "model/config.json").unlink(missing_ok=True)


def test_refuses_weights_in_the_memory_of_others():
    class Views(torch.nn.Module):
        def __init__(self):
            super().__init__()
            memory = torch.randn(12, 4)
            self.one, self.two, self.three = (torch.nn.Linear(4, 6, bias=False) for _ in range(3))
            self.one.weight = torch.nn.Parameter(memory[:6])
            self.two.weight = torch.nn.Parameter(memory[4:10])
            self.three.weight = torch.nn.Parameter(torch.randn(6, 4))
            self.register_buffer("table", self.three.weight.detach().view(4, 6)[:2])

    model = Views()
    for name, other in (("one", "two"), ("two", "one"), ("three", "table")):
        with pytest.raises(ValueError, match=f"'{name}.weight' is tied to '{other}.*memory"):
            curvedit.project(model, models.selection_of(model, [name]))
    model.two.weight = torch.nn.Parameter(model.one.weight.detach().new_ones(6, 4))
    assert curvedit.project(model, models.selection_of(model, ["one"])).targets["one"].change > 0


def test_rows_of_one_memory_that_do_not_overlap_are_edited():
    memory = torch.randn(12, 4)
    model = torch.nn.ModuleDict({name: torch.nn.Linear(4, 6, bias=False) for name in ("q", "k")})
    model["q"].weight = torch.nn.Parameter(memory[:6])
    model["k"].weight = torch.nn.Parameter(memory[6:])
    with curvedit.project(model, models.selection_of(model, ["q", "k"])) as edit:
        assert min(target.change for target in edit.targets.values()) > 0


def test_refuses_a_weight_that_is_not_in_memory():
    model = torch.nn.ModuleDict({"map": torch.nn.Linear(4, 6, bias=False)})
    selection = models.selection_of(model, ["map"])
    with pytest.raises(ValueError, match="'map' in memory, got one on the meta device"):
        curvedit.project(model.to("meta"), selection)


def test_a_zero_weight_is_recorded_with_a_number(tmp_path):
    model = torch.nn.ModuleDict({"map": torch.nn.Linear(4, 6, bias=False)})
    model["map"].weight.data.zero_()
    assert curvedit.project(model, models.selection_of(model, ["map"])).targets["map"].change == 0.0
