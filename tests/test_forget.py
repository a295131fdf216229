"""``forget`` in memory: gradients, steps, damage, budget, and how it is undone."""

import copy

import models
import pytest
import torch
from torch import nn

import curvedit
from curvedit import Factors, Passages
from curvedit.editing import damage
from curvedit.evaluation import greedy_continuations
from curvedit.forgetting import inputs, margin, outcome, preconditioning, subject
from curvedit.models import find_targets, frozen

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*fewer positions:UserWarning", "ignore:.*not forgotten within:UserWarning"
)

TARGETS = "*.{1..2}.mlp.*"


def general(count, *, seed=3, length=16):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, models.VOCABULARY, (count, length), generator=generator)


def recited(model, count=4, *, prefix=6, suffix=5, seed=100):
    """Passages that the model recites: its own greedy continuations."""
    prefixes = [models.draw(prefix + number % 2, seed=seed + number) for number in range(count)]
    empty = Passages(prefixes, [[3] * suffix] * count)
    return Passages(prefixes, greedy_continuations(model, empty))


@pytest.fixture
def llama():
    model = models.build("llama")
    factors = curvedit.fit(model, list(general(24).split(8)), targets=TARGETS, progress=False)
    return model, factors, recited(model)


def weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def divergence(edited, original, text):
    with torch.no_grad():
        p, q = (each(input_ids=text).logits[:, :-1].log_softmax(-1) for each in (original, edited))
    return float((p.exp() * (p - q)).sum(-1).mean())


def run(model, factors, passages, **options):
    options = {"holdout": general(6, seed=9), "budget": 0.3, "progress": False, **options}
    return curvedit.forget(model, factors, passages, **options)


def hinge(model, passages):
    """The loss as its definition says it, one passage at a time."""
    total = 0.0
    for prefix, suffix in passages.rows():
        ids = torch.tensor([prefix + suffix])
        logits = model(input_ids=ids).logits[0, len(prefix) - 1 : -1]
        for row, label in zip(logits, suffix, strict=True):
            others = torch.cat([row[:label], row[label + 1 :]])
            total = total + torch.relu(row[label] - others.max() + 1.0)
    return total


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_gradients_are_those_of_the_margin_loss(kind):
    model = models.build(kind)
    passages = recited(model)
    maps = find_targets(model, "*.{1..2}.mlp.*")
    data = subject.Data(inputs.numbered("passages", passages, 3, 0), None, [])
    with frozen(model):
        gaps, found = subject.Subject(model, maps, data, False).differentiate()
    loss = hinge(model, passages)
    assert float(gaps.loss.sum()) == pytest.approx(loss.item(), rel=1e-5)
    assert gaps.shares.tolist() == [1.0] * len(passages)
    for module in maps.values():
        module.weight.grad = None
    loss.backward()
    for name, module in maps.items():
        expected = module.weight.grad
        expected = expected.T if expected.shape != found[name].shape else expected
        torch.testing.assert_close(found[name], expected, rtol=2e-4, atol=2e-5)


def test_the_blocks_are_run_one_by_one(llama):
    model, factors, passages = llama
    with run(model, factors, passages) as edit:
        assert edit.record["backward"].startswith("block by block through model.layers, down to")


def test_keeping_pulls_up_what_is_neither_certain_nor_lost():
    gaps = margin.Gaps.none(4)
    labels, rivals = torch.tensor([0, 0, 0, 0]), torch.tensor([9.0, 0.5, -0.5, -9.0])
    logits = torch.stack([rivals, torch.zeros(4)], dim=1)  # class 0 leads by these gaps
    batch = curvedit.data.read_batch((torch.zeros(4, 2), labels), 0, 0, logits.device, None)
    _, kept = margin.MarginLoss(gaps, keeps=True).differentiate(logits, batch)
    assert kept.tolist() == [[0, 0], [-1, 1], [-1, 1], [0, 0]]
    _, forgotten = margin.MarginLoss(margin.Gaps.none(4)).differentiate(logits, batch)
    assert forgotten.tolist() == [[1, -1], [1, -1], [1, -1], [0, 0]]
    assert gaps.right.tolist() == [1, 1, 0, 0]
    assert gaps.loss.tolist() == [0.0, 0.5, 1.5, 10.0]


def test_the_step_is_the_formula(llama):
    _, factors, _ = llama
    name = next(iter(factors))
    generator = torch.Generator().manual_seed(0)
    gradient, change = torch.randn(2, *factors[name].shape, generator=generator)
    found, predicted = preconditioning.direction(factors, name, gradient, change, 0.5)
    out, into = factors.basis("G", name), factors.basis("A", name)
    curvature = torch.outer(out.values, into.values)
    u, v = out.vectors.double(), into.vectors.double()
    part = u.T @ gradient.double() @ v / (curvature + 0.5 * curvature.mean())
    expected = -(u @ part @ v.T)
    assert (found - expected).norm() < 1e-4 * expected.norm()
    for length in (0.0, float(change.norm() / found.norm())):
        moved = u.T @ (change + length * found).double() @ v
        cost = 0.5 * float((curvature * moved.square()).sum())
        assert predicted(length) == pytest.approx(cost, rel=1e-3)
    assert predicted(predicted.length_to(2 * predicted(0.0))) == pytest.approx(2 * predicted(0.0))
    assert predicted.length_to(0.5 * predicted(0.0)) == 0.0


def test_forgets_within_the_budget_and_only_the_targets_change(llama):
    model, factors, passages = llama
    original, before = copy.deepcopy(model), weights(model)
    text = general(6, seed=9)
    edit = run(model, factors, passages, holdout=text)
    record = edit.record
    assert record["stopped"] == "forgotten"
    assert (record["passages"], record["recited"]) == (4, 4)
    assert record["before"] == {"near": 4, "right": 1.0}
    last = record["taken"][-1]
    assert last["near"] == 0
    assert last["right"] <= 0.35
    assert last["measured"] <= 0.3
    assert last["measured"] == pytest.approx(divergence(model, original, text), rel=1e-3)
    changed = [name for name, old in before.items() if not torch.equal(old, weights(model)[name])]
    assert changed == [f"{name}.weight" for name in factors]
    total = sum(each.predicted for each in edit.targets.values())
    assert total == pytest.approx(last["predicted"], rel=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_undo_restores_bit_for_bit(dtype):
    model = models.build("llama").to(dtype)
    factors = curvedit.fit(model, [general(16)], targets=TARGETS, progress=False)
    before = weights(model)
    edit = run(model, factors, recited(model))
    assert any(not torch.equal(before[name], now) for name, now in weights(model).items())
    for name, each in edit.targets.items():
        assert 0 < each.change < 1
        assert each.sha256_before != each.sha256_after, name
    edit.undo()
    assert all(torch.equal(before[name], now) for name, now in weights(model).items())


def test_an_error_on_the_way_restores_the_weights(llama, monkeypatch):
    model, factors, passages = llama
    before = weights(model)
    monkeypatch.setattr(
        "curvedit.forgetting.subject.measure_damage", lambda *_: (_ for _ in ()).throw(OSError("x"))
    )
    with pytest.raises(OSError, match="x"):
        run(model, factors, passages)
    assert all(torch.equal(before[name], now) for name, now in weights(model).items())


def test_damage_is_foreseen_after_the_first_step(llama):
    model, factors, passages = llama
    with run(model, factors, passages, budget=2e-3, steps=8) as edit:
        later = edit.record["taken"][1:]
    assert len(later) >= 2
    assert all(0.5 < step["measured"] / step["expected"] < 2 for step in later)


def test_the_budget_ends_the_steps(llama):
    model, factors, passages = llama
    with pytest.warns(UserWarning, match="not forgotten within the budget of 0.0002 nats"):
        record = run(model, factors, passages, budget=2e-4).record
    assert record["stopped"] == "budget used"
    assert 1.8e-4 < record["taken"][-1]["measured"] <= 2e-4
    assert record["taken"][-1]["near"] > 0


def test_a_budget_that_every_step_exceeds_is_refused(llama, monkeypatch):
    model, factors, passages = llama
    before = weights(model)
    dear = damage.Damage(*torch.tensor([[1.0], [0.0], [0.0], [1.0]]))
    monkeypatch.setattr("curvedit.forgetting.subject.measure_damage", lambda *_: dear)
    with pytest.raises(ValueError, match=r"budget: .* got 0.3 nats, while the smallest of 8 tried"):
        run(model, factors, passages)
    assert all(torch.equal(before[name], now) for name, now in weights(model).items())


def test_retained_passages_pull_back(llama):
    """Their part of the gradient is that of max(0, margin - gap) near 0, weighted by terms."""
    model, factors, passages = llama
    retain = recited(model, 6, seed=300, suffix=3)
    maps = find_targets(model, list(factors))
    sets = [inputs.numbered("x", each, 16, 0) for each in (passages, retain)]
    with frozen(model):
        alone, both = (
            subject.Subject(model, maps, subject.Data(sets[0], each, []), False).differentiate()[1]
            for each in (None, sets[1])
        )
    loss, pulled = 0.0, 0
    for prefix, suffix in retain.rows():
        logits = model(input_ids=torch.tensor([prefix + suffix])).logits[0, len(prefix) - 1 : -1]
        for row, label in zip(logits, suffix, strict=True):
            gap = row[label] - torch.cat([row[:label], row[label + 1 :]]).max()
            if gap.abs() < 1:
                loss, pulled = loss + 1 - gap, pulled + 1
    assert pulled
    loss.backward()
    for name, module in maps.items():
        expected = module.weight.grad * (sets[0].terms / sets[1].terms)
        torch.testing.assert_close(both[name] - alone[name], expected, rtol=1e-3, atol=1e-4)


def test_passages_that_are_not_recited_are_said(llama):
    model, factors, passages = llama
    both = Passages(
        [*passages.prefixes, models.draw(7, seed=1)], [*passages.suffixes, models.draw(5, seed=2)]
    )
    with pytest.warns(UserWarning, match=r"1 of 5 passages are not recited .* example number 4"):
        record = run(model, factors, both).record
    assert (record["passages"], record["recited"]) == (5, 4)
    assert record["before"]["right"] == 1.0
    assert record["before"]["right_of_rest"] < 0.5


def test_labels_of_a_classifier_are_forgotten():
    model = models.build("vit")
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(24, 3, 16, 16, generator=generator)
    with torch.no_grad():
        classes = model(pixel_values=images).logits.argmax(-1)
    parts = [
        {"pixel_values": x, "labels": y}
        for x, y in zip(images.split(8), classes.split(8), strict=True)
    ]
    factors = curvedit.fit(model, parts[1:], targets=models.targets("vit"), progress=False)
    some = [{"pixel_values": images[:4], "labels": classes[:4]}]
    with run(model, factors, some, holdout=parts[1:], budget=2.0) as edit:
        assert edit.record["stopped"] == "forgotten"
        with torch.no_grad():
            assert not (model(pixel_values=images[:4]).logits.argmax(-1) == classes[:4]).any()


def test_batches_do_not_matter(llama):
    model, factors, passages = llama
    found = []
    for size in (1, 16):
        with run(model, factors, passages, batch_size=size):
            found.append(weights(model))
    for name, one in found[0].items():
        torch.testing.assert_close(one, found[1][name], rtol=1e-3, atol=1e-4)


def other_factors(model):
    moved = copy.deepcopy(model)
    with torch.no_grad():
        moved.model.layers[1].mlp.up_proj.weight.add_(0.01)
    return curvedit.fit(moved, [general(16)], targets=TARGETS, progress=False)


def idle_factors(model):
    name = "model.layers.1.mlp.up_proj"
    zeros = torch.zeros(32, 32), torch.zeros(48, 48), 5
    return Factors.from_moments({name: zeros}, model=model)


REFUSED = {
    "budget of nothing": ({"budget": 0.0}, "budget: expected a number of at least 1e-06, got 0.0"),
    "endless budget": ({"budget": float("nan")}, "budget: expected a number of .*, got nan"),
    "no damping": ({"damping": 0}, "damping: expected a positive number, got 0"),
    "no steps": ({"steps": 0}, "steps: expected at least 1, got 0"),
    "no batch": ({"batch_size": 0}, "batch_size: expected at least 1, got 0"),
    "not fitted": ({"targets": "*.0.mlp.*"}, "targets: '\\*.0.mlp.\\*' matches no linear map"),
    "an output for a module": ({"out": "x"}, "out: a module is edited in place"),
    "no holdout": ({"holdout": []}, "holdout: expected at least one batch, got none"),
    "holdout read once": ({"holdout": iter([1])}, "holdout: expected a re-iterable"),
    "ids outside": ({"passages": Passages([[3]], [[97]])}, "passages: expected token ids below"),
    "nothing recited": (
        {"passages": Passages([[5, 6]], [[7, 8, 9]])},
        "passages: expected some that the model recites, at least 75% .* nothing to forget",
    ),
    "unlabelled": ({"passages": [general(2)]}, "passages: expected Passages, or batches with lab"),
    "factors of another": ({"factors": other_factors}, "not the one the factors were fitted on"),
    "idle factors": ({"factors": idle_factors}, "factors: 'model.* has no curvature"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(llama, case):
    model, factors, passages = llama
    options, message = REFUSED[case]
    options = {"factors": factors, "passages": passages, **options}
    if callable(options["factors"]):
        options["factors"] = options["factors"](model)
    before = weights(model)
    with pytest.raises((ValueError, TypeError), match=message):
        run(model, options.pop("factors"), options.pop("passages"), **options)
    assert all(torch.equal(before[name], now) for name, now in weights(model).items())


def test_refuses_what_is_to_be_forgotten_and_kept(llama):
    model, factors, passages = llama
    prefix, suffix = list(passages.rows())[2]
    retain = Passages([[4, 4], [5]], [[5, 6], [*suffix, 9]])
    with pytest.raises(ValueError, match=r"retain: .* number 1, which .* number 2 of"):
        run(model, factors, passages, retain=retain)
    text = [models.draw(20), [3, *prefix, *suffix, 4]]
    with pytest.raises(ValueError, match=r"holdout: expected text without .* in window 1"):
        run(model, factors, passages, holdout=text)
    samples = [(torch.eye(3), torch.tensor([0, 1, 0])), (torch.ones(1, 3), torch.tensor([1]))]
    plain = nn.Sequential(nn.Linear(3, 2))
    moments = Factors.from_moments({"0": (torch.eye(3), torch.eye(2), 9)}, model=plain)
    with pytest.raises(ValueError, match=r"retain: .* number 0, which is number 3 of passages"):
        run(plain, moments, samples, holdout=samples, retain=samples[1:])


@pytest.mark.parametrize("damping", [0.1, 10.0])
@pytest.mark.parametrize("budget", [1e-3, 1e-2])
def test_predictions_hold_over_a_grid(llama, damping, budget):
    """Corrected by what the step before has shown, damage is known within a factor of two."""
    model, factors, passages = llama
    with run(model, factors, passages, budget=budget, damping=damping, steps=6) as edit:
        found = [step["measured"] / step["expected"] for step in edit.record["taken"][1:]]
    assert all(0.5 < ratio < 2 for ratio in found), found


def test_steps_that_cost_more_than_their_square_are_shortened(llama, monkeypatch):
    """As of a confident classifier, whose damage grows with the fourth power of the length."""
    model, factors, passages = llama
    true = damage.measure_damage

    def steep(*arguments):
        found = true(*arguments)
        return damage.Damage(
            found.divergence * found.nats * 2e3, found.loss_before, found.loss_after, found.terms
        )

    monkeypatch.setattr("curvedit.forgetting.subject.measure_damage", steep)
    with run(model, factors, passages, budget=1e-3) as edit:
        taken = edit.record["taken"]
    costs = [step["measured"] for step in taken]
    assert costs == sorted(costs)
    assert edit.record["stopped"] == "forgotten" or 0.9e-3 <= costs[-1] <= 1e-3


def test_bounds_follow_text_that_is_foreseeable():
    bounds = outcome.Bounds.beside(0.4)
    assert (bounds.near, bounds.forgotten) == (0.75, 0.35)
    bounds = outcome.Bounds.beside(0.6)
    assert (bounds.near, bounds.forgotten) == (0.8, 0.6)


def test_forgotten_is_what_no_passage_recites():
    bounds, recited = outcome.Bounds(), torch.tensor([True, True, True, False])
    for last, near, forgotten in ((0.7, 0, True), (0.75, 1, False)):
        found = outcome.Recited.of(torch.tensor([0.0, 0.0, last, 0.5]), recited, bounds)
        assert (found.near, found.is_forgotten) == (near, forgotten)
        assert (found.right, found.right_of_rest) == pytest.approx((last / 3, 0.5))
    found = outcome.Recited.of(torch.tensor([0.4, 0.4, 0.4, 0.0]), recited, bounds)
    assert not found.is_forgotten


def test_no_step_costs_more_than_the_budget(llama, monkeypatch):
    model, factors, passages = llama
    costs = iter([0.31, 0.2, 0.29, 0.29, 0.29])

    def told(*_):
        return damage.Damage(*torch.tensor([[next(costs)], [0.0], [0.0], [1.0]]))

    monkeypatch.setattr("curvedit.forgetting.subject.measure_damage", told)
    with run(model, factors, passages, steps=1) as edit:
        first = edit.record["taken"][0]
    assert (first["tries"], first["measured"]) == (2, pytest.approx(0.2))
