"""Tiny configurations of the architectures of transformers: one row each, and data for them."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from torch import Tensor, nn

VOCABULARY, POSITIONS, CLASSES = 97, 12, 5
BASE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "num_labels": CLASSES,
}
SHARED = {"n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1}
EXPERTS = {"moe_intermediate_size": 16, "num_experts_per_tok": 2}


@dataclass(frozen=True)
class Case:
    """A class of transformers, what its tiny configuration changes in BASE, and what to expect."""

    model: str
    config: str
    settings: dict[str, Any] = field(default_factory=dict)
    inputs: str = "text"  # a name in INPUTS
    without: tuple[str, ...] = ()  # settings of BASE that the configuration has no use for
    odd: str = r"\.experts\.\d+\.|kv_b_proj$"  # names of maps whose inputs are not positions
    since: str = ""  # the version of transformers from which plain float64 autograd runs it


def decoder(prefix: str, config: str = "", *, since: str = "", **settings: Any) -> Case:
    return Case(f"{prefix}ForCausalLM", config or f"{prefix}Config", settings, since=since)


DECODERS = {
    "llama": decoder("Llama"),
    "mistral": decoder("Mistral"),
    "qwen2": decoder("Qwen2"),
    "qwen3": decoder("Qwen3"),
    "gemma": decoder("Gemma"),
    "gemma2": decoder("Gemma2"),
    "gemma3": decoder("Gemma3", "Gemma3TextConfig"),
    "gemma3n": decoder(
        "Gemma3n",
        "Gemma3nTextConfig",
        num_hidden_layers=4,
        num_kv_shared_layers=2,
        vocab_size_per_layer_input=VOCABULARY,
        hidden_size_per_layer_input=8,
        laurel_rank=4,
        activation_sparsity_pattern=[0.5, 0.0, 0.0, 0.0],
        layer_types=["sliding_attention", "full_attention"] * 2,
        intermediate_size=48,
    ),
    "gemma4": decoder(
        "Gemma4",
        "Gemma4TextConfig",
        num_hidden_layers=4,
        num_kv_shared_layers=2,
        vocab_size_per_layer_input=VOCABULARY,
        hidden_size_per_layer_input=8,
        global_head_dim=8,
        layer_types=["sliding_attention", "full_attention"] * 2,
    ),
    "phi": decoder("Phi"),
    "phi3": decoder("Phi3"),
    "gpt2": Case("GPT2LMHeadModel", "GPT2Config", {"n_inner": 48}),
    "gpt_neox": decoder("GPTNeoX"),
    "gpt_neo": decoder("GPTNeo", num_layers=2, attention_types=[[["global", "local"], 1]]),
    "gptj": decoder("GPTJ", rotary_dim=4, n_inner=48),
    "codegen": decoder("CodeGen", rotary_dim=4, n_inner=48),
    "gpt_bigcode": decoder("GPTBigCode", n_inner=48),
    "bloom": decoder("Bloom", n_head=4, n_layer=2),
    "opt": decoder("OPT", ffn_dim=48, word_embed_proj_dim=32),
    "falcon": Case(
        "FalconForCausalLM",
        "FalconConfig",
        {"new_decoder_architecture": True, "num_kv_heads": 2, "ffn_hidden_size": 48},
        without=("head_dim",),
    ),
    "mpt": decoder("Mpt", d_model=32, n_heads=4, n_layers=2, expansion_ratio=2),
    "biogpt": decoder("BioGpt"),
    "xglm": decoder("XGLM", d_model=32, ffn_dim=48, num_layers=2, attention_heads=4),
    "olmo": decoder("Olmo"),
    "olmo2": decoder("Olmo2"),
    "olmo3": decoder("Olmo3"),
    "stablelm": decoder("StableLm"),
    "starcoder2": decoder("Starcoder2"),
    "granite": decoder("Granite"),
    "cohere": decoder("Cohere"),
    "cohere2": decoder("Cohere2"),
    "glm": decoder("Glm"),
    "glm4": decoder("Glm4"),
    "nemotron": decoder("Nemotron"),
    "smollm3": decoder("SmolLM3"),
    "ernie4_5": decoder("Ernie4_5"),
    "exaone4": decoder("Exaone4"),
    "helium": decoder("Helium"),
    "persimmon": decoder("Persimmon"),
    "diffllama": decoder("DiffLlama"),
    "apertus": decoder("Apertus", since="5"),
    "seed_oss": decoder("SeedOss"),
}

MIXTURES = {
    "mixtral": decoder("Mixtral", num_local_experts=4),
    "qwen2_moe": decoder("Qwen2Moe", num_experts=4, shared_expert_intermediate_size=24, **EXPERTS),
    "qwen3_moe": decoder("Qwen3Moe", num_experts=4, **EXPERTS),
    "olmoe": decoder("Olmoe", num_experts=4, num_experts_per_tok=2),
    "gpt_oss": decoder("GptOss", num_local_experts=4, num_experts_per_tok=2),
    "granitemoe": decoder("GraniteMoe", num_local_experts=4, num_experts_per_tok=2),
    "deepseek_v3": decoder(
        "DeepseekV3",
        since="5",
        n_group=2,
        topk_group=1,
        q_lora_rank=16,
        kv_lora_rank=8,
        qk_rope_head_dim=4,
        qk_nope_head_dim=4,
        v_head_dim=8,
        num_key_value_heads=4,
        head_dim=4,
        **SHARED,
        **EXPERTS,
    ),
    "glm4_moe": decoder("Glm4Moe", since="5", **SHARED, **EXPERTS),
    "ernie4_5_moe": decoder("Ernie4_5_Moe", since="5", moe_num_experts=4, moe_k=2, **EXPERTS),
}

STATE = {"state_size": 4, "conv_kernel": 3, "expand": 2, "time_step_rank": 4}
MAMBA2 = {
    "mamba_d_state": 4,
    "mamba_d_conv": 3,
    "mamba_expand": 2,
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 8,
}
STATE_SPACE = {
    "mamba": decoder("Mamba", **STATE),
    "falcon_mamba": decoder("FalconMamba", **STATE),
    "mamba2": decoder("Mamba2", num_heads=4, head_dim=16, n_groups=1, chunk_size=8, **STATE),
    "rwkv": decoder("Rwkv", attention_hidden_size=32, context_length=64),
}

HYBRIDS = {
    "zamba2": decoder(
        "Zamba2",
        since="5",
        num_hidden_layers=4,
        layers_block_type=["mamba", "hybrid", "mamba", "hybrid"],
        num_mem_blocks=1,
        adapter_rank=4,
        mamba_d_state=4,
        mamba_d_conv=3,
        mamba_expand=2,
        mamba_headdim=16,
        n_mamba_heads=4,
        mamba_ngroups=1,
        chunk_size=8,
        num_key_value_heads=4,
    ),
    "jamba": decoder(
        "Jamba",
        attn_layer_offset=1,
        attn_layer_period=2,
        num_experts=2,
        expert_layer_offset=1,
        expert_layer_period=2,
        num_experts_per_tok=1,
        mamba_d_state=4,
        mamba_dt_rank=4,
        mamba_d_conv=3,
        use_mamba_kernels=False,
    ),
    "bamba": decoder("Bamba", attn_layer_indices=[1], **MAMBA2),
    "recurrent_gemma": decoder(
        "RecurrentGemma", since="5", block_types=["recurrent", "attention"], lru_width=32
    ),
    "lfm2": decoder(
        "Lfm2",
        layer_types=["conv", "full_attention"],
        block_ff_dim=48,
        conv_L_cache=3,
        block_auto_adjust_ff_dim=False,
    ),
    "qwen3_next": decoder(
        "Qwen3Next",
        layer_types=["linear_attention", "full_attention"],
        linear_num_value_heads=4,
        linear_num_key_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        linear_conv_kernel_dim=3,
        num_experts=4,
        shared_expert_intermediate_size=16,
        **EXPERTS,
    ),
    "falcon_h1": decoder("FalconH1", mamba_d_ssm=64, **MAMBA2),
    "nemotron_h": decoder(
        "NemotronH",
        layers_block_type=["mamba", "attention", "mlp"],
        num_hidden_layers=3,
        mamba_num_heads=4,
        mamba_head_dim=16,
        ssm_state_size=4,
        n_groups=1,
        conv_kernel=3,
        chunk_size=8,
    ),
}


def classifier(prefix: str, inputs: str = "text classes", **settings: Any) -> Case:
    kind = {"text classes": "Sequence", "token classes": "Token"}[inputs]
    name = f"{prefix}For{kind}Classification"
    return Case(name, f"{prefix}Config", settings, inputs, odd=r"\.pos_(key|query)_proj$")


ENCODERS = {
    f"{name}-{inputs.split()[0]}": classifier(prefix, inputs, **settings)
    for inputs in ("text classes", "token classes")
    for name, prefix, settings in [
        ("bert", "Bert", {}),
        ("roberta", "Roberta", {}),
        ("distilbert", "DistilBert", {"dim": 32, "hidden_dim": 48, "n_heads": 4, "n_layers": 2}),
        ("electra", "Electra", {"embedding_size": 16}),
        ("deberta_v2", "DebertaV2", {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}),
        ("modernbert", "ModernBert", {"global_attn_every_n_layers": 2}),
        ("albert", "Albert", {"embedding_size": 16}),
    ]
}

IMAGE = {"image_size": 16, "patch_size": 4}


def vision(prefix: str, **settings: Any) -> Case:
    return Case(f"{prefix}ForImageClassification", f"{prefix}Config", IMAGE | settings, "images")


def two_towers(prefix: str) -> Case:
    tower = {key: BASE[key] for key in BASE if key.startswith(("hid", "int", "num_hid", "num_att"))}
    return vision(prefix, vision_config=tower | IMAGE, text_config=tower | {"vocab_size": 97})


VISION = {
    "vit": vision("ViT"),
    "deit": vision("DeiT"),
    "beit": vision("Beit"),
    "dinov2": vision("Dinov2", mlp_ratio=2),
    "swin": Case(
        "SwinForImageClassification",
        "SwinConfig",
        IMAGE | {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 2},
        "images",
        without=("num_attention_heads", "num_hidden_layers", "head_dim"),
    ),
    "convnext": vision("ConvNext", hidden_sizes=[8, 16], depths=[1, 1], num_stages=2),
    "clip": two_towers("CLIP"),
    "siglip": two_towers("Siglip"),
}

SPEECH = {
    "conv_dim": [16, 16],
    "conv_kernel": [8, 4],
    "conv_stride": [8, 4],
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "classifier_proj_size": 16,
}


def speech(prefix: str, **settings: Any) -> Case:
    name = f"{prefix}ForSequenceClassification"
    return Case(name, f"{prefix}Config", SPEECH | settings, "speech")


AUDIO = {
    "wav2vec2": speech("Wav2Vec2"),
    "wav2vec2-weighted": speech("Wav2Vec2", use_weighted_layer_sum=True),
    "hubert": speech("Hubert"),
    "wavlm": speech("WavLM", num_buckets=8, max_bucket_distance=16),
    "whisper": Case(
        "WhisperForAudioClassification",
        "WhisperConfig",
        {
            "d_model": 32,
            "encoder_layers": 2,
            "decoder_layers": 1,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 48,
            "decoder_ffn_dim": 48,
            "num_mel_bins": 8,
            "max_source_positions": 8,
            "classifier_proj_size": 16,
        },
        "spectra",
    ),
}

CASES = DECODERS | MIXTURES | STATE_SPACE | HYBRIDS | ENCODERS | VISION | AUDIO


def build(name: str) -> nn.Module:
    """The tiny model of a case; skip the test if this version of transformers lacks its class."""
    case = CASES[name]
    for needed in (case.model, case.config):
        if not hasattr(transformers, needed):
            pytest.skip(f"transformers {transformers.__version__} has no {needed}")
    if case.since and Version(transformers.__version__) < Version(case.since):
        pytest.skip(f"{case.model} runs in float64, without state, from transformers {case.since}")
    base = {key: value for key, value in BASE.items() if key not in case.without}
    config = getattr(transformers, case.config)(**{**base, **case.settings})
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, case.model)(config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():  # so far from 0 that no factor is negligible
            noise = 0.15 * torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise if parameter.ndim > 1 else parameter + noise)
    return model


def batches(inputs: str) -> list[dict[str, Tensor]]:
    """Two batches of a kind; texts are padded, and one has a masked prompt and a hole."""
    generator = torch.Generator().manual_seed(1)
    return [INPUTS[inputs](generator) for _ in range(2)]


def _text(generator: torch.Generator) -> dict[str, Tensor]:
    ids = torch.randint(3, VOCABULARY, (2, POSITIONS), generator=generator)
    mask = (torch.arange(POSITIONS) < torch.tensor([POSITIONS, 7])[:, None]).long()
    labels = ids.masked_fill(mask == 0, -100)
    labels[0, [1, 2, 3, 7, -1]] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def _classes(generator: torch.Generator) -> Tensor:
    return torch.randint(CLASSES, (2,), generator=generator)


def _text_classes(generator: torch.Generator) -> dict[str, Tensor]:
    return _text(generator) | {"labels": _classes(generator)}


def _token_classes(generator: torch.Generator) -> dict[str, Tensor]:
    batch = _text(generator)
    classes = torch.randint(CLASSES, (2, POSITIONS), generator=generator)
    return batch | {"labels": classes.masked_fill(batch["labels"] == -100, -100)}


def _images(generator: torch.Generator) -> dict[str, Tensor]:
    pixels = torch.randn(2, 3, 16, 16, generator=generator)
    return {"pixel_values": pixels, "labels": _classes(generator)}


def _speech(generator: torch.Generator) -> dict[str, Tensor]:
    waves = torch.randn(2, 32 * POSITIONS, generator=generator)
    return {"input_values": waves, "labels": _classes(generator)}


def _spectra(generator: torch.Generator) -> dict[str, Tensor]:
    return {
        "input_features": torch.randn(2, 8, 16, generator=generator),
        "labels": _classes(generator),
    }


INPUTS = {
    "text": _text,
    "text classes": _text_classes,
    "token classes": _token_classes,
    "images": _images,
    "speech": _speech,
    "spectra": _spectra,
}
