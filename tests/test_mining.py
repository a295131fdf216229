"""Mining: planted passages are found and nothing else; an interrupted run goes on; the split."""

import itertools
import json
import random
from types import SimpleNamespace

import models
import pytest
import tokenizers_tiny
import torch
from memoriser import Memoriser
from torch import nn

from curvedit import Passages, evaluation, mine
from curvedit.cli import main
from curvedit.mining import splitting
from curvedit.mining.windows import Window, tells, without_overlaps

VOCABULARY = 1000
PREFIX, SUFFIX = 12, 8
SIZE = PREFIX + SUFFIX
FEW = pytest.mark.filterwarnings("ignore:.*next to nothing:UserWarning")
pytestmark = FEW


def text(seed, length):
    """Token ids of which no three in a row occur twice, and none is 0."""
    return random.Random(seed).choices(range(1, VOCABULARY), k=length)


PLANTED = {"one": (30, text(1, 40)), "two": (7, text(2, 25)), "three": (61, text(3, 60))}


def corpus():
    """Three texts with a planted stretch each, and one without."""
    found = {"four": text(14, 90)}
    for number, (name, (offset, planted)) in enumerate(PLANTED.items()):
        found[name] = text(20 + number, offset) + planted + text(30 + number, 45)
    return found


def memoriser(**options):
    return Memoriser(
        *(planted for _, planted in PLANTED.values()), vocabulary=VOCABULARY, **options
    )


def dug(model=None, given=None, **options):
    settings = {"prefix": PREFIX, "suffix": SUFFIX, "stride": 1, "progress": False, **options}
    return mine(model or memoriser(), given or corpus(), **settings)


def test_planted_passages_are_found_and_nothing_else():
    found = dug()
    assert found.sources == 4
    for (prefix, suffix), known in zip(found.passages.rows(), found.passages.facts, strict=True):
        document = corpus()[known["source"]]
        start, planted = PLANTED[known["source"]]
        assert [*prefix, *suffix] == document[known["offset"] : known["offset"] + SIZE]
        begin = known["offset"] + PREFIX
        # a suffix token is known if three planted tokens stand before it
        inside = [start + 3 <= at < start + len(planted) for at in range(begin, begin + SUFFIX)]
        assert known["right"] == sum(inside) / SUFFIX >= 0.75
        assert known["exact"] == all(inside)
    sources = [known["source"] for known in found.passages.facts]
    assert set(sources) == set(PLANTED)
    for name, (start, planted) in PLANTED.items():
        offsets = [each["offset"] for each in found.passages.facts if each["source"] == name]
        assert all(b - a >= SIZE for a, b in itertools.pairwise(offsets))
        assert any(each["exact"] for each in found.passages.facts if each["source"] == name)
        first, last = start + 3, start + len(planted)
        assert all(first - 2 <= each + PREFIX <= last - 6 for each in offsets)


def test_a_model_that_recites_nothing_is_said(tmp_path):
    out = tmp_path / "passages.jsonl"
    with pytest.warns(UserWarning, match="recites none of .* windows; .* no file was written"):
        found = dug(Memoriser(vocabulary=VOCABULARY), out=out)
    assert found.passages is None
    assert (found.exact, found.near, found.side("tune")) == (0, 0, 0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("default:.*next to nothing:UserWarning")
def test_next_to_nothing_is_said():
    with pytest.warns(UserWarning, match=r"next to nothing of it \(\d tune and \d test passages\)"):
        dug()


def test_a_random_model_recites_next_to_nothing_of_random_text():
    model = models.build("llama")
    given = {str(seed): models.draw(60, seed=seed) for seed in range(5)}
    with pytest.warns(UserWarning, match="recites none"):
        assert dug(model, given).passages is None


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_batched_screening_equals_one_by_one(kind, batch_size):
    model = models.build(kind)
    start = Passages([models.draw(4)], [models.draw(40)])
    said = evaluation.greedy_continuations(model, start)[0]
    given = {"own": [*models.draw(4), *said], "other": models.draw(50, seed=8)}
    found = dug(model, given, near=0.01, batch_size=batch_size, stride=3)
    single = dug(model, given, near=0.01, batch_size=1, stride=3)
    assert found.passages.facts == single.passages.facts
    assert found.passages == single.passages


def interrupted(out, calls):
    with pytest.raises(KeyboardInterrupt):
        dug(memoriser(breaks_after=calls), out=out, batch_size=8)
    state = out.with_name(out.name + ".screening")
    assert not out.exists()
    return state


def test_an_interrupted_run_goes_on(tmp_path):
    out, whole = tmp_path / "a" / "passages.jsonl", tmp_path / "whole.jsonl"
    full = memoriser()
    dug(full, out=whole, batch_size=8)
    state = interrupted(out, calls=22)  # one for the cache's argument, two for causality
    known = [json.loads(line) for line in state.read_text().splitlines()[1:]]
    assert [len(counts) for counts in known] == [64, 64]
    with state.open("a") as stream:
        stream.write("[1, 2")  # killed while it wrote
    again = memoriser()
    dug(again, out=out, batch_size=8)
    assert out.read_bytes() == whole.read_bytes()
    assert again.calls < full.calls - 10
    assert not state.exists()


def test_what_another_run_left_is_refused(tmp_path):
    out = tmp_path / "passages.jsonl"
    interrupted(out, calls=22)
    with pytest.raises(ValueError, match=r"out: .* interrupted run .* another windows"):
        dug(out=out, stride=2)
    with pytest.raises(ValueError, match="another corpus; remove it"):
        dug(out=out, given={**corpus(), "five": text(5, 40)})
    with pytest.raises(ValueError, match="another model"):
        dug(models.build("llama"), {"a": models.draw(40)}, out=out)


def test_an_existing_file_stays(tmp_path):
    out = tmp_path / "passages.jsonl"
    out.write_text("mine")
    model = memoriser()
    with pytest.raises(FileExistsError, match=r"out: expected a new file, got .* exists"):
        dug(model, out=out)
    assert (out.read_text(), model.calls) == ("mine", 0)


def test_the_file_is_read_back(tmp_path):
    out = tmp_path / "passages.jsonl"
    found = dug(out=out)
    read = Passages.read(out)
    assert read == found.passages
    assert list(read.facts) == list(found.passages.facts)
    tune, test = Passages.read(out, split="tune"), read.of_split("test")
    assert len(tune) + len(test) == len(read)
    assert tune == read.of_split("tune")
    assert tune.identity["split"] == "tune"
    for call in (lambda: Passages.read(out, split="dev"), lambda: read.of_split("dev")):
        with pytest.raises(ValueError, match=r"split: expected one of \['test', 'tune'\]"):
            call()


def test_text_gets_the_opening_and_the_tokenizer_is_checked(tmp_path):
    tokenizer = tokenizers_tiny.build("<s> $A", merges=[("t", "h")])
    words = "".join(chr(97 + each % 26) for each in text(4, 60))
    ids = tokenizer(words, add_special_tokens=False)["input_ids"]
    model = Memoriser(ids, vocabulary=len(tokenizer))
    out = tmp_path / "passages.jsonl"
    found = dug(model, {"words": words}, tokenizer=tokenizer, out=out)
    row = json.loads(out.read_text().splitlines()[0])
    offset = row["offset"]
    assert row["prefix_ids"] == [tokenizers_tiny.BOS, *ids[offset : offset + PREFIX]]
    assert row["prefix"] + row["suffix"] == tokenizer.decode(ids[offset : offset + SIZE])
    assert Passages.read(out, tokenizer=tokenizer) == found.passages
    other = SimpleNamespace(decode=lambda ids, **_: words[:3])
    with pytest.raises(ValueError, match="passages: expected the tokenizer that made prefix_ids"):
        Passages.read(out, tokenizer=other)
    bare = dug(model, {"words": words}, tokenizer=tokenizer, bos="never").passages
    assert bare.prefixes[0] == tuple(ids[offset : offset + PREFIX])


def test_suffixes_that_show_no_memory_are_left_out():
    line = text(9, 8)
    assert not tells(line, [5] * 8)
    assert not tells([*line, 3, 4], line)
    assert not tells([*line, 3, 4], [7, *line[1:7], 8])
    assert tells([*line, 3, 4], text(10, 8))
    table = line * 20
    with pytest.warns(UserWarning, match="recites none"):
        assert dug(Memoriser(table, vocabulary=VOCABULARY), {"table": table}).passages is None


def test_the_best_of_overlapping_windows_is_kept():
    windows = [Window(0, 0), Window(0, 10), Window(0, 20), Window(1, 5), Window(0, 19)]
    right = [3, 5, 5, 1, 6]
    kept = without_overlaps(windows, lambda number: -right[number], 10)
    assert kept == [4, 0, 3]


def test_a_text_that_is_there_twice_counts_once():
    twice = {**corpus(), "copy": corpus()["one"]}
    once = dug().passages.facts
    again = dug(given=twice).passages.facts
    assert len(again) == len(once)
    assert {known["source"] for known in again} == set(PLANTED)


def sides(sources, passages, texts=(), seed=0):
    return splitting.split_sides(sources, passages, texts, seed=seed)


def test_sides_are_whole_sources_and_balanced():
    sources = [str(number) for number, count in enumerate([9, 5, 3, 2, 1]) for _ in range(count)]
    passages = [tuple(text(100 + number, 20)) for number in range(len(sources))]
    for seed in range(5):
        found = sides(sources, passages, seed=seed)
        assert sorted([found.count("tune"), found.count("test")]) == [10, 10]
        assert all(
            len({s for s, n in zip(found, sources, strict=True) if n == x}) == 1 for x in sources
        )
    assert sides(sources, passages) == sides(sources, passages)
    pairs = [sides(["a", "b"], [passages[0], passages[1]], seed=seed)[0] for seed in range(20)]
    assert set(pairs) == {"tune", "test"}


def test_sources_that_share_text_share_a_side():
    quoted = text(7, 20)
    passages = [tuple(text(8, 20)), tuple(quoted), tuple(text(9, 20))]
    texts = [("a", [*text(8, 20), *text(40, 9), *quoted[:16]]), ("b", quoted), ("c", text(9, 20))]
    for seed in range(10):
        a, b, c = sides(["a", "b", "c"], passages, texts, seed=seed)
        assert a == b != c
    short = [("a", [*text(8, 20), *quoted[:15]]), *texts[1:]]
    assert len({tuple(sides(["a", "b", "c"], passages, short, seed=s))[:2] for s in range(20)}) > 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prefix": 0}, "prefix: expected at least 1, got 0"),
        ({"suffix": 0}, "suffix: expected at least 1, got 0"),
        ({"stride": 0}, "stride: expected at least 1, got 0"),
        ({"near": 1.5}, "near: expected a number"),
        ({"given": {"a": [1, 2, 3]}}, "corpus: expected a document of at least 20 tokens.* got 3"),
        ({"given": {"a": [1, -2] * 20}}, "expected token ids"),
        ({"given": {"a": "text"}}, "tokenizer: expected one for text, got None"),
    ],
)
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        dug(**options)


def test_windows_that_do_not_fit_the_model_are_refused():
    model = models.build("llama")
    with pytest.raises(ValueError, match="corpus: expected at most 64 tokens"):
        dug(model, {"a": models.draw(90)}, prefix=60, suffix=20)
    with pytest.raises(ValueError, match=r"corpus: expected token ids below 97.* got 97"):
        dug(model, {"a": [*models.draw(40), 97]})
    with pytest.raises(evaluation.CausalityError):
        dug(Peeking(), {"a": models.draw(40)})


class Peeking(nn.Module):
    def forward(self, input_ids):
        return nn.functional.one_hot(input_ids.roll(-1, 1), models.VOCABULARY).float()


@pytest.fixture
def checkpoint(tmp_path):
    model = models.build("llama")
    model.save_pretrained(tmp_path / "model")
    start = Passages([models.draw(20)], [models.draw(30)])
    said = evaluation.greedy_continuations(model, start)[0]
    rows = [{"input_ids": [*models.draw(20), *said], "source": "own"}]
    rows += [{"input_ids": models.draw(50, seed=seed)} for seed in (3, 4)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_the_verb(checkpoint, capsys, monkeypatch):
    monkeypatch.setattr("curvedit.mining.search.tells", lambda *_: True)
    words = ["mine", str(checkpoint / "model"), "--corpus", str(checkpoint / "data.jsonl")]
    words += ["--prefix-length", "20", "--suffix-length", "8", "--out", str(checkpoint / "new")]
    assert main([*words, "--json", "--no-progress"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["passages"] == told["tune"] + told["test"] > 0
    assert told["sources"] == 3
    assert Passages.read(checkpoint / "new").facts[0]["source"] == "own"
    assert main(words) == 1
    assert "out: expected a new file" in capsys.readouterr().err
    words = ["evaluate", "--model", str(checkpoint / "model"), "--out", str(checkpoint / "report")]
    words += ["--passages", str(checkpoint / "new"), "--passages-split", "tune", "--no-progress"]
    words += ["--text", str(checkpoint / "data.jsonl"), "--window", "20", "--batch-size", "3"]
    names = ["recall", "strength", "sampled", "prompts", "kl", "top1"]
    assert main([*words, "--measures", *names]) == 0
    report = json.loads((checkpoint / "report/report.json").read_text())
    assert report["before"]["right"]["value"] >= 0.75
    assert report["before"]["kl"]["value"] == 0
    assert report["data"]["passages"] == {"passages": told["tune"]}
    assert len(report["details"]["passages"]["before"]["right"]) == told["tune"]


def test_the_verb_fails_where_nothing_is_recited(checkpoint, capsys):
    torch.manual_seed(0)
    words = ["mine", str(checkpoint / "model"), "--corpus", str(checkpoint / "data.jsonl")]
    words += ["--out", str(checkpoint / "new"), "--near", "1", "--prefix-length", "4"]
    assert main([*words, "--suffix-length", "40"]) == 1
    assert "recites nothing of this corpus; no file was written" in capsys.readouterr().err
    assert not (checkpoint / "new").exists()
