"""The token source: what becomes of text, rows and datasets, and what is refused."""

import json
import sys
import types

import pytest
import torch
from safetensors.torch import save_file

from curvedit import image_batches, token_batches


class Bytes:
    """A tokenizer of bytes with an end-of-sequence token."""

    name_or_path = "bytes"
    eos_token_id = 256

    def __call__(self, text, **_):
        return {"input_ids": list(text.encode())}

    def get_vocab(self):
        return {str(number): number for number in range(257)}


def tokens(batches):
    """The real tokens of all windows, in order."""
    return torch.cat([b["input_ids"][b["attention_mask"].bool()] for b in batches]).tolist()


def test_documents_are_joined_and_packed():
    batches = token_batches(["abc", "defgh"], tokenizer=Bytes(), window=4, batch_size=2)
    expected = [*b"abc", 256, *b"defgh", 256]
    assert tokens(batches) == expected == tokens(batches)  # can be iterated again
    assert [tuple(b["input_ids"].shape) for b in batches] == [(2, 4), (1, 4)]
    assert len(batches) == 2
    last = list(batches)[-1]
    assert last["attention_mask"].tolist() == [[1, 1, 0, 0]]
    assert batches.tokens == 3 + 3 + 1


def test_a_single_last_token_is_left_out():
    batches = token_batches([[1, 2, 3, 4, 5]], window=2, batch_size=8)
    assert tokens(batches) == [1, 2, 3, 4]
    assert batches.tokens == 2


def test_the_number_of_tokens_is_bounded():
    assert tokens(token_batches([[1, 2, 3], [4, 5, 6]], window=2, max_tokens=4)) == [1, 2, 3, 4]


def test_files_and_directories(tmp_path):
    (tmp_path / "a.txt").write_text("hello\nworld")
    (tmp_path / "b.jsonl").write_text('{"text": "x"}\n\n{"input_ids": [1, 2]}\n')
    (tmp_path / "ignored.bin").write_bytes(b"\0")
    expected = [*b"hello\nworld", 256, *b"x", 256, 1, 2, 256]
    for source in (tmp_path, [tmp_path / "a.txt", tmp_path / "b.jsonl"]):
        assert tokens(token_batches(source, tokenizer=Bytes(), window=17)) == expected


def test_long_documents_are_tokenised_in_pieces_that_join(tmp_path):
    text = "".join(f"line {number}\n" for number in range(20000))
    (tmp_path / "long.txt").write_text(text)
    assert tokens(token_batches(tmp_path / "long.txt", tokenizer=Bytes(), window=64)) == [
        *text.encode(),
        256,
    ]


def test_identity_follows_the_content(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one")
    first = token_batches(path, tokenizer=Bytes(), window=2).identity
    assert first == token_batches(path, tokenizer=Bytes(), window=2).identity
    path.write_text("two")
    assert token_batches(path, tokenizer=Bytes(), window=2).identity["sha256"] != first["sha256"]


def test_cache_is_used_and_checked(tmp_path, monkeypatch):
    path, cache = tmp_path / "a.txt", tmp_path / "cache"
    path.write_text("some text")
    first = tokens(token_batches(path, tokenizer=Bytes(), window=2, cache=cache))
    (stored,) = cache.iterdir()
    monkeypatch.setattr(Bytes, "__call__", lambda *_, **__: pytest.fail("tokenised again"))
    assert tokens(token_batches(path, tokenizer=Bytes(), window=2, cache=cache)) == first
    monkeypatch.undo()
    stored.write_bytes(stored.read_bytes()[:-4])
    with pytest.warns(UserWarning, match="token cache .* is damaged"):
        assert tokens(token_batches(path, tokenizer=Bytes(), window=2, cache=cache)) == first


def test_named_datasets_are_streamed(monkeypatch):
    asked = {}

    def load_dataset(name, config, *, split, streaming):
        asked.update(name=name, config=config, split=split, streaming=streaming)
        return iter([{"text": "ab"}, {"text": "c"}])

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    batches = token_batches("hf:allenai/some:part", tokenizer=Bytes(), window=2, split="test")
    assert tokens(batches) == [97, 98, 256, 99]
    assert asked == {"name": "allenai/some", "config": "part", "split": "test", "streaming": True}


@pytest.mark.parametrize(
    ("source", "options", "error", "message"),
    [
        (
            "nowhere.txt",
            {},
            FileNotFoundError,
            "data: expected a file, a directory or hf:NAME, got nowhere.txt",
        ),
        (["text"], {"tokenizer": None}, ValueError, "tokenizer: expected one"),
        ([], {}, ValueError, "data: expected at least two tokens, got 0 from list"),
        (["abc"], {"window": 1}, ValueError, "window: expected at least 2 tokens, got 1"),
        (["abc"], {"batch_size": 0}, ValueError, "batch_size: expected at least 1"),
        (["abc"], {"max_tokens": 1}, ValueError, "max_tokens: expected at least 2"),
    ],
)
def test_refuses(source, options, error, message):
    with pytest.raises(error, match=message):
        token_batches(source, **{"tokenizer": Bytes(), "window": 2, **options})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "x"}\n{"text": ', "a.jsonl:2 is not JSON"),
        (
            "a.jsonl",
            '{"other": "x"}',
            r"expected a text field 'text' or input_ids in .*a.jsonl:1, got \['other'\]",
        ),
        ("a.csv", "x", r"expected .txt or .jsonl, got .*a.csv"),
    ],
)
def test_refuses_malformed_files(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        token_batches(tmp_path / name, tokenizer=Bytes(), window=2)


def test_refuses_a_directory_without_text(tmp_path):
    with pytest.raises(ValueError, match=r"expected .txt or .jsonl files, got the directory"):
        token_batches(tmp_path, tokenizer=Bytes())


def test_images(tmp_path):
    path = tmp_path / "images.safetensors"
    save_file({"pixel_values": torch.zeros(5, 3, 4, 4), "labels": torch.arange(5)}, path)
    assert [tuple(b["pixel_values"].shape) for b in image_batches(path, batch_size=2)] == [
        (2, 3, 4, 4)
    ] * 2 + [(1, 3, 4, 4)]
    save_file({"pixel_values": torch.zeros(5, 3, 4, 4)}, path)
    with pytest.raises(ValueError, match=r"expected pixel_values .* and labels"):
        image_batches(path)
    path.write_bytes(json.dumps({}).encode())
    with pytest.raises(ValueError, match="damaged or of another format"):
        image_batches(path)
    with pytest.raises(FileNotFoundError, match=r"expected a .safetensors file"):
        image_batches(tmp_path / "nowhere.safetensors")
