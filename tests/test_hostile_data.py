"""Files and ids as users have them: each is read rightly, or refused in one line with its place."""

import json

import numpy as np
import pytest
import tokenizers_tiny as tiny
import torch

import curvedit
from curvedit import Passages, token_batches
from curvedit.cli import main

BYTES = tiny.build(bos=None, eos=None)
BAD_IDS = {
    "a fraction": "[5, 1.5]",
    "a whole float": "[5, 1.0]",
    "text": '[5, "3"]',
    "truth": "[5, true]",
    "null": "[5, null]",
    "negative": "[5, -1]",
    "2**31": "[5, 2147483648]",
    "2**40": "[5, 1099511627776]",
    "infinite": "[5, 1e400]",
    "NaN": "[5, NaN]",
    "nested": "[5, [6, 7]]",
    "a list of lists": "[[5, 6], [7, 8]]",
    "hundreds of digits": "[5, " + "9" * 400 + "]",
    "no list": "7",
    "a text": '"567"',
    "an object": '{"a": 1}',
}


def one_line(error):
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 400
    return message


def content(batches):
    ids = [b["input_ids"][b["attention_mask"].bool()] for b in batches]
    return torch.cat(ids).tolist()


@pytest.mark.parametrize("bound", [None, 3], ids=["all", "sampled"])
@pytest.mark.parametrize("case", BAD_IDS)
def test_what_is_no_token_id_is_refused_by_line(tmp_path, case, bound):
    path = tmp_path / "a.jsonl"
    rows = ['{"input_ids": [5, 6]}'] * (bound is None) + [f'{{"input_ids": {BAD_IDS[case]}}}'] * 2
    path.write_text("\n".join(rows))
    with pytest.raises(ValueError, match="expected token ids, integers from 0 to 2147483647") as e:
        token_batches(path, window=2, max_tokens=bound)
    assert f"{path}:{2 if bound is None else 1}" in one_line(e)


@pytest.mark.parametrize("case", BAD_IDS)
@pytest.mark.parametrize("row", ['{{"input_ids": {}}}', '{{"prefix_ids": {}, "suffix_ids": [5]}}'])
def test_passages_of_such_ids_are_refused_by_line(tmp_path, case, row):
    path = tmp_path / "p.jsonl"
    path.write_text('{"input_ids": [5, 6]}\n' + row.format(BAD_IDS[case]))
    with pytest.raises(
        ValueError, match=r"passages: expected token ids.*line 2 of .*p\.jsonl"
    ) as e:
        Passages.read(path, prefix=1, suffix=1)
    one_line(e)


@pytest.mark.parametrize(
    "given",
    [
        [5, 1.5],
        [5, True],
        [5, "6"],
        [5, 2**31],
        [[5, 6]],
        np.array([5.0, 6.0]),
        b"56",
        7,
        None,
        torch.tensor([True, False]),
        torch.tensor(5),
    ],
    ids=str,
)
def test_ids_given_in_python_are_checked_too(given):
    with pytest.raises(ValueError, match=r"data: expected token ids, .* in document 1") as e:
        token_batches([[5, 6], given], window=2)
    one_line(e)


@pytest.mark.parametrize("make", [list, np.array, torch.tensor, tuple, lambda x: list(np.array(x))])
def test_integers_of_every_kind_are_ids(make):
    assert content(token_batches([make([5, 6, 7])], window=3)) == [5, 6, 7]


FILES = {
    "UTF-16": ("a.txt", "text".encode("utf-16"), ":1, got the byte 0xff"),
    "UTF-16 without a mark": ("a.txt", "one\ntwo".encode("utf-16-le"), ":1, got a NUL byte"),
    "Latin-1": ("a.txt", "plain\ncaf\u00e9\n".encode("latin-1"), ":2, got the byte 0xe9"),
    "NUL": ("a.txt", b"one\ntwo\nth\0ree", ":3, got a NUL byte"),
    "cut character": ("a.txt", "caf\u00e9".encode()[:-1], ":1, got the byte 0xc3"),
    "UTF-16 rows": ("a.jsonl", '{"text": "x"}'.encode("utf-16"), ":1, got the byte 0xff"),
    "Latin-1 rows": (
        "a.jsonl",
        '\n{"text": "caf\u00e9"}'.encode("latin-1"),
        ":2, got the byte 0xe9",
    ),
    "NUL in rows": ("a.jsonl", b'{"text": "a"}\n{"text": "a\0"}', ":2 is not JSON"),
    "a key twice": ("a.jsonl", b'{"text": "a", "text": "b"}', ":1 is not JSON (the key 'text' is"),
    "ids twice": ("a.jsonl", b'{"input_ids": [1], "input_ids": [2]}', "key 'input_ids' is there"),
    "deeply nested": ("a.jsonl", b'{"text": ' + b"[" * 200_000, ":1 is not JSON (nested"),
    "5,000 digits": ("a.jsonl", b'{"text": "a", "n": ' + b"9" * 5000 + b"}", ":1 is not JSON"),
    "half a surrogate pair": ("a.jsonl", b'{"text": "a\\ud800"}', ":1, got the lone surrogate"),
    "a list": ("a.jsonl", b"[1, 2]", ":1, got list"),
    "a number": ("a.jsonl", b"NaN", ":1, got float"),
    "no text": ("a.jsonl", b'{"text": null}', ":1, got ['text']"),
    "two rows in a line": ("a.jsonl", b'{"text": "a"} {"text": "b"}', ":1 is not JSON"),
    "empty": ("a.txt", b"", "expected at least two tokens, got 0 from"),
    "empty rows": ("a.jsonl", b"\n\n", "expected at least two tokens, got 0 from"),
    "only a mark": ("a.txt", b"\xef\xbb\xbf", "expected at least two tokens, got 0 from"),
}


@pytest.mark.parametrize("bound", [None, 9], ids=["all", "sampled"])
@pytest.mark.parametrize("case", FILES)
def test_a_file_of_another_kind_is_refused_by_line(tmp_path, case, bound):
    name, raw, message = FILES[case]
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(ValueError, match="data: ") as e:
        token_batches(tmp_path / name, tokenizer=BYTES, window=4, max_tokens=bound)
    assert message in one_line(e)


READ = {
    "a mark": ("a.txt", b"\xef\xbb\xbfone", "one"),
    "CRLF": ("a.txt", b"one\r\ntwo\rthree\n", "one\ntwo\nthree\n"),
    "a mark before rows": ("a.jsonl", b'\xef\xbb\xbf{"text": "one"}', "one"),
    "CRLF and blank rows": ("a.jsonl", b'\r\n{"text": "one"}\r\n\r\n  \n{"text": "two"}', "onetwo"),
    "line separators in a row": (
        "a.jsonl",
        '{"text": "a\u2028b\u0085c"}'.encode(),
        "a\u2028b\u0085c",
    ),
    "NaN elsewhere": ("a.jsonl", b'{"text": "one", "score": NaN}', "one"),
    "a key twice elsewhere": ("a.jsonl", b'{"text": "one", "n": 1, "n": 2}', "one"),
    "an escaped NUL": ("a.jsonl", b'{"text": "a\\u0000b"}', "a\0b"),
    "no ids but text": ("a.jsonl", b'{"text": "one", "input_ids": null}', "one"),
    "a very long line": ("a.txt", b"ab " * 100_000, "ab " * 100_000),
}


@pytest.mark.parametrize("case", READ)
def test_awkward_files_are_read_rightly(tmp_path, case):
    name, raw, text = READ[case]
    (tmp_path / name).write_bytes(raw)
    found = token_batches(tmp_path / name, tokenizer=BYTES, window=512)
    assert BYTES.decode(content(found)) == text


@pytest.mark.parametrize("case", [case for case in FILES if FILES[case][0].endswith("jsonl")])
def test_passages_of_such_files_are_refused(tmp_path, case):
    path = tmp_path / "p.jsonl"
    path.write_bytes(FILES[case][1])
    with pytest.raises(ValueError, match="passages: ") as e:
        Passages.read(path, tokenizer=BYTES, prefix=1, suffix=1)
    one_line(e)


def test_lengths_of_passages(tmp_path):
    (tmp_path / "p.jsonl").write_text(json.dumps({"text": "abc"}))
    for name in ("prefix", "suffix"):
        with pytest.raises(ValueError, match=f"{name}: expected at least 1 token, got 0"):
            Passages.read(tmp_path / "p.jsonl", tokenizer=BYTES, **{name: 0})


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    import models

    folder = tmp_path_factory.mktemp("hostile")
    models.build("llama").save_pretrained(folder / "model")  # 97 ids, 64 positions
    tiny.build().save_pretrained(folder / "model")  # 262 ids
    (folder / "ids.jsonl").write_text('{"input_ids": [5, 6, 7, 8]}\n{"input_ids": [9, 97]}')
    (folder / "good.jsonl").write_text('{"input_ids": [5, 6, 7, 8, 9, 10]}')
    (folder / "a.txt").write_text("~~~ some text \u00e9\u00e8 " * 20)
    return folder


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--data ids.jsonl", "data: expected token ids below 97, the model's vocabulary size, got"),
        ("--data a.txt", "data: expected token ids below 97"),
        ("--data good.jsonl a.txt", "data: expected token ids below 97"),
    ],
)
def test_ids_that_the_model_lacks_stop_a_fit_before_it_starts(
    place, monkeypatch, capsys, words, message
):
    monkeypatch.chdir(place)
    monkeypatch.setattr("curvedit.fitting.fit", lambda *_, **__: pytest.fail("started"))
    fit = f"fit --model model --targets *.mlp.* --out out --window 16 --no-progress {words}"
    assert main(fit.split()) == 1
    shown = capsys.readouterr().err
    assert f"curvedit fit: error: {message}" in shown
    assert shown.count("\n") == 1
    assert not (place / "out").exists()


def test_windows_beyond_the_context_stop_a_fit_before_it_starts(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    (place / "long.jsonl").write_text(json.dumps({"input_ids": [5, 6, 7] * 100}))
    monkeypatch.setattr("curvedit.fitting.fit", lambda *_, **__: pytest.fail("started"))
    fit = "fit --model model --targets *.mlp.* --out out --window 65 --data long.jsonl"
    assert main(fit.split()) == 1
    message = "data: expected at most 64 tokens, the model's context length, got 65"
    assert message in capsys.readouterr().err


def test_all_that_is_measured_is_looked_at_first(monkeypatch):
    import models

    model = models.build("llama")
    monkeypatch.setattr(
        "curvedit.evaluation.recitation.greedy_continuations", lambda *_, **__: pytest.fail("began")
    )
    good = Passages([[5, 6]], [[7]])
    for text in (
        token_batches([[5, 6], [7, 97]], window=2, batch_size=1),
        [[5, 6], [7, 97]],
        torch.tensor([[5, 6], [7, 97]]),
    ):
        suite = curvedit.Suite(passages=good, text=text, batch_size=1)
        with pytest.raises(ValueError, match=r"text: expected token ids below 97.*got 97"):
            curvedit.evaluate(model, suite, progress=False)
    suite = curvedit.Suite(passages=Passages([[5, 6], [5, 99]], [[7], [8]]))
    with pytest.raises(ValueError, match=r"passages: expected token ids below 97.*got 99"):
        curvedit.evaluate(model, suite, progress=False)


@pytest.mark.parametrize(
    "other",
    [
        {"merges": [("e", "t")]},
        {"lower": True},
        {"eos": "[SEP]"},
        {"template": "<s> $A"},
    ],
    ids=str,
)
def test_tokenizers_that_differ_share_no_cache(tmp_path, other):
    path, cache = tmp_path / "a.txt", tmp_path / "cache"
    path.write_text("The text to be tokenised, Set in Two Ways.")
    base = {"merges": [("t", "e")]} if "merges" in other else {}
    one, two = tiny.build(**base), tiny.build(**{**base, **other})
    if "merges" in other:  # the same words, other merges
        two = tiny.build(merges=[("t", "e"), ("e", "t")])
        one = tiny.build(merges=[("e", "t"), ("t", "e")])
        assert set(one.get_vocab()) == set(two.get_vocab())
    for tokenizer in (one, two, one):
        expected = content(token_batches(path, tokenizer=tokenizer, window=8))
        cached = token_batches(path, tokenizer=tokenizer, window=8, cache=cache)
        assert content(cached) == expected
    assert len(list(cache.iterdir())) == 2


def test_slow_tokenizers_that_differ_share_no_cache(tmp_path):
    class Slow:
        """A tokenizer without a serialisation."""

        name_or_path, eos_token_id = "slow", None

        def __init__(self, shift):
            self.shift = shift

        def __call__(self, text, **_):
            return {"input_ids": [ord(letter) + self.shift for letter in text]}

    path, cache = tmp_path / "a.txt", tmp_path / "cache"
    path.write_text("text")
    for shift in (0, 1, 0):
        found = token_batches(path, tokenizer=Slow(shift), window=8, cache=cache)
        assert content(found) == [ord(letter) + shift for letter in "text"]
    assert len(list(cache.iterdir())) == 2
