"""What a plan says that a fit takes is what it takes."""

import json
import subprocess
import sys
from pathlib import Path

import models
import pytest
import torch
import transformers
from test_kept_graphs import per_graph

import curvedit
from curvedit import fitting
from curvedit.cli import main
from curvedit.cli.plan import _dtype
from curvedit.models import find_targets, trace

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*fewer positions:UserWarning", "ignore:.*matrices in one tensor:UserWarning"
)
GIB = 2**30
MEASURED = Path(__file__).parents[1] / "benchmarks/results/h200/fit_7b.json"


def olmo():
    """A model of OLMo-2-7B's shape, without memory for its weights."""
    config = transformers.Olmo2Config(vocab_size=100352, intermediate_size=11008, hidden_size=4096)
    with torch.device("meta"):
        return transformers.Olmo2ForCausalLM(config)


def planned(modules, targets, rows=8, length=512, dtype=torch.bfloat16, **options):
    return fitting.plan_fit(modules, targets, rows=rows, length=length, dtype=dtype, **options)


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "neox"])
def test_the_sums_are_those_of_a_fit(kind, weighted):
    model, patterns = models.build(kind), models.targets(kind)
    plan = planned(model, patterns, 2, 12, torch.float32, weighted=weighted)
    factors = curvedit.fit(
        model, models.ragged_batches(kind), targets=patterns, weighted=weighted, progress=False
    )
    sums = [factors.sum(key) for key in factors.keys_of_sums()]
    assert plan.sums == sum(each.nbytes for each in sums)
    assert plan.count == len(sums)
    assert plan.weights == sum(each.nbytes for each in model.parameters())


def test_the_graph_is_what_autograd_keeps():
    """And what the targets are called with, which autograd does not keep of frozen weights."""
    model = models.build("llama")
    names = list(find_targets(model, "*.mlp.*"))
    found = trace(model, names, rows=4, length=16, dtype=torch.float32)
    kept = per_graph(model, torch.randint(3, 90, (4, 16)))
    assert kept <= found.graph_bytes <= kept + 3 * found.widest_bytes


@pytest.mark.parametrize("kind", ["llama", "gpt2", "neox"])
def test_twice_the_batch_keeps_twice_as_much(kind):
    model, names = models.build(kind), list(find_targets(models.build(kind), models.targets(kind)))
    one, two = (trace(model, names, rows=rows, length=16, dtype=torch.float32) for rows in (8, 16))
    assert two.graph_bytes == pytest.approx(2 * one.graph_bytes, rel=0.05)
    assert (two.hidden_bytes, two.leaders) == (2 * one.hidden_bytes, one.leaders)


def measured():
    """Peaks of fits on an H200: (case, row, memory of the device)."""
    records = [json.loads(line) for line in MEASURED.read_text().splitlines()]
    memory = next(each["memory"] for each in records if each["kind"] == "device")
    return [
        (each["case"], each, each["cap"] or memory)
        for each in records
        if each["kind"] == "row"
        and each["weighted"] is not None
        and "graph_bytes" not in each["options"]
    ]


@pytest.mark.parametrize(("case", "row", "memory"), measured(), ids=lambda each: str(each)[:48])
def test_the_peak_is_the_one_that_was_measured(case, row, memory):
    numbers = f"{{{32 - row['layers']}..31}}"
    plan = planned(
        olmo(), f"model.layers.{numbers}.mlp.*", row["samples"], weighted=row["weighted"]
    )
    places = {
        "sums_on_host": row["options"].get("sums_on") == "cpu",
        "inputs_on_host": row["options"].get("inputs_on") == "cpu",
    }
    assert plan.on_device(memory, **places) == pytest.approx(row["peak_bytes"], rel=0.07)


def test_times_grow_with_operations_as_measured():
    """One rate, that of the plain fit of all layers on an H200, tells the other fits' times."""
    rows = [each for _, each, _ in measured() if not each["cap"]]
    counts = []
    for row in rows:
        numbers = f"{{{32 - row['layers']}..31}}"
        plan = planned(
            olmo(), f"model.layers.{numbers}.mlp.*", row["samples"], weighted=row["weighted"]
        )
        counts.append(sum(plan.operations.values()))
    whole = [n for n, row in enumerate(rows) if row["layers"] == 32]
    rates = [counts[n] * rows[n]["tokens_per_second"] / 1e12 for n in whole]
    assert len(rates) >= 2
    assert max(rates) <= 1.15 * min(rates), rates
    assert 350 < min(rates) < max(rates) < 450  # what --tflops is explained with


def test_experts_cost_as_often_as_they_are_chosen():
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 128}
    config = transformers.MixtralConfig(**sizes, num_attention_heads=4, num_key_value_heads=2)
    with torch.device("meta"):
        model = transformers.MixtralForCausalLM(config)
    if "model.layers.0.mlp.experts.0.down_proj" not in find_targets(model, "*"):
        pytest.skip("this transformers has no fused experts")
    plan = planned(model, "*.experts.*", 2, 8, weighted=False)
    gate_up, down = 64 * 192, 96 * 64
    others = 2 * (2 * 64 * 64 + 2 * 64 * 32) + 64 * 128
    assert plan.operations["model"] == 6 * (2 * 2 * (gate_up + down) + others)
    sums = sum(n * (n + 1) for n in (64, 192, 96, 64))
    assert plan.operations["sums"] == 2 * 2 * sums
    assert plan.count == 2 * 8 * 4  # layers, experts, factors


def test_the_largest_batch_is_the_one_that_fitted():
    """32 sequences did not fit into 24 GiB on an H200, and 24 did."""
    plan = planned(olmo(), "*.mlp.*", weighted=False)
    assert 24 <= plan.most_rows(24 * GIB, sums_on_host=True) < 32
    assert plan.most_rows(24 * GIB, sums_on_host=True, inputs_on_host=True) >= 32
    assert plan.most_rows(24 * GIB) == 0


@pytest.mark.parametrize("places", [{}, {"sums_on_host": True}])
def test_the_largest_batch_is_the_largest(places):
    memory = 80 * GIB
    most = planned(olmo(), "*.mlp.*", rows=8).most_rows(memory, **places)
    fits = planned(olmo(), "*.mlp.*", rows=most).on_device(memory, **places)
    more = planned(olmo(), "*.mlp.*", rows=most + 2).on_device(memory, **places)
    assert fits <= 0.95 * memory < more


def test_nothing_waits_on_the_host_unless_asked():
    plan = planned(olmo(), "*.mlp.*")
    assert plan.on_host() == 0
    assert plan.on_host(sums_on_host=True) == plan.sums
    assert plan.on_host(sums_on_host=True, inputs_on_host=True) == plan.sums + plan.inputs


@pytest.fixture
def checkpoint(tmp_path):
    olmo().config.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"architectures": ["Olmo2ForCausalLM"], "dtype": "bfloat16"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def test_on_the_command_line(checkpoint, capsys):
    flags = ["--targets", "*.mlp.*", "--batch-size", "24", "--no-weighted"]
    plan = ["plan", "--model", str(checkpoint), *flags]
    assert main([*plan, "--device-memory", "24"]) == 0
    text = capsys.readouterr().out
    assert "fits: curvedit fit … --batch-size 24 --window 512 --sums-on cpu\n" in text
    assert "per million tokens" not in text
    assert main([*plan, "--device-memory", "24", "--tflops", "400"]) == 0
    assert "per million tokens             2.3 minutes\n" in capsys.readouterr().out
    assert main([*plan, "--device-memory", "80"]) == 0
    assert capsys.readouterr().out.endswith("--batch-size 24 --window 512\n")
    assert main([*plan, "--device-memory", "12", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["advice"] is None
    assert facts["dtype"] == "bfloat16"
    assert main([*plan, "--device-memory", "12"]) == 0
    assert "nothing fits: the weights alone take 13.6 GiB" in capsys.readouterr().out


def test_flags_are_advised_before_a_smaller_batch(checkpoint, capsys):
    """A few windows would fit into 43.5 GiB; with the sums on the host all 24 do."""
    flags = "--targets *.mlp.* --batch-size 24 --no-weighted --device-memory 43.5 --json"
    assert main(["plan", "--model", str(checkpoint), *flags.split()]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert 0 < facts["settings"][""]["largest_batch"] < 24
    assert facts["advice"] == "--sums-on cpu"


def test_a_gguf_file_is_loaded_in_float32():
    config = type("Config", (), {"dtype": torch.bfloat16})
    assert _dtype("auto", "model", config) == torch.bfloat16
    assert _dtype("auto", "model.gguf", config) == torch.float32
    assert _dtype("float16", "model.gguf", config) == torch.float16


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--targets nothing", "targets: "),
        ("--targets *.mlp.* --device-memory 0", "device_memory: expected GiB, at least 0.5, got 0"),
        ("--targets *.mlp.* --window 5000", "length: "),
        ("--targets *.mlp.* --tflops 0", "tflops: expected a positive number, got 0"),
        ("--targets *.mlp.* --batch-size 0", "batch_size: expected at least 1, got 0"),
    ],
)
def test_refused(flags, message, checkpoint, capsys):
    given = flags if "--device-memory" in flags else f"{flags} --device-memory 24"
    assert main(["plan", "--model", str(checkpoint), *given.split()]) == 1
    assert message in capsys.readouterr().err


def test_without_a_gpu_its_memory_has_to_be_given(checkpoint, capsys, monkeypatch):
    monkeypatch.setattr("curvedit.cli.plan.total_memory", lambda _: 0)
    assert main(["plan", "--model", str(checkpoint), "--targets", "*"]) == 1
    assert (
        "device_memory: expected the GiB of a GPU, since there is none" in capsys.readouterr().err
    )


def test_an_op_that_fake_tensors_refuse_is_told_in_one_line(tmp_path):
    """transformers multiplies fused experts of bfloat16 only where it does not know the numbers."""
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 128}
    config = transformers.MixtralConfig(**sizes, num_attention_heads=4, num_key_value_heads=2)
    config.architectures = ["MixtralForCausalLM"]
    config.save_pretrained(tmp_path)
    plan = ["plan", "--model", str(tmp_path), "--targets", "*", "--device-memory", "8"]
    command = [sys.executable, "-m", "curvedit", *plan, "--dtype", "float32"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        last = run.stderr.splitlines()[-1]
        assert last.startswith("curvedit plan: error: model: expected one that takes token ids")
    assert "fake_tensor.py" not in run.stderr


def test_a_model_of_images_is_refused():
    with pytest.raises(ValueError, match="model: expected one that takes token ids"):
        planned(models.build("vit"), "*", 2, 12)
