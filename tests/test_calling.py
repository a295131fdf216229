"""Models that are called in ways of their own: other names, demanded masks, other positions."""

import models
import pytest
import torch
import transformers
from torch import nn

import curvedit
from curvedit import Passages, Suite
from curvedit.evaluation import greedy_continuations

pytestmark = pytest.mark.filterwarnings("ignore:.*fewer positions:UserWarning")


class Renamed(nn.Module):
    """A decoder that calls its token ids ``idx``."""

    def __init__(self):
        super().__init__()
        self.embed, self.mix = nn.Embedding(23, 16), nn.Linear(16, 16)
        self.head = nn.Linear(16, 23)

    def forward(self, idx):
        hidden = self.embed(idx)
        return self.head(hidden + self.mix(hidden).cumsum(1).tanh())


class Demanding(Renamed):
    """A decoder that cannot do without a mask."""

    def forward(self, input_ids, attention_mask):
        hidden = self.embed(input_ids) * attention_mask[..., None]
        return self.head(hidden + self.mix(hidden).cumsum(1).tanh())


def ids():
    return torch.randint(23, (4, 12), generator=torch.Generator().manual_seed(0))


def test_another_name_for_token_ids():
    model = Renamed()
    factors = curvedit.fit(model, [ids()], targets="mix", progress=False)
    hidden = model.embed(ids())[:, :-1].flatten(0, 1)
    torch.testing.assert_close(factors["mix"].A, hidden.T @ hidden / len(hidden))
    passages = Passages.cut(ids(), prefix=6, suffix=4)
    assert curvedit.evaluate(model, Suite(passages=passages, text=ids())).before["perplexity"]


def test_a_mask_that_the_model_demands():
    batch = {"input_ids": ids(), "attention_mask": torch.ones(4, 12, dtype=torch.int64)}
    factors = curvedit.fit(Demanding(), [batch], targets="mix", progress=False)
    assert factors["mix"].tokens == 4 * 11


@pytest.mark.parametrize("batch_size", [1, 16])
def test_positions_that_do_not_count_from_zero(batch_size):
    settings = models._common()
    del settings["num_key_value_heads"]
    config = transformers.RobertaConfig(**{**settings, "pad_token_id": 1}, is_decoder=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.RobertaForCausalLM(config).eval()
        for parameter in model.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.3)
    passages = models.ragged_passages()
    said = greedy_continuations(model, passages, batch_size=batch_size)
    for (prefix, suffix), got in zip(passages.rows(), said, strict=True):
        row = torch.tensor([prefix])
        for _ in suffix:
            best = model(input_ids=row, use_cache=False).logits[:, -1:].argmax(-1)
            row = torch.cat([row, best], dim=1)
        assert got == tuple(row[0, len(prefix) :].tolist())
