"""Fused experts, which are linear maps of their own: fitted, ranked, edited, and refused by name.

That their factors are those of plain float64 autograd, and that saved checkpoints are edited as the
models are, is tested for every family in test_architectures.py.
"""

import json

import architectures
import pytest
import torch
from torch import nn

import curvedit
from curvedit.cli import main
from curvedit.models import maps_of, weight_of

FAMILIES = ("mixtral", "gpt_oss")  # gate above up; gate and up by turns, transposed, with biases
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fewer positions:UserWarning"),
    pytest.mark.skipif(
        not any("experts.0.down_proj" in name for name in maps_of(architectures.build("mixtral"))),
        reason="this transformers has no fused experts",
    ),
]


@pytest.fixture(params=FAMILIES)
def model(request):
    return architectures.build(request.param)


def fitted(model, targets="*.experts.*", **options):
    return curvedit.fit(
        model, architectures.batches("text"), targets=targets, progress=False, **options
    )


def test_each_expert_is_a_view_of_the_fused_parameter(model):
    maps = {name: each for name, each in maps_of(model).items() if ".experts." in name}
    assert len(maps) == 2 * 4 * 2  # layers, experts, projections
    weight = weight_of(maps["model.layers.1.mlp.experts.2.down_proj"])
    fused = model.model.layers[1].mlp.experts.down_proj
    assert weight.shape == (32, 48)
    before = fused.detach().clone()
    weight.zero_()
    assert fused[2].abs().sum() == 0
    assert torch.equal(fused[[0, 1, 3]], before[[0, 1, 3]])


def test_counts_are_those_of_the_router(model):
    """Every position that counts goes to two experts."""
    factors = fitted(model)
    plain = fitted(model, "*.o_proj")
    positions = plain["model.layers.0.self_attn.o_proj"].tokens
    for layer in range(2):
        given = [factors[f"model.layers.{layer}.mlp.experts.{n}.down_proj"] for n in range(4)]
        assert sum(each.tokens for each in given) == 2 * positions


def test_an_edit_changes_chosen_experts_only_and_is_undone(model):
    factors = fitted(model)
    chosen = ["*.experts.{1,3}.*"]
    selection = curvedit.rank(factors, keep_mass=0.6, targets=chosen, progress=False)
    before = {name: each.detach().clone() for name, each in model.named_parameters()}
    with curvedit.project(model, selection):
        for layer in model.model.layers:
            for key in ("gate_up_proj", "down_proj"):
                fused = layer.mlp.experts.get_parameter(key)
                name = next(name for name, each in model.named_parameters() if each is fused)
                moved = (fused - before[name]).abs().amax(dim=(1, 2)) > 0
                assert moved.tolist() == [False, True, False, True]
    assert all(torch.equal(each, before[name]) for name, each in model.named_parameters())


def test_undo_knows_that_the_model_was_moved(model):
    selection = curvedit.rank(fitted(model), keep_mass=0.6, progress=False)
    edit = curvedit.project(model, selection)
    model.double()
    with pytest.raises(RuntimeError, match=r"expected the weight of .*experts"):
        edit.undo()


def test_two_passes_give_the_eigenvalues_of_positions(model):
    factors = fitted(model, labels="data", corrected="position")
    name = "model.layers.0.mlp.experts.1.down_proj"
    corrected = factors[name].S
    assert corrected.shape == (32, 48)
    trace = float(corrected.sum())  # of E[|a|^2 g g^T]
    assert trace == pytest.approx(float(factors[name].G_w.trace()), rel=1e-4)


def test_eigenvalues_of_sequences_are_refused(model):
    with pytest.raises(ValueError, match="corrected: expected 'position' for experts"):
        fitted(model, corrected="sequence")


@pytest.mark.filterwarnings("ignore:the passages are not forgotten:UserWarning")
def test_forgetting_takes_the_gradients_of_experts(model):
    """One step lowers what the model recites most, by experts alone, and is undone bit for bit."""
    ids = torch.randint(3, 97, (4, 12), generator=torch.Generator().manual_seed(3))
    learned(model, ids)
    factors = fitted(model)
    rows = [(row[:4].tolist(), row[4:].tolist()) for row in ids]
    passages = curvedit.Passages([r[0] for r in rows], [r[1] for r in rows])
    before = {name: each.detach().clone() for name, each in model.named_parameters()}
    holdout = [{"input_ids": torch.randint(3, 97, (4, 12))}]
    edit = curvedit.forget(model, factors, passages, holdout=holdout, budget=2.0, progress=False)
    first, last = edit.record["before"]["right"], edit.record["taken"][-1]["right"]
    assert last < first - 0.2
    changed = {
        name for name, each in model.named_parameters() if not torch.equal(each, before[name])
    }
    assert changed
    assert all(".experts." in name for name in changed)
    edit.undo()
    assert all(torch.equal(each, before[name]) for name, each in model.named_parameters())


def test_curvature_counts_by_how_often_an_expert_is_called(model):
    """One threshold for all targets: that of an expert called for half of the positions is twice
    as high, and the damage of a change of it is half."""
    factors = fitted(model, ["*.experts.*", "*.o_proj"])
    positions = factors["model.layers.0.self_attn.o_proj"].tokens
    for name in factors:
        assert factors.frequency(name) == factors[name].tokens / positions
    selection = curvedit.rank(factors, keep_mass=0.5, scope="model", progress=False)
    common = selection["model.layers.0.self_attn.o_proj"].threshold
    for name in factors:
        lam, mu = (factors.spectrum(kind, name) for kind in ("G", "A"))
        wanted = factors.frequency(name) * torch.outer(lam, mu) >= common * (1 + 1e-9)
        assert abs(selection[name].kept - int(wanted.sum())) <= 1, name


def learned(model, ids):
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval().zero_grad(set_to_none=True)


def test_an_expert_that_no_token_chose_is_named(model):
    block = model.model.layers[0].mlp
    gate = getattr(block, "gate", None) or block.router
    gate.register_forward_hook(lambda _, __, found: (*found[:2], found[2].clamp(max=2)))
    with pytest.warns(UserWarning, match=r"never called .*experts\.3\."):
        factors = fitted(model)
    assert "model.layers.0.mlp.experts.3.down_proj" not in factors
    assert "model.layers.1.mlp.experts.3.down_proj" in factors
    rows = factors.provenance["coverage"]["table"]
    assert any(row["why"] == "it was never called" for row in rows)


def test_an_expert_that_few_tokens_chose_is_left_out(model):
    """Elsewhere the data is enough, so that what it has not seen is no news about the loss."""
    block = model.model.layers[0].mlp
    gate = getattr(block, "gate", None) or block.router

    def seldom(_, __, found):
        index = found[2].clamp(max=2)
        index[:3] = 3
        return *found[:2], index

    gate.register_forward_hook(seldom)
    ids = torch.randint(3, 97, (48, 24), generator=torch.Generator().manual_seed(0))
    with pytest.warns(UserWarning, match=r"experts that fewer positions chose .*experts\.3\."):
        factors = curvedit.fit(model, [ids], targets="*.experts.*", progress=False)
    left = {f"model.layers.0.mlp.experts.3.{key}" for key in ("gate_up_proj", "down_proj")}
    assert left.isdisjoint(factors)
    assert not {key.target for key in factors.keys_of_sums()} & left
    whys = {row["why"] for row in factors.provenance["coverage"]["table"]}
    assert "too few positions chose it" in whys


def test_experts_that_compute_something_else_are_refused(model, monkeypatch):
    experts = type(model.model.layers[0].mlp.experts)
    forward = experts.forward
    monkeypatch.setattr(experts, "forward", lambda *args: 1.01 * forward(*args))
    with pytest.raises(ValueError, match=r"expected the experts of .*0.mlp.experts' to"):
        fitted(model)


def test_fused_weights_that_are_shared_are_refused(model):
    first, second = (layer.mlp.experts for layer in model.model.layers)
    selection = curvedit.rank(fitted(model), keep_mass=0.6, progress=False)
    second.down_proj = first.down_proj
    with pytest.raises(ValueError, match=r"tied to|not the one"):
        curvedit.project(model, selection)


def test_coverage_counts_experts_one_by_one(model):
    factors = fitted(model, "*.experts.0.*")
    rows = factors.provenance["coverage"]["table"]
    total = sum(parameter.numel() for parameter in model.parameters())
    assert sum(row["parameters"] for row in rows) == total
    apart = {(row["fitted"], row["why"]): row for row in rows if "gate_up_proj" in row["name"]}
    whole = model.model.layers[0].mlp.experts.gate_up_proj.numel() * 2
    assert apart[True, ""]["parameters"] == whole // 4
    assert apart[False, "no pattern matches it"]["parameters"] == whole * 3 // 4


def test_a_mixture_is_a_causal_language_model(model):
    """Its logits at earlier positions move by rounding: experts multiply all tokens together."""
    ids = torch.randint(3, 97, (8, 24), generator=torch.Generator().manual_seed(0))
    for row in ids:
        curvedit.models.require_causal(model, row)


def test_a_mixture_that_sees_the_future_is_refused(model):
    ids = torch.randint(3, 97, (24,), generator=torch.Generator().manual_seed(0))

    class Leaky(nn.Module):
        def forward(self, input_ids):
            logits = model(input_ids=input_ids).logits
            return logits + 1e-3 * logits.mean(1, keepdim=True)

    with pytest.raises(ValueError, match="expected a causal language model"):
        curvedit.models.require_causal(Leaky(), ids)


@pytest.mark.parametrize("family", FAMILIES)
def test_from_the_command_line(family, tmp_path, capsys):
    model = architectures.build(family)
    model.save_pretrained(tmp_path / "model")
    ids = torch.randint(3, 97, (48, 24), generator=torch.Generator().manual_seed(0)).tolist()
    (tmp_path / "ids.jsonl").write_text("".join(json.dumps({"input_ids": r}) + "\n" for r in ids))
    at = {name: str(tmp_path / name) for name in ("model", "factors", "chosen", "edited", "report")}
    text = str(tmp_path / "ids.jsonl")
    given = ["--model", at["model"], "--data", text, "--window", "24", "--targets", "*.experts.*"]
    assert main(["fit", *given, "--out", at["factors"], "--no-progress"]) == 0
    ranking = ["--factors", at["factors"], "--keep-mass", "0.6", "--out", at["chosen"]]
    assert main(["rank", *ranking, "--no-progress"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert sum("model.layers.1.mlp.experts.*.down_proj  32 x 48, 4 of them" in t for t in told) == 1
    assert not any("experts.0." in line for line in told)
    assert main(["inspect", at["factors"]]) == 0
    line = next(t for t in capsys.readouterr().out.splitlines() if "1.mlp.experts.*.down" in t)
    assert " to " in line
    assert line.endswith(" positions")
    editing = ["--model", at["model"], "--selection", at["chosen"], "--out", at["edited"]]
    assert main(["project", *editing]) == 0
    both = ["--model", at["edited"], "--baseline", at["model"], "--text", text, "--window", "24"]
    assert main(["evaluate", *both, "--out", at["report"], "--no-progress"]) == 0
    edited = type(model).from_pretrained(at["edited"])
    selection = curvedit.Selection.load(at["chosen"])
    with curvedit.project(model, selection):
        for name, parameter in edited.named_parameters():
            assert torch.equal(parameter, model.get_parameter(name)), name


def test_a_changed_expert_on_disk_is_named(tmp_path):
    model = architectures.build("mixtral")
    selection = curvedit.rank(fitted(model), keep_mass=0.6, progress=False)
    with torch.no_grad():
        model.model.layers[0].mlp.experts.gate_up_proj[2, 50] += 1  # in the up projection
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=r"the matrix of expert 2 .* got none among"):
        curvedit.project(tmp_path / "model", selection, out=tmp_path / "edited")
    assert not (tmp_path / "edited").exists()
