"""Beginning of sequence: windows and prefixes begin as the model was trained to see them."""

import json

import models
import pytest
import tokenizers_tiny as tiny
import torch

from curvedit import Passages, Suite, evaluate, token_batches
from curvedit.cli import main
from curvedit.data import opening_of

GPT2_LIKE = tiny.build()  # has a BOS token that it does not add
TEXT = [f"this is document {number}. " * 5 for number in range(4)]


def rows(batches):
    return [
        row[mask.bool()].tolist()
        for batch in batches
        for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]


@pytest.mark.parametrize(
    ("tokenizer", "opening"),
    [
        (GPT2_LIKE, ()),
        (tiny.build("<s> $A"), (tiny.BOS,)),
        (tiny.build("<s> $A </s>"), (tiny.BOS,)),
        (tiny.build("$A </s>"), ()),
        (tiny.build("[CLS] $A [SEP]", bos=None), (tiny.CLS,)),
        (tiny.build("[gMASK] <sop> $A", bos=None), (4, 5)),
        (tiny.build(bos=None), ()),
        (None, ()),
    ],
    ids=["not added", "BOS", "BOS, EOS", "EOS", "CLS", "two", "no BOS", "no tokenizer"],
)
def test_the_opening_is_what_the_tokenizer_itself_adds(tokenizer, opening):
    assert opening_of(tokenizer, "auto") == opening
    assert opening_of(tokenizer, "never") == ()
    if tokenizer is None:
        return
    batches = token_batches(TEXT, tokenizer=tokenizer, window=12)
    plain = token_batches(TEXT, tokenizer=tokenizer, window=12, bos="never")
    assert all(tuple(row[: len(opening)]) == opening for row in rows(batches))
    assert {len(row) for row in rows(batches)[:-1]} == {12}
    content = [token for row in rows(batches) for token in row[len(opening) :]]
    assert content == [token for row in rows(plain) for token in row]  # packed as before
    assert batches.tokens == sum(len(row) - 1 for row in rows(batches))
    assert batches.identity["bos_ids"] == list(opening)
    assert (batches.identity["bos"], plain.identity["bos"]) == ("auto", "never")
    assert (batches.identity["sha256"] != plain.identity["sha256"]) == bool(opening)


def test_always_takes_the_bos_token_or_refuses():
    assert opening_of(GPT2_LIKE, "always") == (tiny.BOS,)
    assert opening_of(tiny.build("[CLS] $A"), "always") == (tiny.CLS,)
    for tokenizer, got in ((tiny.build(bos=None), r"\w+ without one"), (None, "none")):
        with pytest.raises(
            ValueError, match=rf"bos: expected a tokenizer with a BOS .*, got {got}"
        ):
            token_batches([[6, 7, 8]], tokenizer=tokenizer, window=2, bos="always")
    with pytest.raises(ValueError, match=r"bos: expected one of .*'auto'.*, got 'yes'"):
        token_batches([[6, 7, 8]], window=2, bos="yes")


def test_given_ids_are_left_alone_and_never_get_two():
    adds = tiny.build("<s> $A")
    ids = [[9, 10, 11, 12, 13, 14]]
    for bos in ("auto", "never"):
        found = token_batches(ids, tokenizer=adds, window=4, bos=bos)
        assert rows(found) == [[9, 10, 11, 12], [13, 14, tiny.EOS]]
    always = token_batches(ids, tokenizer=adds, window=4, bos="always")
    assert rows(always) == [[0, 9, 10, 11], [0, 12, 13, 14], [0, tiny.EOS]]
    begun = token_batches([[0, 9, 10, 11, 12]], tokenizer=adds, window=4, bos="always")
    assert rows(begun) == [[0, 9, 10, 11], [0, 12, tiny.EOS]]
    written = token_batches(["<s>abcd"], tokenizer=adds, window=4)
    assert [row.count(tiny.BOS) for row in rows(written)] == [1, 1]
    mixed = token_batches([[9, 10, 11, 12, 13], "ab" * 4], tokenizer=adds, window=3)
    assert [row[0] == tiny.BOS for row in rows(mixed)] == [False] * 2 + [True] * 5


def test_a_window_holds_the_opening_and_a_token():
    two = tiny.build("[gMASK] <sop> $A", bos=None)
    assert rows(token_batches(["abc"], tokenizer=two, window=3))[0][:2] == [4, 5]
    with pytest.raises(ValueError, match="window: expected at least 3 tokens, got 2"):
        token_batches(["abc"], tokenizer=two, window=2)


def test_the_bound_on_tokens_counts_the_opening():
    text = ["abcdefghij" * 30, "klmnopqrst" * 30]
    for window in (5, 16):
        found = token_batches(text, tokenizer=tiny.build("<s> $A"), window=window, max_tokens=103)
        assert found.identity["tokens"] == 103


def test_prefixes_of_passages(tmp_path):
    path = tmp_path / "passages.jsonl"
    lines = [
        {"text": "abcdefgh"},
        {"text": "<s>bcdefgh"},
        {"input_ids": [9, 10, 11, 12, 13]},
        {"input_ids": [0, 10, 11, 12, 13]},
        {"prefix_ids": [9, 9], "suffix_ids": [8]},
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    adds = tiny.build("<s> $A")
    a = adds("a", add_special_tokens=False)["input_ids"][0]
    read = {
        bos: Passages.read(path, tokenizer=adds, prefix=3, suffix=2, bos=bos)
        for bos in ("auto", "always", "never")
    }
    plain = [(a, a + 1, a + 2), (0, a + 1, a + 2), (9, 10, 11), (0, 10, 11), (9, 9)]
    assert list(read["never"].prefixes) == plain
    assert list(read["auto"].prefixes) == [(0, *plain[0]), *plain[1:]]
    assert list(read["always"].prefixes) == [
        (0, *plain[0]),
        plain[1],
        (0, *plain[2]),
        plain[3],
        (0, *plain[4]),
    ]
    assert len({each.suffixes for each in read.values()}) == 1
    assert len({each.sha256() for each in read.values()}) == 3
    assert read["auto"].identity["bos"] == "auto"
    with pytest.raises(ValueError, match="bos: expected a tokenizer with a BOS token"):
        Passages.read(path, encode=lambda text: list(text.encode()), bos="always")


@pytest.fixture
def place(tmp_path):
    """A tiny checkpoint with a tokenizer that adds BOS, text and passages."""
    model = models.build("llama")
    model.resize_token_embeddings(300)
    model.save_pretrained(tmp_path / "model")
    tiny.build("<s> $A").save_pretrained(tmp_path / "model")
    (tmp_path / "a.txt").write_text("some text to read. " * 40)
    (tmp_path / "p.jsonl").write_text(json.dumps({"text": "abcdefghijklmnop" * 2}))
    return tmp_path


@pytest.mark.filterwarnings("ignore:.*fewer positions:UserWarning")
def test_the_command_line_and_what_it_records(place, monkeypatch):
    monkeypatch.chdir(place)
    fit = "fit --model model --targets *.mlp.* --data a.txt --window 16 --no-progress"
    assert main([*fit.split(), "--out", "f", "--max-tokens", "200", "--data-seed", "3"]) == 0
    data = json.loads((place / "f/manifest.json").read_text())["data"]
    assert (data["bos"], data["bos_ids"], data["tokens"]) == ("auto", [0], 200)
    assert data["sample"]["seed"] == 3
    assert main([*fit.split(), "--out", "n", "--bos", "never"]) == 0
    other = json.loads((place / "n/manifest.json").read_text())["data"]
    assert (other["bos"], other["bos_ids"], other["sample"]) == ("never", [], "all")
    evaluate = "evaluate --model model --text a.txt --passages p.jsonl --window 16"
    evaluate += " --prefix-length 6 --suffix-length 4 --no-progress --bos always --out r"
    assert main(evaluate.split()) == 0
    read_on = json.loads((place / "r/report.json").read_text())["recipe"]["measured_on"]
    assert (read_on["text"]["bos"], read_on["passages"]["bos"]) == ("always", "always")
    assert read_on["text"]["sample"] == "all"
    assert read_on["passages"]["bos_ids"] == [0]


def test_the_opening_is_given_and_not_predicted():
    """The loss of a window that begins with BOS has a term for each other token."""
    model = models.build("llama")
    model.resize_token_embeddings(300)
    batches = token_batches(TEXT[:1], tokenizer=tiny.build("<s> $A"), window=9)
    total = count = 0.0
    with torch.no_grad():
        for row in map(torch.tensor, rows(batches)):
            logs = model(input_ids=row[None]).logits[0].log_softmax(-1)
            total -= float(logs[:-1].gather(1, row[1:, None]).sum())
            count += len(row) - 1
    report = evaluate(model, Suite(text=batches), progress=False)
    assert report.data["text"]["tokens"] == count == batches.tokens
    assert report.before.perplexity.value == pytest.approx(
        float(torch.tensor(total / count).exp()), rel=1e-4
    )
