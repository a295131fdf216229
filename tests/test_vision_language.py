"""Models that read images and text, whose ``forward`` does not name its cache, beside autograd."""

import copy

import pytest
import torch
import torch.nn.functional as F
import transformers

import curvedit
from curvedit.models import find_targets

IMAGE, VOCABULARY = 90, 97
TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
VISION = {"hidden_size": 32, "intermediate_size": 48}


def _llava():
    vision = {"num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 16, "patch_size": 8}
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**VISION, **vision, projection_dim=16),
        text_config=transformers.LlamaConfig(**TEXT),
        image_token_index=IMAGE,
    )
    return transformers.LlavaForConditionalGeneration(config), {
        "pixel_values": torch.randn(3, 3, 16, 16)
    }


def _qwen3_vl():
    """Its images are rows of patches, which do not say which sample they belong to."""
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
    config = transformers.Qwen3VLConfig(
        text_config={**TEXT, "head_dim": 8, "rope_parameters": rope},
        vision_config={
            **VISION,
            **{"depth": 2, "num_heads": 4, "patch_size": 4, "temporal_patch_size": 1},
            **{"spatial_merge_size": 2, "out_hidden_size": 32, "num_position_embeddings": 64},
            "deepstack_visual_indexes": [0, 1],
        },
        image_token_id=IMAGE,
        video_token_id=91,
        vision_start_token_id=92,
        vision_end_token_id=93,
    )
    patches = torch.randn(3 * 16, 3 * 4 * 4)
    grid = torch.tensor([[1, 4, 4]] * 3)
    return transformers.Qwen3VLForConditionalGeneration(config), {
        "pixel_values": patches,
        "image_grid_thw": grid,
    }


MODELS = {"llava": _llava, "qwen3_vl": _qwen3_vl}


def build(kind):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, images = MODELS[kind]()
        ids = torch.randint(3, IMAGE - 1, (3, 14))
    ids[:, 1], ids[:, 2:6], ids[:, 6] = 92, IMAGE, 93
    mask = torch.ones_like(ids)
    mask[1, 11:] = 0
    batch = {"input_ids": ids, "attention_mask": mask, **images}
    if kind == "qwen3_vl":
        batch["mm_token_type_ids"] = (ids == IMAGE).long()
    return model.eval(), batch


def truth(model, batch, pattern):
    """``A`` and ``G`` of plain float64 autograd with the data's labels."""
    model, seen = copy.deepcopy(model).double(), {}

    def remember(name):
        def hook(_, args, output):
            output.retain_grad()
            seen[name] = args[0].detach(), output

        return hook

    for name, module in find_targets(model, pattern).items():
        module.register_forward_hook(remember(name))
    inputs = {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}
    logits = model(**inputs, use_cache=False).logits
    ids, real = batch["input_ids"], batch["attention_mask"].bool()
    terms = real[:, :-1] & real[:, 1:]
    F.cross_entropy(logits[:, :-1][terms], ids[:, 1:][terms], reduction="sum").backward()
    counts = F.pad(terms, (0, 1))  # right-padded, so all before the last term are terms too
    return {
        name: (a[counts].T @ a[counts] / counts.sum(), g[counts].T @ g[counts] / counts.sum())
        for name, (a, y) in seen.items()
        for g in [y.grad]
    }


@pytest.mark.filterwarnings("ignore:.*fewer positions:UserWarning")
@pytest.mark.filterwarnings("ignore:.*not run block by block:UserWarning")
@pytest.mark.parametrize("logits_bytes", [None, 12 * VOCABULARY * 5])
@pytest.mark.parametrize("kind", MODELS)
def test_factors_are_those_of_plain_autograd(kind, logits_bytes):
    if kind == "qwen3_vl" and not hasattr(transformers, "Qwen3VLForConditionalGeneration"):
        pytest.skip("this transformers has no Qwen3-VL")
    model, batch = build(kind)
    pattern = "*language_model.layers.*"
    factors = curvedit.fit(
        model,
        [batch],
        targets=pattern,
        labels="data",
        logits_bytes=logits_bytes,
        progress=False,
    )
    expected = truth(model, batch, pattern)
    assert list(factors) == list(expected)
    for name, moments in expected.items():
        for ours, want in zip((factors[name].A, factors[name].G), moments, strict=True):
            assert (ours - want).norm() < 1e-5 * want.norm(), name
