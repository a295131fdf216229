"""Train the demo's model: a byte-level decoder that learns 64 passages by heart."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from curvedit.demo.corpus import WINDOW, Corpus, windows
from curvedit.files import new_directory
from curvedit.meter import progress as progress_of

STEPS = 1000
_BATCH, _REPEATED = 32, 10  # windows per step, and how many of them are passages
_RATE = 2e-3
_WARM_UP = 60
_DECAY = 0.1
_CONFIG: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": WINDOW,
    "bos_token_id": None,
    "eos_token_id": None,
    "tie_word_embeddings": False,
}


def trained_model(
    directory: Path,
    corpus: Corpus,
    *,
    seed: int = 0,
    steps: int = STEPS,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> bool:
    """Train the model into ``directory``, a Hugging Face checkpoint, unless it is already there.

    Args:
        directory: Checkpoint directory; one that this function trained differently is replaced.
        corpus: Text to train on.
        seed: Seeds the initial weights and the choice of windows.
        steps: Number of optimiser steps, of 32 windows each.
        device: Where to train. Seeds give the same numbers everywhere, but for rounding.
        progress: Show a progress bar.

    Returns:
        True if the model was trained now, False if it was found.
    """
    recipe = [_CONFIG, corpus.sha256, seed, steps, _BATCH, _REPEATED, _RATE, _WARM_UP, _DECAY]
    key = hashlib.sha256(json.dumps(recipe).encode()).hexdigest()
    record = directory / "demo.json"
    if record.is_file() and json.loads(record.read_text())["key"] == key:
        return False
    if directory.is_dir() and record.is_file():
        for path in directory.iterdir():  # written by this function, with another recipe
            path.unlink()
    model = _train(corpus, seed, steps, torch.device(device), progress)
    with new_directory("directory", directory) as part:
        model.save_pretrained(part)
        (part / "demo.json").write_text(json.dumps({"key": key, "steps": steps, "seed": seed}))
    return True


def _train(corpus: Corpus, seed: int, steps: int, device: torch.device, progress: bool) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: nn.Module = LlamaForCausalLM(LlamaConfig(**_CONFIG))
    model.to(device)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=_RATE, betas=(0.9, 0.95), weight_decay=_DECAY, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
    with progress_of(steps, unit="step", what="train", shown=progress) as bar:
        for _ in range(steps):
            repeated = corpus.passages[
                torch.randint(len(corpus.passages), (_REPEATED,), generator=generator)
            ]
            ids = torch.cat([windows(corpus.training, _BATCH - _REPEATED, generator), repeated])
            ids = ids.to(device)
            logits = model(input_ids=ids, use_cache=False).logits
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            bar.note(f"loss {loss.item():.3f}")
            bar.update(1)
    return model.eval()


def _rate(step: int, steps: int) -> float:
    """Factor on the learning rate: linear warm-up, then cosine decay to a tenth."""
    if step < _WARM_UP:
        return (step + 1) / _WARM_UP
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - _WARM_UP) / max(1, steps - _WARM_UP)))
