"""On a real GPU: experts, memory that runs out, and processes that add up their sums."""

import copy
import datetime
import json
import os
import subprocess
import sys

import architectures
import models
import pytest
import torch
import transformers
from gpu_cases import DEVICE, HAS_GPU, IS_REHEARSED
from torch import distributed

import curvedit

pytestmark = [
    pytest.mark.skipif(not (HAS_GPU or IS_REHEARSED), reason="needs a GPU"),
    pytest.mark.filterwarnings("ignore:.*fewer positions:UserWarning"),
]
KINDS = ("A", "G", "A_w", "G_w")
EXPERTS = ("mixtral", "qwen3_moe", "gpt_oss", "granitemoe", "deepseek_v3")


def many_batches():
    """Enough for every expert to see more positions than it has dimensions."""
    generator = torch.Generator().manual_seed(0)
    return list(torch.randint(3, 97, (2, 24, 24), generator=generator))


def assert_alike(got, expected, tolerance=1e-5):
    assert list(got) == list(expected)
    for name in expected:
        assert got[name].tokens == expected[name].tokens
        for kind in KINDS:
            one, other = got.mean(kind, name).cpu(), expected.mean(kind, name).cpu()
            assert (one - other).norm() <= tolerance * other.norm(), (kind, name)


@pytest.mark.parametrize("labels", ["data", "sampled"])
@pytest.mark.parametrize("family", EXPERTS)
def test_experts(family, labels):
    on_cpu = architectures.build(family)
    on_gpu = copy.deepcopy(on_cpu).to(DEVICE)
    options = {"targets": "*.experts.*", "labels": labels, "progress": False}
    batches = many_batches()
    expected, ours = (curvedit.fit(each, batches, **options) for each in (on_cpu, on_gpu))
    assert sum(".experts." in name for name in expected) >= 8
    assert_alike(ours, expected)


@pytest.mark.parametrize("family", EXPERTS)
def test_experts_are_edited_and_restored(family):
    model = architectures.build(family).to(DEVICE)
    before = {name: each.clone() for name, each in model.state_dict().items()}
    fitted = curvedit.fit(model, many_batches(), targets="*.experts.*", progress=False)
    edit = curvedit.project(model, curvedit.rank(fitted, keep_mass=0.6, progress=False))
    moved = [name for name, each in model.state_dict().items() if not each.equal(before[name])]
    assert moved
    assert all("experts" in name for name in moved)
    edit.undo()
    assert all(each.equal(before[name]) for name, each in model.state_dict().items())


@pytest.mark.skipif(not HAS_GPU, reason="needs a GPU")
def test_a_batch_that_does_not_fit_is_run_in_halves():
    """On a card whose memory is capped at about half of what the whole batch takes."""
    config = transformers.LlamaConfig(
        vocab_size=512,
        hidden_size=512,
        intermediate_size=2048,
        num_hidden_layers=2,
        num_attention_heads=8,
        pad_token_id=None,
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval().to(DEVICE)
    ids = torch.randint(512, (64, 512), generator=torch.Generator().manual_seed(0))
    options = {"targets": "*mlp*", "labels": "data", "progress": False}

    def start_afresh():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_reserved()

    curvedit.fit(model, [ids[:2]], **options)  # libraries keep workspaces from their first use
    before = start_afresh()
    whole = curvedit.fit(model, [ids], **options)
    peak = torch.cuda.max_memory_reserved()
    start_afresh()
    cap = before + 0.6 * (peak - before)
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(cap / total)
    try:
        with pytest.warns(UserWarning, match=r"were run (32|16|8) samples at a time"):
            parts = curvedit.fit(model, [ids], **options)
        assert torch.cuda.max_memory_reserved() <= cap
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert_alike(parts, whole)


def test_a_group_of_one(tmp_path):
    """NCCL, where there is a GPU, adds up what is there already."""
    model = models.build("llama").to(DEVICE)
    batches = models.ragged_batches("llama")
    options = {"targets": "*", "progress": False}
    expected = curvedit.fit(model, batches, **options)
    distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if HAS_GPU else "gloo",
        store=distributed.FileStore(str(tmp_path / "store"), 1),
        rank=0,
        world_size=1,
        timeout=datetime.timedelta(seconds=60),
    )
    try:
        ours = curvedit.fit(model, batches, **options, group=distributed.group.WORLD)
    finally:
        distributed.destroy_process_group()
    assert_alike(ours, expected, 1e-6)


def test_two_processes_on_one_device(tmp_path):
    models.build("llama").save_pretrained(tmp_path / "model")
    ids = torch.randint(1, models.VOCABULARY, (21, 12), generator=torch.Generator().manual_seed(0))
    rows = "".join(json.dumps({"input_ids": row}) + "\n" for row in ids.tolist())
    (tmp_path / "ids.jsonl").write_text(rows)

    def fit(*start, out):
        words = ["fit", "--model", "model", "--data", "ids.jsonl", "--window", "12"]
        words += ["--targets", "*", "--no-progress", "--out", out]
        done = subprocess.run(
            [sys.executable, *start, "-m", "curvedit", *words],
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "0"},
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return curvedit.Factors.load(tmp_path / out)

    start = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    assert_alike(fit(*start, out="two"), fit(out="one"), 1e-5)
