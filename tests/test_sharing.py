"""Which targets share an input factor, where only some of their calls have the same input."""

import pytest
import test_fidelity as fidelity
from test_fidelity import VOCABULARY, WIDTH, data, error, fit, seeded, truth
from torch import nn

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*fewer positions:UserWarning", "ignore:.*block by block"
)


class Mixer(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.a, self.b = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY)


class Again(Mixer):
    """Calls ``a`` with the input of ``b``, and with another."""

    def forward(self, input_ids):
        x = self.embed(input_ids)
        y = self.a(x).tanh() + 0.5 * self.b(x)
        return self.head(self.a(y) + y)


class AgainLast(Mixer):
    """Calls ``b`` first, whose input ``a`` then shares once."""

    def forward(self, input_ids):
        x = self.embed(input_ids)
        y = 0.5 * self.b(x) + self.a(x).tanh()
        return self.head(self.a(y) + y)


class Sometimes(Mixer):
    """Calls ``b`` with the input of ``a`` if a sequence is long."""

    def forward(self, input_ids):
        x = self.embed(input_ids)
        y = self.a(x).tanh()
        return self.head(y + self.b(x) if input_ids.shape[1] > 10 else y)


class EarlyExits(fidelity.Decoder):
    """Puts its head on the output of every block."""

    def forward(self, input_ids):
        x, total = self.embed(input_ids), 0
        for layer in self.layers:
            x = layer(x)
            total = total + self.head(x)
        return total


@pytest.mark.parametrize(
    ("make", "often", "calls"), [(Again, "a", 2), (AgainLast, "a", 2), (EarlyExits, "head", 3)]
)
def test_targets_that_share_some_inputs_have_factors_of_their_own(make, often, calls):
    model, ids = seeded(make), data()
    factors = fit(model, ids, targets="*")
    expected = truth(model, ids, "*")
    expected[often] = tuple(total / calls for total in expected[often])
    assert error(factors, expected) < 1e-5
    assert factors.provenance["self_check"]["inputs_apart"]


def test_targets_that_share_all_inputs_share_a_factor():
    model, ids = seeded(fidelity.Decoder), data()
    factors = fit(model, ids)
    assert factors.targets["layers.1.v"].input_group == "layers.1.k"
    assert "inputs_apart" not in factors.provenance["self_check"]


def test_a_target_that_stops_sharing_is_refused():
    model, ids = seeded(Sometimes), data()
    batches = [ids, ids[:, :6]]
    with pytest.raises(RuntimeError, match=r"'b' and 'a' share only some .* in batch 1, unlike"):
        fidelity.curvedit.fit(model, batches, targets="*", labels="data", progress=False)
