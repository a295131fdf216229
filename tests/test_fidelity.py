"""The self-check before a fit: models whose blocks are no chain, and inputs that do not stay."""

import copy
import dataclasses
import threading

import models
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import curvedit
from curvedit.models import find_targets
from curvedit.passes import run as fitting_run

pytestmark = pytest.mark.filterwarnings("ignore:.*fewer positions:UserWarning")

WIDTH, VOCABULARY = 16, 23


class Block(nn.Module):
    """Reads the past through a running mean of its values, gated by its keys."""

    def __init__(self):
        super().__init__()
        self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def mix(self, x, k, v):
        length = torch.arange(1, x.shape[1] + 1)[:, None]
        return x + self.o((k.sigmoid() * v).cumsum(1) / length)

    def forward(self, hidden_states, **_):
        return self.mix(hidden_states, self.k(hidden_states), self.v(hidden_states))


class Caching(Block):
    """Adds to the values of earlier calls, like a key-value cache that stays on."""

    def forward(self, hidden_states, *, cache):
        v = cache[self] = self.v(hidden_states) + cache.get(self, 0.0)
        return self.mix(hidden_states, self.k(hidden_states), v)


class SharingKeys(Block):
    def forward(self, hidden_states, *, shared):
        k = self.k(hidden_states)
        return self.mix(hidden_states, k + shared.setdefault("k", k), self.v(hidden_states))


class AddingValues(Block):
    def forward(self, hidden_states, *, first):
        v = self.v(hidden_states)
        if not first:
            first.append(v)
        return self.mix(hidden_states, self.k(hidden_states), v + 0.5 * first[0])


class Listening(Block):
    def forward(self, hidden_states, *, history):
        history.append(hidden_states)
        mean = torch.stack(history).mean(0)
        return self.mix(hidden_states, self.k(mean), self.v(mean))


class WritingToInput(Block):
    def forward(self, hidden_states, **_):
        k, v = self.k(hidden_states), self.v(hidden_states)
        hidden_states += 0.5 * v.tanh()
        return self.mix(hidden_states, k, v)


class Decoder(nn.Module):
    def __init__(self, block=Block, *, passes="", sums=False):
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(block() for _ in range(3))
        self.head = nn.Linear(WIDTH, VOCABULARY)
        self.passes, self.sums = passes, sums

    def forward(self, input_ids):
        x, outputs = self.embed(input_ids), []
        state = {"cache": {}, "shared": {}, "first": [], "history": []}
        options = {self.passes: state[self.passes]} if self.passes else {}
        for layer in self.layers:
            x = layer(x, **options)
            outputs.append(x)
        return self.head(sum(outputs) if self.sums else x)


FAULTS = {
    "a cache left on": (Caching, {"passes": "cache"}),
    "a shared key": (SharingKeys, {"passes": "shared"}),
    "a sum over layers": (Block, {"sums": True}),
    "a value residual": (AddingValues, {"passes": "first"}),
    "a hidden list": (Listening, {"passes": "history"}),
    "an input written to": (WritingToInput, {}),
}


def seeded(make):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make().eval()
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.4)
    return model


def truth(model, ids, patterns="layers.*"):
    """``A`` and ``G`` of plain float64 autograd with the data's labels, all inputs copied."""
    model = copy.deepcopy(model).double().requires_grad_(False)
    next(model.parameters()).requires_grad_()  # of the embedding, where the graph starts
    seen, sums = [], {}

    def remember(name):
        def hook(_, args, output):
            seen.append((name, args[0].detach().clone(), output))
            output.retain_grad()
            return output * 1  # so that what is retained is not written to

        return hook

    for name, module in find_targets(model, patterns).items():
        module.register_forward_hook(remember(name))
    logits = model(ids)
    logits = getattr(logits, "logits", logits)
    F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="sum").backward()
    for name, a, y in seen:
        a, g = a[:, :-1].flatten(0, 1), y.grad[:, :-1].flatten(0, 1)
        old = sums.get(name, (0, 0))
        sums[name] = (old[0] + a.T @ a / len(a), old[1] + g.T @ g / len(a))
    return sums


def error(factors, expected):
    return max(
        float((ours - want).norm() / want.norm())
        for name, moments in expected.items()
        for ours, want in zip((factors[name].A, factors[name].G), moments, strict=True)
    )


def data():
    generator = torch.Generator().manual_seed(1)
    return torch.randint(VOCABULARY, (4, 12), generator=generator)


def fit(model, ids, **options):
    settings = {"targets": "layers.*", "labels": "data", "progress": False, **options}
    return curvedit.fit(model, [ids], **settings)


@pytest.fixture
def blind(monkeypatch):
    """The self-check finds nothing."""
    true = fitting_run.check_fidelity

    def nothing(*args, **options):
        return dataclasses.replace(true(*args, **options), reason=None, copied=frozenset())

    monkeypatch.setattr(fitting_run, "check_fidelity", nothing)


def test_a_chain_of_blocks_is_streamed():
    model, ids = seeded(Decoder), data()
    factors = fit(model, ids)
    assert factors.provenance["backward"].startswith("block by block")
    assert factors.provenance["self_check"]["difference"] < 1e-5
    assert error(factors, truth(model, ids)) < 1e-5


@pytest.mark.filterwarnings("ignore:.*block by block")
@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_no_chain_is_fitted_whole(fault):
    block, options = FAULTS[fault]
    model, ids = seeded(lambda: Decoder(block, **options)), data()
    factors = fit(model, ids)
    assert factors.provenance["backward"].startswith("whole model")
    assert factors.provenance["self_check"]["reason"]
    assert any("block by block" in note for note in factors.provenance["warnings"])
    assert error(factors, truth(model, ids)) < 1e-5


@pytest.mark.parametrize("fault", FAULTS)
def test_without_the_self_check_it_would_be_wrong(fault, blind):
    block, options = FAULTS[fault]
    model, ids = seeded(lambda: Decoder(block, **options)), data()
    try:
        wrong = error(fit(model, ids), truth(model, ids))
    except (RuntimeError, ValueError):
        return  # loudly, at least
    assert wrong > 0.05


@pytest.mark.filterwarnings("ignore:.*block by block")
@pytest.mark.parametrize("fault", FAULTS)
def test_the_second_pass_takes_the_same_way(fault):
    block, options = FAULTS[fault]
    model, ids = seeded(lambda: Decoder(block, **options)), data()
    streamed = fit(model, ids, corrected="position")
    for name in streamed:  # sum_ij S_ij = sum_t |g_t|^2 |a_t|^2, which A_w has as its trace
        total = streamed.mean("S", name).sum()
        torch.testing.assert_close(total, streamed[name].A_w.trace(), rtol=1e-4, atol=0)


class Writing(nn.Module):
    """Adds to the input of ``first`` after it was used."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x):
        x = x + 0
        x += 3 * (self.first(x) * self.second(x)).tanh()
        return self.out(x)


def test_an_input_that_is_changed_in_place_is_copied():
    model = seeded(Writing)
    x = torch.randn(32, WIDTH, generator=torch.Generator().manual_seed(0))
    pairs = [(x, torch.arange(32) % WIDTH)]
    kept = x.clone()
    factors = curvedit.fit(model, pairs, targets="*", labels="data", progress=False)
    assert factors.provenance["self_check"]["inputs_copied"] == ["first", "second"]
    assert factors.targets["second"].input_group == "first"
    torch.testing.assert_close(factors["first"].A, x.T @ x / 32)
    assert torch.equal(x, kept)


def test_without_the_copy_it_is_refused(blind):
    model = seeded(Writing)
    x = torch.randn(32, WIDTH, generator=torch.Generator().manual_seed(0))
    pairs = [(x, torch.arange(32) % WIDTH)]
    with pytest.raises(RuntimeError, match="targets: the input of 'first' was changed in place"):
        curvedit.fit(model, pairs, targets="*", labels="data", progress=False)


class Doubling(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def test_a_map_that_computes_something_else_is_refused():
    model = nn.Sequential(Doubling(4, 4), nn.Linear(4, 3))
    pairs = [(torch.randn(8, 4), torch.randint(3, (8,)))]
    with pytest.raises(ValueError, match=r"expected '0' to compute y = W a \+ b, got a Doubling"):
        curvedit.fit(model, pairs, targets="*", labels="data", progress=False)


class Forwarding(nn.Module):
    """A wrapper whose ``forward`` names nothing, like PEFT's or a compiled model's."""

    def __init__(self, model):
        super().__init__()
        self.inner = model
        self.config = model.config

    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs)


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2"])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(
    "wrap", [Forwarding, nn.DataParallel, lambda model: torch.compile(model, backend="eager")]
)
def test_a_wrapper_that_does_not_name_its_options(kind, padded, wrap):
    model, batches = models.build(kind), models.ragged_batches(kind)
    if not padded:
        batches = [batch["input_ids"] for batch in batches]
    expected, got = (
        curvedit.fit(
            which,
            batches,
            targets=[f"*{each}" for each in models.targets(kind)],
            labels="data",
            progress=False,
        )
        for which in (model, wrap(model))
    )
    assert got.provenance["backward"].startswith("block by block")
    for ours, name in zip(got.values(), expected, strict=True):
        torch.testing.assert_close(ours.A, expected[name].A)
        torch.testing.assert_close(ours.G, expected[name].G)
    assert model.config.use_cache


def test_two_fits_of_one_model_at_once_are_refused():
    model, ids = seeded(Decoder), data()
    started, finish = threading.Event(), threading.Event()
    found = []

    def slow():
        yield ids
        started.set()
        finish.wait(30)
        yield ids

    thread = threading.Thread(
        target=lambda: found.append(
            curvedit.fit(model, slow(), targets="layers.*", labels="data", progress=False)
        )
    )
    thread.start()
    started.wait(30)
    moments = {"layers.0.k": (torch.eye(WIDTH), torch.eye(WIDTH), 9)}
    selection = curvedit.rank(curvedit.Factors.from_moments(moments), keep_mass=0.5)
    try:
        with pytest.raises(RuntimeError, match="model: expected one that no other thread"):
            curvedit.project(model, selection)
        for other in (model, nn.Sequential(model), model.layers[1]):
            with pytest.raises(RuntimeError, match="model: expected one that no other thread"):
                curvedit.fit(other, [ids], targets="*", labels="data", progress=False)
    finally:
        finish.set()
        thread.join()
    assert error(found[0], truth(model, ids)) < 1e-5
    fit(model, ids)
