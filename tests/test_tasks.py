"""Task families made by code: items whose answers are right, scored as the docstring says."""

import dataclasses
import random
import re

import models
import pytest
import tokenizers_tiny
import torch
from torch import nn

from curvedit import Report, Suite, evaluate
from curvedit.evaluation import FAMILIES, Tasks, greedy_continuations
from curvedit.evaluation.tasks import _first_is_best
from curvedit.report import Metric

TOKENIZER = tokenizers_tiny.build("<s> $A")
FACTS = "facts known before"


class Oracle(nn.Module):
    """Answers each prompt with its right answer; those forgotten with its last, or nothing."""

    def __init__(self, tasks, forgotten=()):
        super().__init__()
        self.size = len(TOKENIZER)
        self.known, taken = {}, set()
        for family, (passages, counts) in tasks._made.items():
            first = 0
            for number, count in enumerate(counts):
                prefix, suffix = list(passages.rows())[first]
                first += count
                if (family, number) not in set(forgotten):
                    self.known[prefix] = suffix
                elif count > 1:
                    self.known[prefix] = list(passages.rows())[first - 1][1]
                assert prefix not in taken
                taken.add(prefix)

    def forward(self, input_ids):
        logits = torch.zeros(*input_ids.shape, self.size)
        for row, ids in enumerate(input_ids.tolist()):
            for end in range(len(ids)):
                suffix = self.known.get(tuple(ids[: end + 1]))
                for step, token in enumerate(suffix or ()):
                    if tuple(ids[end + 1 : end + 1 + step]) == suffix[:step] and end + step < len(
                        ids
                    ):
                        logits[row, end + step, token] = 30.0
        return logits


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_right(family):
    items = FAMILIES[family](random.Random(0), 80)
    assert len(items) >= 75
    for prompt, (right, *wrong) in items:
        assert right.startswith(" ")
        assert right not in wrong
        last = prompt.splitlines()[-1]
        if "addition" in family:
            a, b = map(int, re.findall(r"\d+", last))
            assert int(right) == a + b
            shots = prompt.splitlines()[:-1]
            assert len(shots) == 4
            assert not any(shot.startswith(last) for shot in shots)
        elif family == "key-value retrieval":
            assert f"{last}{right}\n" in prompt
        elif family == "copying":
            assert f"Say:{right}\nRepeat:" in prompt
        elif family == "boolean expressions":
            assert eval(last.removesuffix(" =")) == (right == " True")
            assert wrong == [" " + str(right == " False")]
        elif family == "object tracking":
            thing = re.search(r"Now the (\w+) is in the$", prompt)[1]
            moved = re.search(r"takes the (\w+) and puts it in the (\w+)\.", prompt)
            place = (
                moved[2] if moved[1] == thing else re.search(rf"{thing} is in the (\w+)", prompt)[1]
            )
            assert right == f" {place}"
            assert len(wrong) == 3
    assert items == FAMILIES[family](random.Random(0), 80)
    assert items != FAMILIES[family](random.Random(1), 80)


def test_an_oracle_scores_all_and_one_forgotten_item_counts_once(tmp_path):
    tasks = Tasks(TOKENIZER, items=10)
    suite = Suite([tasks], resamples=50, batch_size=7)
    evaluate(Oracle(tasks), suite, progress=False).save(tmp_path)
    before = Report.load(tmp_path)
    assert {metric.value for metric in before.before.values()} == {1.0}
    assert set(before.before.task) == set(FAMILIES)
    lost = [(family, 3) for family in FAMILIES]
    after = evaluate(Oracle(tasks, lost), suite, baseline=before, progress=False)
    for family in FAMILIES:
        assert after.after.task[family].value == pytest.approx(0.9), family
        assert after.differences.task[family].value == pytest.approx(-0.1)


def test_facts_that_were_not_known_do_not_count():
    tasks = Tasks(TOKENIZER, [FACTS], items=20)
    suite = Suite([tasks], resamples=50)
    before = evaluate(Oracle(tasks, [(FACTS, n) for n in range(5)]), suite, progress=False)
    assert before.before.task[FACTS] == Metric(1.0, 1.0, 1.0)
    after = evaluate(Oracle(tasks, [(FACTS, n) for n in range(8)]), suite, baseline=before)
    assert after.after.task[FACTS].value == pytest.approx(12 / 15)
    with pytest.raises(ValueError, match="tasks: expected a model that knows some facts, got one"):
        evaluate(Oracle(tasks, [(FACTS, n) for n in range(20)]), suite, progress=False)


def test_greedy_items_are_those_that_decoding_gives():
    config = models.build("llama").config
    config.vocab_size, config.max_position_embeddings = len(TOKENIZER), 400
    model = type(models.build("llama"))(config).eval()
    tasks = Tasks(TOKENIZER, ["copying"], items=4)
    passages, counts = tasks._made["copying"]
    said = greedy_continuations(model, passages)
    made = dataclasses.replace(passages, suffixes=[*said[:3], passages.suffixes[3]])
    tasks._made["copying"] = (made, counts)
    report = evaluate(model, Suite([tasks]), progress=False)
    assert report.before.task["copying"].value == 0.75


def test_a_tie_is_not_right():
    assert _first_is_best([-1.0, -2.0, -3.0, -1.0, -1.0], [3, 2]).tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: Tasks(None), TypeError, "tokenizer: expected one for the tasks, got None"),
        (lambda: Tasks(TOKENIZER, ["chess"]), ValueError, "families: expected some of .*'chess'"),
        (lambda: Tasks(TOKENIZER, []), ValueError, "families: expected some of .* got none"),
        (lambda: Tasks(TOKENIZER, items=0), ValueError, "items: expected at least 1, got 0"),
    ],
)
def test_refuses(make, kind, message):
    with pytest.raises(kind, match=message):
        make()


def test_items_that_do_not_fit_the_model_are_refused():
    with pytest.raises(ValueError, match=r"passages: expected (at most 64 tokens|token ids below)"):
        evaluate(models.build("llama"), Suite([Tasks(TOKENIZER)]), progress=False)
