"""The self-check's share of a fit of 50 batches, of models from tiny to 8 layers of width 512.

The check's seconds are those that the fit records; a batch's are the rest, over the batches.
"""

import statistics

import bench_fit
import pytest
import torch
import transformers

import curvedit

WHOLE = 50  # batches


def demo():
    config = transformers.LlamaConfig(
        vocab_size=256,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
    )
    ids = torch.randint(256, (6, 32, 112), generator=torch.Generator().manual_seed(0))
    return transformers.LlamaForCausalLM(config), list(ids), "model.layers.*"


def vit():
    config = transformers.ViTConfig(
        hidden_size=192, intermediate_size=768, num_hidden_layers=6, num_attention_heads=3
    )
    generator = torch.Generator().manual_seed(0)
    batches = [
        {"pixel_values": torch.randn(16, 3, 224, 224, generator=generator)} for _ in range(2)
    ]
    return transformers.ViTForImageClassification(config), batches, "vit.*.{0..5}.*"


def wide():
    return bench_fit.build(), bench_fit.data(), "model.layers.*.mlp.*"


@pytest.mark.parametrize("make", [demo, vit, wide])
def bench_self_check(benchmark, make):
    model, batches, targets = make()
    model.eval()

    def run():
        return curvedit.fit(model, batches, targets=targets, progress=False).provenance

    run()
    shares, checks = [], []
    for _ in range(5):
        found = run()
        check = found["self_check"]["seconds"]
        batch = (found["seconds"] - check) / len(batches)
        shares.append(check / (check + WHOLE * batch))
        checks.append(check)
    benchmark.group = "self-check"
    benchmark.extra_info.update(
        model=make.__name__,
        backward=found["backward"],
        share_of_50_batches=statistics.median(shares),
        shares=shares,
        check_seconds=statistics.median(checks),
        difference=found["self_check"]["difference"],
    )
    benchmark.pedantic(run, rounds=1)
