"""Every stage on a real GPU: what it finds there is what it finds on the CPU."""

import copy
import gc
import warnings

import models
import pytest
import torch
import transformers
from gpu_cases import DEVICE, HAS_GPU, IS_REHEARSED

import curvedit
from curvedit import Passages, Suite, ops
from curvedit.factors import Key
from curvedit.fitting import stage
from curvedit.fitting.places import OnHost, Resident
from curvedit.kernels import tiles

pytestmark = [
    pytest.mark.skipif(not (HAS_GPU or IS_REHEARSED), reason="needs a GPU"),
    pytest.mark.filterwarnings("ignore:.*fewer positions:UserWarning"),
    pytest.mark.filterwarnings("ignore:CURVEDIT_BACKEND:UserWarning"),
]


@pytest.fixture(autouse=True)
def float32_is_float32(monkeypatch):
    """Convolutions, such as the first of a ViT, would be TF32; products are not by default."""
    assert not torch.backends.cuda.matmul.allow_tf32
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def pair_of(kind, dtype=torch.float32):
    """The same model on the CPU and on the device."""
    return models.build(kind).to(dtype), models.build(kind).to(dtype).to(DEVICE)


def batches_of(kind, dtype=torch.float32):
    return [
        {k: v.to(dtype) if v.is_floating_point() else v for k, v in batch.items()}
        for batch in models.ragged_batches(kind)
    ]


def fitted(model, kind, dtype=torch.float32, **options):
    given = {"targets": models.targets(kind), "seed": 3, "progress": False, **options}
    return curvedit.fit(model, batches_of(kind, dtype), **given)


def differences(ours, expected):
    """Relative difference of every sum."""
    assert ours.keys_of_sums() == expected.keys_of_sums()
    found = {}
    for key in expected.keys_of_sums():
        got, want = ours.sum(key), expected.sum(key)
        assert got.device.type == DEVICE
        assert got.isfinite().all() or key.kind != "S"
        got = got.cpu()
        if key.kind != "S":
            size = expected.targets[key.target].shape[1 if key.kind.startswith("A") else 0]
            got, want = tiles.unpack(got, size), tiles.unpack(want, size)
        found[str(key)] = float((got - want).norm() / want.norm())
    return found


def assert_same(ours, expected, tolerance):
    wrong = {key: off for key, off in differences(ours, expected).items() if not off <= tolerance}
    assert not wrong


@pytest.mark.parametrize("is_streamed", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "vit"])
def test_fit(kind, weighted, is_streamed, monkeypatch):
    if not is_streamed:
        monkeypatch.setattr(stage, "find_stack", lambda *_: None)
    on_cpu, on_gpu = pair_of(kind)
    expected = fitted(on_cpu, kind, weighted=weighted)
    assert_same(fitted(on_gpu, kind, weighted=weighted), expected, 1e-5)


@pytest.mark.parametrize("backend", ["", "cuda", "wgmma", "triton", "torch"])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("kind", ["llama", "vit"])
def test_fit_in_bfloat16(kind, weighted, backend, monkeypatch):
    """Beside torch's backend on the same device: what the model computes is then the same."""
    if not HAS_GPU and backend not in ("", "torch"):
        pytest.skip("needs a GPU")
    _, model = pair_of(kind, torch.bfloat16)
    monkeypatch.setenv(ops.VARIABLE, "torch")
    expected = fitted(model, kind, torch.bfloat16, weighted=weighted)
    monkeypatch.setenv(ops.VARIABLE, backend)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours = fitted(model, kind, torch.bfloat16, weighted=weighted)
    if backend:
        assert any(backend in label for label in ours.provenance["backend"].values()) or (
            backend == "wgmma" and weighted
        )
    is_torch = all("torch" in label for label in ours.provenance["backend"].values())
    for key, off in differences_on_device(ours, expected).items():
        # where roots of weights are multiplied in half precision, that rounds
        assert off <= (1e-5 if not weighted or is_torch else 1e-2), key


@pytest.mark.skipif(not HAS_GPU, reason="needs a GPU")
def test_fit_of_a_model_of_gemma_270ms_shape():
    """With random weights; every linear map of all 18 blocks."""
    sizes = {"hidden_size": 640, "intermediate_size": 2048, "num_hidden_layers": 18}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256}
    config = transformers.Gemma3TextConfig(vocab_size=262144, **sizes, **heads)
    torch.manual_seed(0)
    on_cpu = transformers.Gemma3ForCausalLM(config).eval()
    on_gpu = copy.deepcopy(on_cpu).to(DEVICE)
    ids = torch.randint(3, 262144, (2, 128), generator=torch.Generator().manual_seed(0))
    options = {"targets": "model.layers.*", "labels": "data", "progress": False}
    expected, ours = (curvedit.fit(each, [ids, ids + 0], **options) for each in (on_cpu, on_gpu))
    assert len(expected) == 18 * 7
    assert_same(ours, expected, 1e-4)


@pytest.mark.skipif(not HAS_GPU, reason="needs a GPU")
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("kind", ["llama", "vit"])
def test_sums_that_wait_on_the_host(kind, weighted):
    _, model = pair_of(kind, torch.bfloat16)
    expected = fitted(model, kind, torch.bfloat16, weighted=weighted)
    ours = fitted(model, kind, torch.bfloat16, weighted=weighted, sums_on="cpu")
    assert ours.keys_of_sums() == expected.keys_of_sums()
    for key in expected.keys_of_sums():
        assert ours.sum(key).device.type == "cpu"
        assert torch.equal(ours.sum(key), expected.sum(key).cpu()), key


@pytest.mark.skipif(not HAS_GPU, reason="needs a GPU")
def test_sums_on_the_host_keep_up_with_a_fast_device():
    """Many large sums, few slots, and a host that is far ahead of the device."""
    device = torch.device(DEVICE)
    place, expected = OnHost.beside(device, 4096, sums=4), Resident()
    keys = [Key("G", str(number)) for number in range(12)]
    rows = torch.randint(-4, 5, (256, 4096), device=device).bfloat16()
    for turn in range(5):
        for number, key in enumerate(keys):
            part = rows[: 16 * (number + turn + 1)]
            for each in (place, expected):
                with each.lent([key], part) as (total,):
                    torch.cuda._sleep(200_000 * (number % 3))
                    ops.call("syrk_accumulate", total, part)
    found = place.all()
    for key, each in expected.all().items():
        assert torch.equal(found[key], each.cpu()), key


def differences_on_device(ours, expected):
    found = {}
    for key in expected.keys_of_sums():
        size = expected.targets[key.target].shape[1 if key.kind.startswith("A") else 0]
        got, want = (tiles.unpack(each.sum(key), size) for each in (ours, expected))
        found[str(key)] = float((got - want).norm() / want.norm())
    return found


def test_a_bfloat16_fit_is_near_the_cpus():
    on_cpu, on_gpu = pair_of("llama", torch.bfloat16)
    expected = fitted(on_cpu, "llama", labels="data")
    assert_same(fitted(on_gpu, "llama", labels="data"), expected, 0.05)


@pytest.mark.parametrize("corrected", ["sequence", "position"])
def test_fit_of_a_second_pass(corrected):
    on_cpu, on_gpu = pair_of("llama")
    expected, ours = (fitted(each, "llama", corrected=corrected) for each in (on_cpu, on_gpu))
    for name in expected:  # degenerate eigenvectors may rotate: compare an invariant
        total, want = ours[name].S.sum().cpu(), expected[name].S.sum()
        torch.testing.assert_close(total, want, rtol=1e-3, atol=0)


@pytest.mark.skipif(not HAS_GPU, reason="needs a GPU")
def test_a_fit_gives_its_memory_back():
    def left():
        gc.collect()
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated()

    _, model = pair_of("llama")
    fitted(model, "llama")  # libraries keep workspaces from their first use
    before = left()
    for _ in range(2):
        factors = fitted(model, "llama")
        del factors
    assert left() <= before


@pytest.mark.parametrize("backend", ["", "triton"])
@pytest.mark.parametrize("criterion", ["curvature", "weighted", "ekfac", "svd", "random"])
def test_rank_and_project(criterion, backend, monkeypatch):
    if not HAS_GPU and backend:
        pytest.skip("needs a GPU")
    on_cpu, on_gpu = pair_of("llama")
    options = {"corrected": "position"} if criterion == "ekfac" else {}
    before = {name: tensor.cpu().clone() for name, tensor in on_gpu.state_dict().items()}
    kept = {}
    for model in (on_cpu, on_gpu):
        if model is on_gpu and backend:
            wish = f"staircase_project={backend},masked_project={backend}"
            monkeypatch.setenv(ops.VARIABLE, wish)
        selection = curvedit.rank(
            fitted(model, "llama", **options),
            keep_mass=0.6,
            criterion=criterion,
            model=model,
            progress=False,
        )
        edit = curvedit.project(model, selection)
        kept[model] = {name: target.kept_share for name, target in edit.targets.items()}
        if model is on_gpu:
            assert {target.backend for target in edit.targets.values()} == {backend or "torch"}
            assert all(each.device.type == DEVICE for each in model.parameters())
            edit.undo()
            assert all(torch.equal(p.cpu(), before[n]) for n, p in on_gpu.state_dict().items())
    for name, share in kept[on_cpu].items():
        assert kept[on_gpu][name] == pytest.approx(share, abs=0.01)


def test_projected_weights_are_the_cpus():
    """The same selection, ranked on the CPU, applied to both."""
    on_cpu, on_gpu = pair_of("llama")
    selection = curvedit.rank(fitted(on_cpu, "llama"), keep_mass=0.6, progress=False)
    for model in (on_cpu, on_gpu):
        curvedit.project(model, selection)
    for (name, got), (_, want) in zip(
        on_gpu.named_parameters(), on_cpu.named_parameters(), strict=True
    ):
        assert (got.cpu() - want).norm() <= 1e-5 * want.norm(), name


def test_evaluate_a_classifier():
    splits = {"val": models.ragged_batches("vit", sizes=(12,))}
    expected, ours = (
        curvedit.evaluate(model, Suite(splits=splits, resamples=50)) for model in pair_of("vit")
    )
    assert ours.before.accuracy["val"] == expected.before.accuracy["val"]


def test_evaluate_recitation():
    pytest.importorskip("rapidfuzz")
    text = torch.randint(3, 97, (6, 20), generator=torch.Generator().manual_seed(0))
    passages = Passages.cut(text.tolist(), prefix=8, suffix=4)
    suite = Suite(passages=passages, text=text, batch_size=2, resamples=50)
    expected, ours = (curvedit.evaluate(model, suite) for model in pair_of("llama"))
    assert ours.before.perplexity.value == pytest.approx(expected.before.perplexity.value, rel=1e-4)
    assert ours.before.strict == expected.before.strict
