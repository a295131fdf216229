"""A small language model that was trained to recite, beside text that follows a rule."""

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from curvedit import Passages
from curvedit.data import token_batches
from curvedit.study import Material, Settings

VOCABULARY, LENGTH, PREFIX, COUNT = 64, 24, 8, 24
PLACES = {"middle": ["model.layers.{1,2}.mlp.*"], "wide": ["model.layers.*.mlp.*"]}
SETTINGS = Settings(PLACES, fit_tokens=(600, 2400), checked=2, tasks=0, budget=0.2, mapped=4)


def text(count, *, seed):
    """Rows of numbers that grow by a constant, with some at random."""
    generator = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        row, step = [int(generator.integers(VOCABULARY))], int(generator.integers(1, 5))
        while len(row) < LENGTH:
            follows = generator.random() < 0.9
            row.append((row[-1] + step) % VOCABULARY if follows else int(generator.integers(64)))
        rows.append(tuple(row))
    return rows


def passages():
    """Rows at random, half of them on each side."""
    generator = np.random.default_rng(0)
    rows = [generator.integers(2, VOCABULARY, LENGTH).tolist() for _ in range(COUNT)]
    facts = [
        {"split": "tune" if number < COUNT // 2 else "test", "source": f"s{number // 3}"}
        for number in range(COUNT)
    ]
    return Passages([row[:PREFIX] for row in rows], [row[PREFIX:] for row in rows], facts=facts)


def trained(steps=220):
    """The model; it recites all passages."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    recited = [prefix + suffix for prefix, suffix in passages().rows()]
    general = text(1000, seed=1)
    generator = np.random.default_rng(0)
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(steps):
        rows = [general[at] for at in generator.integers(0, len(general), 16)]
        rows += [recited[at] for at in generator.integers(0, COUNT, 16)]
        ids = torch.tensor(rows)
        loss = model(input_ids=ids, labels=ids).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.eval()


def material():
    """Passages, text to fit on, and held-out text of two domains."""
    rows = [list(row) for row in text(160, seed=7)]
    fitted_on = {
        count: token_batches(rows, window=24, batch_size=8, max_tokens=count)
        for count in SETTINGS.fit_tokens
    }
    return Material(passages(), fitted_on, {"even": text(14, seed=11), "odd": text(14, seed=12)})


def weights(model):
    """Copies of all tensors."""
    return {name: each.clone() for name, each in model.state_dict().items()}


def same(one, other):
    """Whether two such copies are equal."""
    return all(torch.equal(one[name], other[name]) for name in one)
