"""max_tokens: a sample of documents that is spread over the whole source."""

import json
import sys
import types

import numpy as np
import pytest
import tokenizers_tiny as tiny

from curvedit import token_batches
from curvedit.data.spreading import _drawn

BYTES = tiny.build(bos=None, eos=None)


def text_of(batches, tokenizer=BYTES):
    ids = [
        row[mask.bool()]
        for b in batches
        for row, mask in zip(b["input_ids"], b["attention_mask"], strict=True)
    ]
    return tokenizer.decode([token for row in ids for token in row.tolist()])


def numbers_in(text):
    """The four-digit numbers of lines that are there in full, in order."""
    return [int(line) for line in text.split("\n") if len(line) == 4 and line.isdigit()]


def assert_spread(numbers, of, *, within=0.25):
    """Everything in order, and no quarter of the corpus without a line."""
    assert numbers == sorted(numbers)
    edges = [0, *numbers, of]
    assert max(np.diff(edges)) < within * of, edges


LINES = [f"{number:04}\n" for number in range(2000)]


def test_one_long_text_is_taken_from_all_over(tmp_path):
    (tmp_path / "a.txt").write_text("".join(LINES))
    found = token_batches(tmp_path / "a.txt", tokenizer=BYTES, window=16, max_tokens=800)
    assert found.identity["tokens"] == 800
    assert_spread(numbers_in(text_of(found)), 2000)
    sample = found.identity["sample"]
    assert (sample["seed"], sample["documents"], sample["of"]) == (0, 1, 1)
    assert sample["parts"] < sample["of_parts"]


def test_all_files_are_visited(tmp_path):
    for part in range(10):
        (tmp_path / f"{part}.txt").write_text("".join(LINES[part * 200 : part * 200 + 200]))
    found = token_batches(tmp_path, tokenizer=BYTES, window=16, max_tokens=1500)
    numbers = numbers_in(text_of(found))
    assert {number // 200 for number in numbers} == set(range(10))
    assert found.identity["sample"]["documents"] == 10


@pytest.mark.parametrize("kind", ["rows of text", "rows of ids", "list", "rows in Python"])
def test_rows_and_lists(tmp_path, kind):
    ids = [BYTES(line)["input_ids"] for line in LINES]
    source = {
        "rows of text": [{"text": line} for line in LINES],
        "rows of ids": [{"input_ids": row} for row in ids],
        "list": LINES,
        "rows in Python": [{"text": line} for line in LINES],
    }[kind]
    if kind.endswith(("text", "ids")):
        path = tmp_path / "a.jsonl"
        path.write_text("\n\n".join(map(json.dumps, source)))
        source = path
    found = token_batches(source, tokenizer=BYTES, window=16, max_tokens=400)
    assert_spread(numbers_in(text_of(found)), 2000, within=0.1)
    assert found.identity["sample"] | {"parts": 0, "of_parts": 0} == {
        "seed": 0,
        "documents": 80,
        "of": 2000,
        "parts": 0,
        "of_parts": 0,
    }


def test_a_long_document_does_not_fill_the_sample():
    source = ["".join(LINES[:1000]), *LINES[1000:]]
    found = token_batches(source, tokenizer=BYTES, window=16, max_tokens=1000)
    numbers = numbers_in(text_of(found))
    assert min(numbers) < 500
    assert max(numbers) > 1500
    assert found.identity["sample"]["documents"] > 5


def test_the_seed_decides(tmp_path):
    (tmp_path / "a.txt").write_text("".join(LINES))

    def sha256(**options):
        found = token_batches(tmp_path, tokenizer=BYTES, window=16, cache=tmp_path / "c", **options)
        return found.identity["sha256"]

    one, two, again = (sha256(max_tokens=400, seed=seed) for seed in (1, 2, 1))
    assert one == again != two
    assert sha256(seed=1) == sha256(seed=2)  # the whole is the whole


@pytest.mark.parametrize("bound", [10_000, 10_001, 10**9])
def test_a_bound_that_is_not_reached_changes_nothing(tmp_path, bound):
    (tmp_path / "a.txt").write_text("".join(LINES))
    tokenizer = tiny.build(merges=[("0", "0"), ("1", "1"), ("\u010a", "0")])  # across line ends
    whole = token_batches(tmp_path, tokenizer=tokenizer, window=16)
    bounded = token_batches(tmp_path, tokenizer=tokenizer, window=16, max_tokens=bound)
    assert bounded.identity == whole.identity
    assert whole.identity["sample"] == "all"


def test_parts_follow_on_or_are_set_apart():
    tokenizer = tiny.build(bos=None)
    text = "".join(LINES)
    found = token_batches([text, *LINES[:3]], tokenizer=tokenizer, window=16, max_tokens=9000)
    runs = text_of(found, tokenizer).split("</s>")
    for run in runs:
        assert run in text  # nothing is joined that did not stand together
    assert len(runs) < found.identity["sample"]["parts"]  # though neighbours are
    assert found.identity["tokens"] == 9000


@pytest.mark.parametrize("text", ["é" * 3000, "中文字" * 2000, "x" * 5000, "naïve caf é " * 500])
@pytest.mark.parametrize("kind", ["txt", "jsonl", "list"])
def test_parts_are_cut_between_characters(tmp_path, text, kind):
    path = tmp_path / f"a.{kind}"
    path.write_text(text if kind == "txt" else json.dumps({"text": text}))
    source = [text] if kind == "list" else path
    found = token_batches(source, tokenizer=BYTES, window=16, max_tokens=700)
    assert text_of(found).count("\ufffd") <= 2  # the last part drawn ends where the tokens do
    assert found.identity["tokens"] == 700


def test_iterators_give_their_head_and_say_so():
    found = token_batches(iter(LINES), tokenizer=BYTES, window=16, max_tokens=50)
    assert text_of(found) == "".join(LINES[:10])
    assert found.identity["sample"] == "head"


def test_streams_are_shuffled_within_a_buffer(monkeypatch):
    class Stream(list):
        def shuffle(self, *, seed, buffer_size):
            return Stream(self[seed:] + self[:seed]) if buffer_size > 1000 else None

    rows = Stream({"text": line} for line in LINES)
    datasets = types.SimpleNamespace(load_dataset=lambda *_, **__: rows)
    monkeypatch.setitem(sys.modules, "datasets", datasets)
    found = token_batches("hf:x/y", tokenizer=BYTES, window=16, max_tokens=50, seed=500)
    assert numbers_in(text_of(found)) == list(range(500, 510))
    assert found.identity["sample"] == {"seed": 500, "documents": 10, "buffer": 10_000}
    whole = token_batches("hf:x/y", tokenizer=BYTES, window=16)
    assert numbers_in(text_of(whole)) == list(range(2000))


@pytest.mark.parametrize("seed", [0, 1, -3, 2**70])
def test_every_beginning_of_the_order_is_even(seed):
    order = list(_drawn(1000, seed))
    assert sorted(order) == list(range(1000))
    for count in (10, 50, 300):
        gaps = np.diff([-1, *sorted(order[:count]), 1000])
        assert gaps.max() <= 3 * 1000 / count
