"""``fit`` of the experts of a model of Qwen3-30B-A3B's shape, 8 of its 48 layers, random weights.

python benchmarks/gpu_measure/fit_experts.py --json FILE

Measured as ``fit_7b.py`` measures. The second case is a dense model of the same layers that
multiplies as much for each token: what it is faster by is what calling experts one by one costs.
"""

import sys
import warnings
from functools import partial

import common
import torch
import transformers
from fit_7b import Case, measured, size_of

LAYERS = 8
CASES = {"experts": (128, 8), "one expert as wide": (1, 1)}  # experts, and how many a token chooses


def run(session):
    warnings.simplefilter("ignore", FutureWarning)
    for name in session.cases(CASES, 12):
        model = _built(session, *CASES[name])
        session.wait()
        session.write("model", bytes=size_of(model))
        layers = len(model.model.layers)
        session.attempt(name, partial(measured, session, model, Case(layers)))
        del model
        session.free()


def _built(session, experts, chosen):
    """A dense model's width is what the chosen experts have together."""
    sizes = {"vocab_size": 100352, "hidden_size": 2048, "moe_intermediate_size": 768}
    sizes |= {"num_hidden_layers": LAYERS, "num_attention_heads": 32, "num_key_value_heads": 4}
    if session.dry:
        sizes |= {"vocab_size": 512, "hidden_size": 64, "moe_intermediate_size": 32}
        sizes |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
        experts = min(experts, 16)
    sizes |= {"head_dim": sizes["hidden_size"] // 16, "pad_token_id": None, "eos_token_id": None}
    torch.set_default_dtype(torch.bfloat16)
    try:
        with session.device:
            if experts == 1:
                sizes["intermediate_size"] = 8 * sizes.pop("moe_intermediate_size")
                return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**sizes)).eval()
            sizes |= {"num_experts": experts, "num_experts_per_tok": chosen}
            return transformers.Qwen3MoeForCausalLM(transformers.Qwen3MoeConfig(**sizes)).eval()
    finally:
        torch.set_default_dtype(torch.float32)


if __name__ == "__main__":
    sys.exit(common.main(__doc__, run, seconds=60, stall=60.0))
