"""Recitation: decoding, its teacher-forced shortcut, and the scores of known continuations."""

import models
import pytest
import torch
from torch import nn

from curvedit import Passages, Suite, evaluate
from curvedit.evaluation import greedy_continuations, recites

EOS = 2


class Memoriser(nn.Module):
    """Continues known passages exactly; takes ids alone, so nothing may be padded for it."""

    def __init__(self, passages, wrong=()):
        super().__init__()
        self.rows = [(*p, *s) for p, s in passages.rows()]
        self.starts = [p for p, _ in passages.rows()]
        self.wrong = set(wrong)

    def forward(self, input_ids):
        logits = torch.zeros(*input_ids.shape, models.VOCABULARY)
        for b, ids in enumerate(input_ids.tolist()):
            for i, (row, start) in enumerate(zip(self.rows, self.starts, strict=True)):
                if tuple(ids[: len(start)]) == start and i not in self.wrong:
                    for t in range(len(ids)):
                        logits[b, t, row[min(t + 1, len(row) - 1)]] = 9.0
                    break
        return logits


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_a_perfect_memoriser_scores_one(batch_size):
    passages = models.ragged_passages()
    report = evaluate(Memoriser(passages), Suite(passages=passages, batch_size=batch_size))
    assert report.before.strict.value == report.before.loose.value == 1.0
    assert report.before.avg_levenshtein.value == 0.0
    assert recites(Memoriser(passages), passages, batch_size=batch_size).all()


def test_one_wrong_passage_counts_once():
    passages = models.ragged_passages()
    found = recites(Memoriser(passages, wrong=[3]), passages)
    assert found.tolist() == [True, True, True, False, True, True, True]
    report = evaluate(Memoriser(passages, wrong=[3]), Suite(passages=passages))
    assert report.before.strict.value == pytest.approx(6 / 7)
    assert report.before.avg_levenshtein.value == pytest.approx(1 / 7)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "olmo2", "gemma2", "neox"])
def test_batched_continuations_equal_those_one_by_one(kind):
    model, passages = models.build(kind), models.ragged_passages()
    alone = greedy_continuations(model, passages, batch_size=1)
    assert greedy_continuations(model, passages, batch_size=4) == alone
    assert greedy_continuations(model, passages, batch_size=64, pad_token_id=EOS) == alone
    assert [len(row) for row in alone] == [len(suffix) for suffix in passages.suffixes]
    plain = [_greedy_without_cache(model, p, len(s)) for p, s in passages.rows()]
    assert alone == plain


def _greedy_without_cache(model, prefix, count):
    ids = torch.tensor([prefix])
    with torch.no_grad():
        for _ in range(count):
            ids = torch.cat([ids, model(input_ids=ids).logits[:, -1:].argmax(-1)], 1)
    return tuple(ids[0, -count:].tolist())


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_teacher_forcing_agrees_with_greedy_decoding(kind):
    model, passages = models.build(kind), models.ragged_passages()
    said = greedy_continuations(model, passages)
    known = [s if i % 2 else tuple(said[i]) for i, s in enumerate(passages.suffixes)]
    mixed = Passages(passages.prefixes, known)
    expected = [tuple(a) == tuple(b) for a, b in zip(said, known, strict=True)]
    assert recites(model, mixed, batch_size=3).tolist() == expected
    assert sum(expected) == 4


class Script(nn.Module):
    """Says the same tokens whatever the prefix, by position after it."""

    def __init__(self, prefix, said):
        super().__init__()
        self.prefix, self.said = prefix, said

    def forward(self, input_ids):
        logits = torch.zeros(*input_ids.shape, models.VOCABULARY)
        for t in range(input_ids.shape[1]):
            place = t + 1 - self.prefix
            if 0 <= place < len(self.said):
                logits[:, t, self.said[place]] = 5.0
        return logits


def test_end_of_sequence_is_a_token_like_any_other():
    prefix = [5, 6, 7]
    said = [10, EOS, 11, 12]
    with_eos, without = Passages([prefix], [said]), Passages([prefix], [[10, 20, 11, 12]])
    assert evaluate(Script(3, said), Suite(passages=with_eos)).before.strict.value == 1.0
    report = evaluate(Script(3, said), Suite(passages=without))
    assert report.before.strict.value == 0.0
    assert report.before.avg_levenshtein.value == 0.25
    assert report.before.loose.value == 1.0


def test_generation_settings_of_the_model_take_no_part():
    model, passages = models.build("llama"), models.ragged_passages()
    plain = greedy_continuations(model, passages)
    model.generation_config.update(
        repetition_penalty=5.0, min_new_tokens=9, max_length=3, eos_token_id=plain[0][0]
    )
    assert greedy_continuations(model, passages) == plain


@pytest.mark.parametrize(("edits", "loose"), [(0, 1.0), (1, 1.0), (2, 1.0), (3, 0.0)])
def test_loose_allows_two_edits_in_eight(edits, loose):
    true = list(range(10, 18))
    said = [40 + i if i < edits else token for i, token in enumerate(true)]
    report = evaluate(Script(2, said), Suite(passages=Passages([[5, 6]], [true])))
    assert report.before.loose.value == loose
    assert report.before.avg_levenshtein.value == edits / 8


def test_passages_are_read_from_json_lines(tmp_path):
    path = tmp_path / "passages.jsonl"
    path.write_text(
        '{"prefix_ids": [1, 2], "suffix_ids": [3]}\n\n{"prefix_ids": [4], "suffix_ids": [5, 6]}\n'
    )
    assert list(Passages.read(path).rows()) == [((1, 2), (3,)), ((4,), (5, 6))]
    path.write_text('{"prefix": [1]}\n')
    with pytest.raises(ValueError, match="prefix_ids and suffix_ids in line 1"):
        Passages.read(path)
    path.write_text('{"input_ids": [7, 8, 9, 10]}\n{"body": "abcd"}\n')
    read = Passages.read(
        path,
        encode=lambda text: [ord(letter) for letter in text],
        prefix=2,
        suffix=1,
        text_field="body",
    )
    assert list(read.rows()) == [((7, 8), (9,)), ((97, 98), (99,))]
    with pytest.raises(ValueError, match="or 5 tokens of input_ids or text, got 4 tokens"):
        Passages.read(path, prefix=2, suffix=3)
