"""A tiny Llama in a GGUF file, with a byte-level tokenizer, written as llama.cpp writes them."""

import gguf
import numpy
import tokenizers_tiny
import torch
import transformers
from torch import nn

MERGES = (("t", "h"), ("th", "e"))
TOKENIZER = tokenizers_tiny.build("<s> $A", merges=MERGES)
LAYERS, WIDTH, INNER, HEADS, KEYS = 2, 32, 64, 4, 2
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def build():
    """The model whose weights are written."""
    config = transformers.LlamaConfig(
        vocab_size=len(TOKENIZER),
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KEYS,
        max_position_embeddings=64,
        bos_token_id=tokenizers_tiny.BOS,
        eos_token_id=tokenizers_tiny.EOS,
        tie_word_embeddings=False,
    )
    generator = torch.Generator().manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.15, generator=generator)
    return model


def key_of(name):
    """A parameter's name in the file."""
    ends = {"embed_tokens": "token_embd", "norm": "output_norm"}
    parts = name.removesuffix(".weight").split(".")
    if parts[0] == "lm_head":
        return "output.weight"
    if parts[1] == "layers":
        return f"blk.{parts[2]}.{NAMES['.'.join(parts[3:])]}.weight"
    return f"{ends[parts[1]]}.weight"


def permuted(weight, heads):
    """Rows of queries and keys in the order of the file, where a rotated pair is adjacent."""
    rows = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return rows.swapaxes(1, 2).reshape(weight.shape)


def write(path, *, quantised=False, tokenizer=True, architecture="llama", leave_out=()):
    """Write the file; return each parameter by name, as a reader that dequantises finds it.

    Matrices are blocks of eight bits if ``quantised``, and float32 otherwise.
    """
    model = build()
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEYS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(TOKENIZER))
    if tokenizer:
        _add_tokenizer(writer)
    expected = {}
    for name, parameter in model.named_parameters():
        weight = parameter.detach().numpy()
        heads = HEADS if "q_proj" in name else KEYS if "k_proj" in name else 0
        stored = numpy.ascontiguousarray(permuted(weight, heads) if heads else weight)
        kind = None
        if quantised and weight.ndim > 1:
            kind = gguf.GGMLQuantizationType.Q8_0
            stored = gguf.quantize(stored, kind)
            weight = gguf.dequantize(gguf.quantize(weight, kind), kind)  # rows are blocks
        expected[name] = torch.from_numpy(weight.copy())
        if name not in leave_out:
            writer.add_tensor(key_of(name), stored, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


def _add_tokenizer(writer):
    words = sorted(TOKENIZER.get_vocab().items(), key=lambda pair: pair[1])
    control = len(tokenizers_tiny.SPECIAL)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([word for word, _ in words])
    writer.add_token_types([3 if place < control else 1 for _, place in words])
    writer.add_token_merges([" ".join(pair) for pair in MERGES])
    writer.add_bos_token_id(tokenizers_tiny.BOS)
    writer.add_eos_token_id(tokenizers_tiny.EOS)
    writer.add_add_bos_token(True)
