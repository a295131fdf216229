"""Every stage on a simulated GPU: it runs, matches the CPU, and records its backends."""

import contextlib
import re
import types

import models
import numpy as np
import pytest
import torch
import transformers
from cases import integers, limits_of, normal, orthogonal
from simulated_gpu import GPU, GpuTensor, model_to_gpu, simulated_gpu, to_gpu
from torch._subclasses.fake_tensor import FakeTensorMode

import curvedit
from curvedit import Passages, Suite, ops
from curvedit.demo import forgetting
from curvedit.ops import tiles

pytestmark = pytest.mark.filterwarnings("ignore:.*fewer positions:UserWarning")


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "simulated")
    with simulated_gpu() as waits:
        yield waits


def pair_on(kind, dtype=torch.float32):
    """The same tiny model on the CPU and on the simulated GPU."""
    with torch._C.DisableTorchFunction():
        on_cpu, on_gpu = (models.build(kind).to(dtype) for _ in range(2))
    return on_cpu, model_to_gpu(on_gpu)


def fitted(model, kind, **options):
    batches = models.ragged_batches(kind)
    patterns = models.targets(kind)
    return curvedit.fit(model, batches, targets=patterns, seed=3, progress=False, **options)


def assert_same_factors(ours, expected, tolerance=1e-5):
    assert list(ours) == list(expected)
    assert ours.keys_of_sums() == expected.keys_of_sums()
    for key in expected.keys_of_sums():
        got, want = ours.sum(key), expected.sum(key)
        assert got.device == GPU
        # storage above the diagonal is never read, so it may differ
        size = expected.targets[key.target].shape[1 if key.kind.startswith("A") else 0]
        got, want = got.cpu(), want
        if key.kind != "S":
            got, want = tiles.unpack(got, size), tiles.unpack(want, size)
        assert (got - want).norm() <= tolerance * want.norm(), key


def cases_of(op):
    """Arguments for an op, on the CPU."""
    w, u_out, u_in = normal(12, 9), orthogonal(12), orthogonal(9)
    x, offsets = integers(40, 130), torch.tensor([0, 13, 13, 40])
    return {
        "syrk_accumulate": (tiles.zeros(130), x, torch.ones(40)),
        "syrk_accumulate_pair": (tiles.zeros(130), tiles.zeros(130), x, torch.ones(40)),
        "second_moment_accumulate": (torch.zeros(130, 130), x, x.flip(1), offsets),
        "staircase_limits": (torch.ones(3).double(), torch.ones(4).double(), 0.5),
        "masked_project": (w, u_out, u_in, torch.full((12, 2), 0x5A, dtype=torch.uint8)),
    }.get(op, (w, u_out, u_in, limits_of(12, 9, 0.6)))


@pytest.mark.parametrize("op", ops.operations())
def test_every_op_has_a_default_there(op, gpu):
    on_cpu = cases_of(op)
    on_gpu = [to_gpu(arg) if isinstance(arg, torch.Tensor) else arg for arg in on_cpu]
    chosen = ops.choose(op, *on_gpu)
    assert chosen.backend == ("reference" if op == "staircase_limits" else "torch")
    assert ops.explain(op, *on_gpu)[chosen.backend] == ""
    returned, expected = chosen(*on_gpu), ops.call(op, *on_cpu, backend="reference")
    if isinstance(returned, torch.Tensor):
        torch.testing.assert_close(returned.cpu(), expected, atol=1e-5, rtol=1e-5)
    elif returned is None:
        assert torch.equal(on_gpu[0].cpu().tril(), on_cpu[0].tril())


@pytest.fixture
def multiplied(gpu, monkeypatch):
    """A list of the matrix products that run, as (shape, input dtype, output dtype)."""
    seen = []
    right = torch.mm

    def mm(left, other, **options):
        result = right(left, other, **options)
        seen.append((tuple(result.shape), left.dtype, result.dtype))
        return result

    monkeypatch.setattr(torch, "mm", mm)
    return seen


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("backend", [None, "torch"])
def test_halves_are_multiplied_as_they_are_in_bands(multiplied, dtype, backend):
    x, out = integers(33, 1500, dtype=dtype), tiles.zeros(1500)
    expected = out.clone()
    placed = to_gpu(out)
    ops.call("syrk_accumulate", placed, to_gpu(x), backend=backend)
    ops.call("syrk_accumulate", expected, x.float(), backend="reference")
    assert torch.equal(tiles.unpack(placed.cpu(), 1500), tiles.unpack(expected, 1500))
    assert multiplied == [
        ((1024, 1024), dtype, torch.float32),
        ((476, 1500), dtype, torch.float32),
    ]


def test_weighted_bfloat16_loses_nothing(multiplied):
    x, weight = normal(300, 70, dtype=torch.bfloat16), normal(300, seed=1).abs()
    weight[::7] = 0
    out = to_gpu(tiles.zeros(70))
    ops.call("syrk_accumulate", out, to_gpu(x), to_gpu(weight))
    truth = (x.double() * weight.double()[:, None]).T @ x.double()
    plain = (x.float() * weight.sqrt()[:, None]).T @ (x.float() * weight.sqrt()[:, None])
    got = tiles.unpack(out.cpu(), 70)
    assert (got - truth).norm() <= 2 * (plain - truth).norm() + 1e-7 * truth.norm()
    assert {kind for _, kind, _ in multiplied} == {torch.bfloat16}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_float32_and_weighted_float16_are_multiplied_in_float32(multiplied, dtype):
    x, weight = integers(33, 70, dtype=dtype), integers(33, seed=1).abs().square()
    out = to_gpu(tiles.zeros(70))
    ops.call("syrk_accumulate", out, to_gpu(x), to_gpu(weight))
    assert torch.equal(tiles.unpack(out.cpu(), 70), (x.float() * weight[:, None]).T @ x.float())
    assert not multiplied  # no half-precision product


@pytest.mark.parametrize("kind", ["llama", "gpt2", "vit"])
@pytest.mark.parametrize("weighted", [True, False])
def test_fit(kind, weighted, gpu):
    on_cpu, on_gpu = pair_on(kind)
    expected = fitted(on_cpu, kind, weighted=weighted)
    ours = fitted(on_gpu, kind, weighted=weighted)
    assert_same_factors(ours, expected)
    assert set(ours.provenance["backend"].values()) == {"torch"}


def test_fit_of_a_half_precision_model(gpu):
    on_cpu, on_gpu = pair_on("llama", torch.bfloat16)
    expected = fitted(on_cpu, "llama", labels="data")
    assert_same_factors(fitted(on_gpu, "llama", labels="data"), expected, 1e-3)


def test_fit_of_a_second_pass(gpu):
    on_cpu, on_gpu = pair_on("llama")
    expected = fitted(on_cpu, "llama", corrected="sequence")
    ours = fitted(on_gpu, "llama", corrected="sequence")
    for name in expected:  # degenerate eigenvectors may rotate: compare an invariant
        torch.testing.assert_close(
            ours[name].S.cpu().sum(), expected[name].S.sum(), rtol=1e-3, atol=0
        )


def test_a_second_pass_checks_finiteness_as_the_first_does(gpu):
    class Overflowing(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.out, self.passes = torch.nn.Linear(3, 2), 0

        def forward(self, x):
            self.passes += 1
            return self.out(x * (torch.inf if self.passes > 1 else 1.0)).clamp(-1, 1).nan_to_num()

    data = [(torch.ones(4, 3), torch.zeros(4, dtype=torch.int64))]
    with pytest.raises(ValueError, match="the inputs of 'out' are not finite in batch 0"):
        curvedit.fit(Overflowing(), data, targets="*", corrected="position", progress=False)


@pytest.mark.parametrize("criterion", ["curvature", "weighted", "ekfac", "svd", "random"])
def test_rank_and_project(criterion, gpu, tmp_path):
    on_cpu, on_gpu = pair_on("llama")
    options = {"corrected": "position"} if criterion == "ekfac" else {}
    before = {name: tensor.cpu() for name, tensor in on_gpu.state_dict().items()}
    kept = {}
    for model in (on_cpu, on_gpu):
        factors = fitted(model, "llama", **options)
        selection = curvedit.rank(
            factors, keep_mass=0.6, criterion=criterion, model=model, progress=False
        )
        edit = curvedit.project(model, selection)
        assert {target.backend for target in edit.targets.values()} == {"torch"}
        kept[model] = {name: target.kept_share for name, target in edit.targets.items()}
        if model is on_gpu:
            assert all(isinstance(p, GpuTensor) for p in model.parameters())
            factors.save(tmp_path / "factors")
            selection.save(tmp_path / "selection")
            assert curvedit.load_selection(tmp_path / "selection") == selection
            edit.undo()
            assert all(torch.equal(p.cpu(), before[n]) for n, p in on_gpu.state_dict().items())
    for name, share in kept[on_cpu].items():
        assert kept[on_gpu][name] == pytest.approx(share, abs=0.01)


def test_a_sweep_of_projections(gpu):
    _, on_gpu = pair_on("gpt2")
    factors = fitted(on_gpu, "gpt2")
    selections = [
        curvedit.rank(factors, keep_mass=share, progress=False) for share in (0.4, 0.5, 0.9)
    ]
    for edit, selection in zip(curvedit.project_each(on_gpu, selections), selections, strict=True):
        assert list(edit.targets) == list(selection)


def waits_per_batch(waits, layers, **options):
    """What the host waits for in the second of three batches, by the number of blocks."""
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    with torch._C.DisableTorchFunction():
        config = transformers.LlamaConfig(vocab_size=97, num_hidden_layers=layers, **sizes)
        model = transformers.LlamaForCausalLM(config).eval()
    seen = []

    def batches():
        for seed in range(3):
            seen.append(len(waits))
            yield torch.randint(3, 97, (4, 12), generator=torch.Generator().manual_seed(seed))

    curvedit.fit(
        model_to_gpu(model), batches(), targets="*.mlp.*", labels="data", progress=False, **options
    )
    return seen[2] - seen[1]


@pytest.mark.parametrize("weighted", [True, False])
def test_the_host_waits_as_often_whatever_the_number_of_blocks(weighted, gpu):
    two, five = (waits_per_batch(gpu, layers, weighted=weighted) for layers in (2, 5))
    assert two == five <= 14


def test_a_piece_of_logits_makes_the_host_wait_only_as_often_as_the_model_does(gpu):
    """transformers looks at the position ids in every call; nothing else is waited for."""
    whole = waits_per_batch(gpu, 2)
    pieces = waits_per_batch(gpu, 2, logits_bytes=12 * 97 * 5)
    assert pieces - whole <= 11  # 12 pieces instead of one


def test_evaluate(gpu):
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(3, 97, (6, 20), generator=generator)
    passages = Passages.cut(text.tolist(), prefix=8, suffix=4)
    suite = Suite(passages=passages, text=text, batch_size=2, resamples=50)
    expected, ours = (curvedit.evaluate(model, suite) for model in pair_on("llama"))
    assert ours.before.perplexity.value == pytest.approx(expected.before.perplexity.value, rel=1e-4)
    assert ours.before.strict == expected.before.strict


def test_the_demos_search(gpu):
    """Passages and text are on the CPU, the model is not."""
    on_cpu, on_gpu = pair_on("llama")
    text = torch.randint(3, 97, (6, 20), generator=torch.Generator().manual_seed(0))
    passages = Passages.cut(text.tolist(), prefix=8, suffix=4)
    factors = fitted(on_gpu, "llama")

    def kept(share):
        return curvedit.rank(factors, keep_mass=share, progress=False)

    found = forgetting.Search(on_gpu, passages, text, level=1.0).curve(kept)
    assert np.isfinite(found.loss).all()
    expected = forgetting.window_losses(on_cpu, text)
    assert forgetting.window_losses(on_gpu, text) == pytest.approx(expected, rel=1e-4)


def test_evaluate_a_classifier(gpu):
    splits = {"val": models.ragged_batches("vit", sizes=(12,))}
    expected, ours = (
        curvedit.evaluate(model, Suite(splits=splits, resamples=50)) for model in pair_on("vit")
    )
    assert ours.before.accuracy["val"] == expected.before.accuracy["val"]


def test_mixed_devices_are_refused(gpu):
    with pytest.raises(ValueError, match=r"out: expected a tensor on cpu, as x, got cuda:0"):
        ops.choose("syrk_accumulate", to_gpu(tiles.zeros(8)), torch.ones(4, 8))
    with pytest.raises(RuntimeError, match="expected all tensors on the same device"):
        to_gpu(torch.ones(3)) + torch.ones(3)


@pytest.fixture
def hopper(gpu, monkeypatch):
    """A GPU of compute capability 9.0, with torch standing in for the Hopper kernel."""
    from curvedit.kernels import syrk_accumulate_torch
    from curvedit.ops import cuda_wgmma

    launches = []

    def scaled(x, weight):
        if weight is not None:
            x = torch.where(weight[:, None] > 0, x * weight[:, None].sqrt(), 0).to(x.dtype)
        return (x,)

    def launch(out, parts, offsets):
        launches.append(parts[0].dtype)
        syrk_accumulate_torch.syrk_accumulate(out, parts[0], None, offsets)

    monkeypatch.setattr(cuda_wgmma, "_scaled", scaled)
    monkeypatch.setattr(cuda_wgmma, "_launch", launch)
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 0)
    monkeypatch.setattr("curvedit.fitting.memory.free_memory", lambda _: 1 << 40)
    monkeypatch.setattr("curvedit.models.calling.total_memory", lambda _: 1 << 36)
    monkeypatch.setattr("curvedit._C.cuda_architectures", lambda: "800,900")
    return launches


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("kind", "weighted"), [("llama", True), ("vit", False)])
def test_a_fit_runs_with_the_kernel_of_hopper(hopper, kind, weighted, dtype):
    _, on_gpu = pair_on(kind, dtype)
    batches = models.ragged_batches(kind)
    if kind == "vit":
        batches = [
            {k: v.to(dtype) if v.is_floating_point() else v for k, v in b.items()} for b in batches
        ]
    factors = curvedit.fit(
        on_gpu, batches, targets=models.targets(kind), weighted=weighted, progress=False
    )
    record = factors.provenance["backend"]
    assert set(record.values()) == {"wgmma"}
    assert ("syrk_accumulate_pair" in record) == weighted
    assert set(hopper) == {dtype}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_second_moments_of_halves_are_multiplied_as_they_are(multiplied, dtype):
    g, a = integers(33, 300, dtype=dtype), integers(33, 140, seed=1, dtype=dtype)
    offsets, out = torch.tensor([0, 20, 33]), torch.zeros(300, 140)
    placed = to_gpu(out)
    ops.call("second_moment_accumulate", placed, to_gpu(g), to_gpu(a), to_gpu(offsets))
    ops.call("second_moment_accumulate", out, g.float(), a.float(), offsets, backend="reference")
    assert torch.equal(placed.cpu(), out)
    assert multiplied == 2 * [((300, 140), dtype, torch.float32)]


def test_meta_tensors_are_planned_for_without_values():
    for op in ops.operations():
        meta = [arg.to("meta") if isinstance(arg, torch.Tensor) else arg for arg in cases_of(op)]
        assert ops.choose(op, *meta).backend in ("torch", "reference")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("op", ops.operations())
def test_fake_tensors_are_planned_for_without_values(op, device):
    real = cases_of(op)
    with FakeTensorMode():
        fake = [
            torch.empty(arg.shape, dtype=arg.dtype, device=device)
            if isinstance(arg, torch.Tensor)
            else arg
            for arg in real
        ]
        chosen = ops.choose(op, *fake)
        assert chosen.backend in ("torch", "reference")  # nothing that takes a pointer
        assert set(ops.explain(op, *fake)) == set(ops.backends(op))
        if device == "cpu" and op.startswith("syrk"):
            chosen(*fake)


def test_a_gpu_that_torch_cannot_use_is_a_reason_not_a_crash():
    x = to_gpu(torch.ones(4, 8)).bfloat16()
    for backend, why in ops.explain("syrk_accumulate", to_gpu(tiles.zeros(8)), x).items():
        if backend in ("cuda", "wgmma") and not torch.cuda.is_available():
            assert re.search("needs a GPU that torch can use|is not in this build", why)


@pytest.mark.parametrize(("setting", "waits"), [(None, 0), ("", 0), ("1", 1)])
def test_debugging_waits_for_the_kernel(monkeypatch, setting, waits):
    from curvedit.kernels.tiles import zeros
    from curvedit.ops import cuda

    launched, waited = [], []
    properties = types.SimpleNamespace(multi_processor_count=4)
    stream = types.SimpleNamespace(cuda_stream=7)
    monkeypatch.setattr(
        cuda._C, "syrk_accumulate_cuda", lambda *given: launched.append(given), raising=False
    )
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waited.append(len(launched)))
    monkeypatch.delenv("CURVEDIT_DEBUG", raising=False)
    if setting is not None:
        monkeypatch.setenv("CURVEDIT_DEBUG", setting)
    cuda.syrk_accumulate(zeros(8), torch.ones(16, 8).bfloat16())
    assert len(launched) == 1
    assert 7 in launched[0]
    assert waited == [1] * waits
