"""Tiny random models of many families, and ragged data for them."""

from pathlib import Path

import torch
import transformers
from torch import Tensor, nn

from curvedit import Factors, Passages, Selection, rank

VOCABULARY = 97


def _common(**changes: int) -> dict[str, int]:
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **changes,
    }


def _gpt2() -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=32,
        n_layer=3,
        n_head=4,
        n_positions=64,
        bos_token_id=1,
        eos_token_id=2,
    )
    return transformers.GPT2LMHeadModel(config)


def _neox() -> nn.Module:
    settings = _common()
    del settings["num_key_value_heads"]
    return transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**settings))


def _vit() -> nn.Module:
    config = transformers.ViTConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=16,
        patch_size=4,
        num_labels=5,
    )
    return transformers.ViTForImageClassification(config)


_BUILD = {
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**_common())),
    "olmo2": lambda: transformers.Olmo2ForCausalLM(transformers.Olmo2Config(**_common())),
    "qwen3": lambda: transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**_common(head_dim=8))),
    "mistral": lambda: transformers.MistralForCausalLM(transformers.MistralConfig(**_common())),
    "gemma2": lambda: transformers.Gemma2ForCausalLM(
        transformers.Gemma2Config(**_common(head_dim=8))
    ),
    "gpt2": _gpt2,
    "neox": _neox,
    "vit": _vit,
}

TARGETS = {
    "gpt2": ["transformer.h.*.c_*"],
    "neox": ["gpt_neox.layers.*"],
    "vit": ["vit.*.{0..2}.*"],  # names inside a block differ between versions of transformers
}


def build(kind: str) -> nn.Module:
    """A tiny model, with weights large enough that no factor is negligible."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = _BUILD[kind]().eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.15, generator=generator)
    return model


def targets(kind: str) -> list[str]:
    """Patterns that match the linear maps inside the blocks of a tiny model."""
    return TARGETS.get(kind, ["model.layers.*"])


def ragged_batches(kind: str, *, sizes: tuple[int, ...] = (3, 3)) -> list[dict[str, Tensor]]:
    """Right-padded, unevenly labelled samples, the same for all batch sizes."""
    generator = torch.Generator().manual_seed(1)
    total = sum(sizes)
    if kind == "vit":
        images = torch.randn(total, 3, 16, 16, generator=generator)
        classes = torch.randint(5, (total,), generator=generator)
        return [
            {"pixel_values": x, "labels": y}
            for x, y in zip(images.split(sizes), classes.split(sizes), strict=True)
        ]
    ids = torch.randint(3, VOCABULARY, (total, 20), generator=generator)
    lengths = torch.tensor([20, 13, 5, 20, 2, 17])[torch.arange(total) % 6]
    mask = (torch.arange(20) < lengths[:, None]).long()
    labels = ids.masked_fill(mask == 0, -100)
    labels[0, 4:7] = -100
    parts = zip(ids.split(sizes), mask.split(sizes), labels.split(sizes), strict=True)
    return [{"input_ids": i, "attention_mask": m, "labels": y} for i, m, y in parts]


def draw(count: int, *, seed: int = 5) -> list[int]:
    """Token ids that are not special."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (count,), generator=generator).tolist()


def ragged_passages() -> Passages:
    """Prefixes and suffixes of many lengths; ids that no two passages share by accident."""
    lengths = [(3, 4), (9, 2), (1, 5), (14, 3), (6, 4), (3, 1), (11, 5)]
    return Passages(
        [draw(prefix, seed=10 + i) for i, (prefix, _) in enumerate(lengths)],
        [draw(suffix, seed=50 + i) for i, (_, suffix) in enumerate(lengths)],
    )


def selection_of(model: nn.Module, names: list[str]) -> Selection:
    """A selection of these linear maps, from factors made elsewhere."""
    generator = torch.Generator().manual_seed(0)
    moments = {}
    for name in names:
        halves = [
            torch.randn(9, size, generator=generator)
            for size in reversed(model.get_submodule(name).weight.shape)
        ]
        moments[name] = (*(half.T @ half for half in halves), 9)
    factors = Factors.from_moments(moments, model=model)
    return rank(factors, keep_mass=0.6, progress=False)


def as_of_other_data(factors: str | Path, out: str | Path) -> Path:
    """Copy factors, recorded as those of other data, so that the two can be merged."""
    other = Factors.load(factors)
    other.provenance["rows"] = {"count": 1, "least": ["00000000000000ff"]}
    return other.save(out)
