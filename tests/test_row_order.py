"""Targets whose inputs have as many rows as there are positions, but in another order."""

import pytest
import torch
from test_fidelity import VOCABULARY, WIDTH, data, error, fit, seeded, truth
from torch import nn

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*fewer positions:UserWarning", "ignore:.*block by block"
)


class TimeFirst(nn.Module):
    """Gives its map the rows ``(T B, d)``."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, VOCABULARY)
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, input_ids):
        x = self.embed(input_ids).transpose(0, 1)
        y = self.inner(x.flatten(0, 1)).tanh().unflatten(0, x.shape[:2])
        return self.head((x + y.cumsum(0)).transpose(0, 1))


class BatchFirst(TimeFirst):
    """The same with rows ``(B T, d)``."""

    def forward(self, input_ids):
        x = self.embed(input_ids)
        y = self.inner(x.flatten(0, 1)).tanh().unflatten(0, x.shape[:2])
        return self.head(x + y.cumsum(1))


class Experts(nn.Module):
    """Two experts that take every token, those first that have them as their first choice."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, VOCABULARY)
        self.gate = nn.Linear(WIDTH, 2)
        self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))

    def forward(self, input_ids):
        x = self.embed(input_ids).flatten(0, 1)
        shares, chosen = self.gate(x).softmax(-1).topk(2)
        out = x
        for number, expert in enumerate(self.experts):
            choice, token = torch.where((chosen == number).T)
            share = shares[token, choice, None]
            out = out.index_add(0, token, share * expert(x[token]).tanh())
        return self.head(out.unflatten(0, input_ids.shape))


@pytest.mark.parametrize("length", [3, 12, 40])
@pytest.mark.parametrize(("make", "target"), [(TimeFirst, "inner"), (Experts, "experts.0")])
def test_rows_in_another_order_are_refused(make, target, length):
    ids = data().repeat(1, 4)[:, :length]
    with pytest.raises(ValueError, match=f"expected the rows of '{target}' in the order of batch"):
        fit(seeded(make), ids, targets=target)


@pytest.mark.parametrize("length", [2, 3, 12, 40])
def test_rows_in_their_order_are_not(length):
    model, ids = seeded(BatchFirst), data().repeat(1, 4)[:, :length]
    factors = fit(model, ids, targets="inner")
    wanted = seeded(TimeFirst)

    class Unfolded(BatchFirst):
        def forward(self, input_ids):
            x = self.embed(input_ids)
            return self.head(x + self.inner(x).tanh().cumsum(1))

    wanted.__class__ = Unfolded
    assert error(factors, truth(wanted, ids, "inner")) < 1e-5
