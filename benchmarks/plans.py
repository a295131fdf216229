"""Which models can be fitted on which GPU: ``curvedit plan`` for well-known shapes, as Markdown.

python benchmarks/plans.py

Every linear map of the blocks, plain and norm-weighted sums, bfloat16, windows of 512 tokens. The
shapes are those of the models' published configurations; the hours are those of 20 million tokens
at the rate of an H200.
"""

import torch
import transformers
from markdown_table import table

from curvedit.fitting import plan_fit

TOKENS, RATE = 20e6, 400e12  # operations a second: those of a fit on an H200
MEMORIES = (8, 12, 16, 24, 48, 80)  # GiB
_GIB = 2**30
_SHAPES = {  # hidden, intermediate, blocks, heads, key-value heads, words
    "OLMo-2-7B": ("Olmo2", 4096, 11008, 32, 32, 32, 100352),
    "Llama-3.1-8B": ("Llama", 4096, 14336, 32, 32, 8, 128256),
    "Qwen3-14B": ("Qwen3", 5120, 17408, 40, 40, 8, 151936),
    "Mixtral-8x7B": ("Mixtral", 4096, 14336, 32, 32, 8, 32000),
    "Qwen3-30B-A3B": ("Qwen3Moe", 2048, 6144, 48, 32, 4, 151936),
    "Llama-3.1-70B": ("Llama", 8192, 28672, 80, 64, 8, 128256),
}
_PLACES = (
    ("", {}),
    ("sums", {"sums_on_host": True}),
    ("sums, inputs", {"sums_on_host": True, "inputs_on_host": True}),
)


def built(family, hidden, intermediate, blocks, heads, key_value_heads, words):
    sizes = {"hidden_size": hidden, "intermediate_size": intermediate, "vocab_size": words}
    sizes |= {"num_hidden_layers": blocks, "num_attention_heads": heads, "head_dim": 128}
    sizes |= {"num_key_value_heads": key_value_heads, "max_position_embeddings": 4096}
    config = getattr(transformers, f"{family}Config")(**sizes, tie_word_embeddings=False)
    with torch.device("meta"):
        return getattr(transformers, f"{family}ForCausalLM")(config)


def cell(plan, memory):
    """The largest batch, and what has to wait on the host for it."""
    for waits, places in _PLACES:
        most = plan.most_rows(memory * _GIB, **places)
        if most:
            return f"{most}" + (f" ({waits})" if waits else "")
    return "–"


def main():
    head = ["", "weights", "sums", *(f"{memory} GiB" for memory in MEMORIES), "20 M tokens"]
    body = []
    for name, shape in _SHAPES.items():
        plan = plan_fit(built(*shape), "model.layers.*", rows=8, length=512, dtype=torch.bfloat16)
        sizes = (f"{each / _GIB:.1f} GiB" for each in (plan.weights, plan.sums))
        hours = TOKENS * sum(plan.operations.values()) / (RATE * 3600)
        cells = (cell(plan, memory) for memory in MEMORIES)
        body.append([name, *sizes, *cells, f"{hours:.1f} h"])
    print(table(head, body))


if __name__ == "__main__":
    main()
