"""Greedy decoding on many architectures: batched, padded and cached as without any of that."""

import pytest
import torch
import transformers as hf
from torch import nn

from curvedit import Passages, Suite, evaluate
from curvedit.evaluation import greedy_continuations

VOCABULARY = 61
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SSM = {"mamba_d_state": 8, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_chunk_size": 8}
EXPERTS = {"num_experts_per_tok": 2}
MADE = {
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**COMMON)),
    "gpt2": lambda: hf.GPT2LMHeadModel(
        hf.GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    ),
    "gemma2, sliding window": lambda: hf.Gemma2ForCausalLM(
        hf.Gemma2Config(**COMMON, head_dim=8, sliding_window=4)
    ),
    "mistral, sliding window": lambda: hf.MistralForCausalLM(
        hf.MistralConfig(**COMMON, sliding_window=3)
    ),
    "mixtral": lambda: hf.MixtralForCausalLM(
        hf.MixtralConfig(**COMMON, num_local_experts=4, **EXPERTS)
    ),
    "qwen3": lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**COMMON, head_dim=8)),
    "bloom": lambda: hf.BloomForCausalLM(
        hf.BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4)
    ),
    "opt": lambda: hf.OPTForCausalLM(
        hf.OPTConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            ffn_dim=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=64,
            word_embed_proj_dim=32,
        )
    ),
    "mamba": lambda: hf.MambaForCausalLM(
        hf.MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, state_size=8)
    ),
    "mamba2": lambda: hf.Mamba2ForCausalLM(
        hf.Mamba2Config(
            vocab_size=VOCABULARY,
            hidden_size=32,
            num_hidden_layers=2,
            state_size=8,
            num_heads=4,
            head_dim=16,
            n_groups=1,
            chunk_size=8,
        )
    ),
    "rwkv": lambda: hf.RwkvForCausalLM(
        hf.RwkvConfig(
            vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, attention_hidden_size=32
        )
    ),
    "jamba": lambda: hf.JambaForCausalLM(
        hf.JambaConfig(
            **COMMON,
            num_experts=2,
            attn_layer_period=2,
            attn_layer_offset=1,
            expert_layer_period=2,
            expert_layer_offset=1,
            mamba_d_state=8,
            mamba_dt_rank=4,
            use_mamba_kernels=False,
        )
    ),
    "bamba": lambda: hf.BambaForCausalLM(
        hf.BambaConfig(**COMMON, **SSM, mamba_n_groups=1, attn_layer_indices=[1])
    ),
    "falcon_h1": lambda: hf.FalconH1ForCausalLM(
        hf.FalconH1Config(**COMMON, **SSM, mamba_d_ssm=64, mamba_n_groups=1, head_dim=8)
    ),
    "lfm2": lambda: hf.Lfm2ForCausalLM(
        hf.Lfm2Config(**COMMON, layer_types=["conv", "full_attention"], conv_L_cache=3)
    ),
    "recurrent_gemma": lambda: hf.RecurrentGemmaForCausalLM(
        hf.RecurrentGemmaConfig(
            **{**COMMON, "num_hidden_layers": 3},
            lru_width=32,
            attention_window_size=8,
            block_types=["recurrent", "recurrent", "attention"],
        )
    ),
}


class Wrapped(nn.Module):
    """What PEFT and compiled models look like: a forward that names nothing."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.config = inner.config

    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs)


def build(kind):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = MADE[kind]()
        for parameter in model.parameters():  # as random as can be, so that contexts matter
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.25)
    return model.eval()


def passages():
    generator = torch.Generator().manual_seed(5)
    rows = [
        torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()
        for length in (9, 4, 12, 9, 1, 7)
    ]
    return Passages(
        rows, [row[:1] * count for row, count in zip(rows, (6, 8, 5, 3, 7, 6), strict=True)]
    )


@torch.no_grad()
def alone(model, prefix, count):
    """One by one, nothing padded, no cache: the definition."""
    ids = torch.tensor([prefix])
    for _ in range(count):
        best = model(input_ids=ids, use_cache=False).logits[:, -1:].argmax(-1)
        ids = torch.cat([ids, best], 1)
    return tuple(ids[0, -count:].tolist())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("wrapped", [False, True], ids=["", "wrapped"])
@pytest.mark.parametrize("kind", MADE)
def test_decoding_is_as_one_by_one_without_a_cache(kind, wrapped):
    model, given = build(kind), passages()
    expected = [alone(model, prefix, len(suffix)) for prefix, suffix in given.rows()]
    assert len({token for row in expected for token in row}) > 4
    found = greedy_continuations(Wrapped(model) if wrapped else model, given, batch_size=4)
    assert found == expected


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["llama", "gpt2", "jamba", "lfm2"])
def test_text_reads_alike_padded_and_wrapped(kind):
    model = build(kind)
    rows = [list(prefix) for prefix, _ in passages().rows() if len(prefix) > 1]
    total = count = 0.0
    for row in map(torch.tensor, rows):
        with torch.no_grad():
            logs = model(input_ids=row[None], use_cache=False).logits[0].log_softmax(-1)
        total -= float(logs[:-1].gather(1, row[1:, None]).sum())
        count += len(row) - 1
    for one in (model, Wrapped(model)):
        for size in (1, 6):
            report = evaluate(one, Suite(text=rows, batch_size=size, resamples=5), progress=False)
            got = torch.tensor(report.before.perplexity.value).log() * count
            assert float(got) == pytest.approx(total, rel=1e-4), size


def test_each_step_reads_one_token_of_each_passage():
    model, sizes = build("llama"), []
    model.register_forward_pre_hook(
        lambda _, __, given: sizes.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    greedy_continuations(model, passages(), batch_size=1)  # few are decoded together on a CPU
    asked = [(1, 1), (1, 3), (1, 3)]  # is there a cache, and do positions count from zero?
    assert sizes == [*asked, (6, 12)] + [(6, 1)] * 7


def test_progress_counts_the_tokens(capsys, monkeypatch):
    monkeypatch.setattr("curvedit.meter._EVERY", 0.0)
    rows = [list(prefix) for prefix, _ in passages().rows() if len(prefix) > 1]
    suite = Suite(passages=passages(), text=rows, resamples=5)
    evaluate(build("llama"), suite)
    shown = capsys.readouterr().err
    assert "decode: 35 of 35 tok (100%)" in shown
    assert "read text: 36 of 36 tok (100%)" in shown
    evaluate(build("llama"), suite, progress=False)
    assert capsys.readouterr().err == ""
