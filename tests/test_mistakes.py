"""Mistakes that people make: one line that says what to do, and nothing on disk."""

import json
import shutil

import models
import pytest

from curvedit.cli import main

pytestmark = pytest.mark.filterwarnings("ignore:.*fewer positions:UserWarning")

FIT = "fit --model model --data data.jsonl --targets *.0.mlp.* --window 20 --no-progress"
RANK = "rank --factors factors"
PROJECT = "project --model model --selection selection"
FORGET = "forget --model model --factors factors --window 20 --no-progress"
FORGET += " --passages passages.jsonl --holdout data.jsonl"
MINE = "mine model --prefix-length 8 --suffix-length 4 --no-progress --out new --corpus"
EVALUATE = "evaluate --model edited --baseline model --window 20"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with a model and what each verb made of it."""
    directory = tmp_path_factory.mktemp("mistakes")
    models.build("llama").save_pretrained(directory / "model")
    rows = [{"input_ids": models.draw(count, seed=count)} for count in (90, 60)]
    (directory / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    passages = [{"prefix_ids": row["input_ids"][:8], "suffix_ids": [5, 6]} for row in rows]
    (directory / "passages.jsonl").write_text("\n".join(map(json.dumps, passages)))
    for words in (
        f"{FIT} --out factors",
        f"{RANK} --keep-mass 0.9 --out selection",
        f"{RANK} --sweep 0.8:0.9:0.1 --out sweep",
        f"{PROJECT} --out edited",
        f"{EVALUATE} --text data.jsonl --out report",
    ):
        assert main(words_in(directory, words)) == 0
    write_what_is_wrong(directory)
    return directory


def words_in(directory, words):
    """The words of a command, with the paths of what the directory holds, or is to hold."""
    flags = ("--model", "--data", "--factors", "--selection", "--baseline", "--text", "--out")
    parts = words.split()
    for number, word in enumerate(parts[1:], 1):
        if parts[number - 1] in flags:
            parts[number] = str(directory / word)
    return parts


def write_what_is_wrong(directory):
    files = {
        "outside.jsonl": json.dumps({"input_ids": [3, 97, 4]}),
        "empty.jsonl": "",
        "short.jsonl": json.dumps({"input_ids": [3, 4, 5]}),
        "text.txt": "some text",
        "notes.pdf": "none",
        "broken.jsonl": "{",
        "a-file": "kept",
        "torn/curvedit.json": "{",
        "torn/config.json": (directory / "model/config.json").read_text(),
        "listed/curvedit.json": "[]",
        "bare/config.json": json.dumps({"model_type": "llama"}),
        "typeless/config.json": "{}",
        "garbled/config.json": "{",
        "folder/inside": "",
        "torn-factors/manifest.json": "{",
        "torn-report/report.json": "[1",
    }
    for name, text in files.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(text)
    shutil.copytree(directory / "report", directory / "torn-reference")
    (directory / "torn-reference/ndcg10_reference.safetensors").write_bytes(b"torn")
    (directory / "latin.txt").write_bytes("déjà vu".encode("latin-1"))


# Command, and what its one line must hold: the argument, what was expected, what came.
REFUSED = {
    # fit
    "no window": (f"{FIT} --window 1", "window: expected at least 2, got 1"),
    "negative window": (f"{FIT} --window -5", "window: expected at least 2, got -5"),
    "no batch": (f"{FIT} --batch-size 0", "batch_size: expected at least 1, got 0"),
    "no tokens": (f"{FIT} --max-tokens 0", "max_tokens: expected at least 2, got 0"),
    "negative seed": (f"{FIT} --seed -1", "seed: expected at least 0, got -1"),
    "beyond the context": (f"{FIT} --window 512", "data: expected at most 64 tokens", "150"),
    "outside the vocabulary": (f"{FIT} --data outside.jsonl", "data: ", "below 97", "got 97"),
    "no data": (f"{FIT} --data empty.jsonl", "data: expected at least two tokens, got 0"),
    "missing data": (f"{FIT} --data nowhere.txt", "data: expected a file", "nowhere.txt"),
    "data of another kind": (f"{FIT} --data notes.pdf", "data: expected .txt or .jsonl"),
    "data that is no JSON": (f"{FIT} --data broken.jsonl", "broken.jsonl:1"),
    "a folder without data": (f"{FIT} --data folder", "data: expected .txt or .jsonl files"),
    "text in latin-1": (f"{FIT} --data latin.txt", "latin.txt|utf-8|UTF-8|tokenizer"),
    "text without a tokenizer": (f"{FIT} --data text.txt", "tokenizer: expected one"),
    "other targets": (f"{FIT} --targets *.gat", "targets: '*.gat' matches no linear map"),
    "no CUDA": (f"{FIT} --device cuda", "device: expected one of ['cpu'", "got 'cuda'"),
    "CUDA 7": (f"{FIT} --device cuda:7", "device: expected one of ['cpu'", "got 'cuda:7'"),
    "a TPU": (f"{FIT} --device tpu", "device: expected one of ['cpu'", "got 'tpu'"),
    "meta": (f"{FIT} --device meta", "device: expected one of ['cpu'", "got 'meta'"),
    "sums nowhere": (f"{FIT} --sums-on disk", "sums_on: expected one of ['cpu'", "'disk'"),
    "inputs nowhere": (f"{FIT} --inputs-on disk", "inputs_on: expected one of ['cpu'", "'disk'"),
    "no model": (f"{FIT} --model nowhere", "model: expected a checkpoint directory", "nowhere"),
    "a file for a model": (f"{FIT} --model a-file", "model: expected a checkpoint directory"),
    "a folder for a model": (f"{FIT} --model folder", "model: expected a checkpoint directory"),
    "a model without a type": (f"{FIT} --model typeless", "model: expected a checkpoint dir"),
    "a damaged model": (f"{FIT} --model garbled", "model: expected a checkpoint directory"),
    "a model without a class": (f"{FIT} --model bare", "model: expected a config that names"),
    "output not empty": (f"{FIT} --out folder", "out: expected a new or empty directory", "folder"),
    "output is a file": (f"{FIT} --out a-file", "out: expected", "a-file"),
    "output below a file": (f"{FIT} --out a-file/below", "out: expected", "a-file"),
    # rank
    "sixty": (f"{RANK} --keep-mass 60", "keep_mass: expected a number in (0, 1], got 60.0"),
    "no number": (f"{RANK} --keep-mass nan", "keep_mass: expected a number in (0, 1], got nan"),
    "negative": (f"{RANK} --keep-mass -0.5", "keep_mass: expected a number in (0, 1], got -0.5"),
    "sweep down": (f"{RANK} --sweep 0.9:0.5:0.1", "sweep: expected 0 < FROM <= TO <= 1", "0.9:0.5"),
    "half a sweep": (f"{RANK} --sweep 0.9", "sweep: expected FROM:TO:STEP", "got '0.9'"),
    "sweep of text": (f"{RANK} --sweep a:b:c", "sweep: expected FROM:TO:STEP", "got 'a:b:c'"),
    "sweep of NaN": (f"{RANK} --sweep nan:1:0.1", "sweep: expected 0 < FROM", "got 'nan:1:0.1'"),
    "endless sweep": (f"{RANK} --sweep 0.1:1:1e-9", "sweep: expected at most 1000 shares"),
    "svd without a model": (f"{RANK} --keep-mass 0.5 --criterion svd", "model: expected the fitt"),
    "a price without a model": (f"{RANK} --keep-kl 0.1", "whose weights --keep-kl reads, got none"),
    "no price": (f"{RANK} --keep-kl 0 --model model", "keep_kl: expected a positive number of na"),
    "text without a price": (
        f"{RANK} --keep-mass 0.5 --holdout text.txt",
        "holdout: expected keep_kl with it",
    ),
    "text that is not there": (
        f"{RANK} --keep-kl 0.1 --model model --holdout missing.txt",
        "holdout: ",
        "missing.txt",
    ),
    "a device for nothing": (
        f"{RANK} --keep-kl 0.1 --model model --device cpu",
        "device: expected --holdout with it",
    ),
    "scope of a control": (
        f"{RANK} --keep-mass 0.5 --criterion random --scope model",
        "scope: expected 'target' with the control 'random', got 'model'",
    ),
    "not fitted": (f"{RANK} --keep-mass 0.5 --criterion ekfac", "S of model", "fit again with"),
    "a selection for factors": (
        "rank --factors selection --keep-mass 0.5",
        "factors: expected a factor directory, as curvedit fit writes, got ",
        "selection, a selection",
    ),
    "no factors": (
        "rank --factors nowhere --keep-mass 0.5",
        "factors: expected a factor",
        "nothing",
    ),
    "damaged factors": ("rank --factors torn-factors --keep-mass 0.5", "factors: ", "damaged"),
    "targets not fitted": (
        f"{RANK} --keep-mass 0.5 --targets *.9.*",
        "targets: '*.9.*' matches no",
    ),
    "nothing to skip": (f"{RANK} --keep-mass 0.5 --skip *.9.*", "skip: '*.9.*' matches no"),
    "everything skipped": (f"{RANK} --keep-mass 0.5 --skip *", "skip: expected to leave at least"),
    # project
    "factors for a selection": (
        "project --model model --selection factors",
        "selection: expected a selection, as curvedit rank writes, got ",
        "factors, a factor directory",
    ),
    "no selection": ("project --model model --selection nowhere", "selection: expected", "nothing"),
    "edited twice": ("project --model edited --selection selection", "not the one the factors"),
    "a hub name": ("project --model folder --selection selection", "model: expected"),
    "inside the model": (f"{PROJECT} --out model/edited", "out: expected a directory outside"),
    "endless scale": (f"{PROJECT} --removed-scale inf", "removed_scale: expected a finite", "inf"),
    # forget
    "a selection to forget by": (
        f"{FORGET} --factors selection",
        "factors: expected a factor directory, as curvedit fit writes, got ",
        "selection, a selection",
    ),
    "nothing to forget": (f"{FORGET} --passages nowhere.jsonl", "passages: expected a .jsonl"),
    "nothing that is recited": (FORGET, "passages: expected some that the model recites"),
    "forgotten and kept": (f"{FORGET} --retain passages.jsonl", "retain: expected passages that"),
    "no budget": (f"{FORGET} --budget 0", "budget: expected a number of at least 1e-06, got 0.0"),
    "a budget of text": (f"{FORGET} --budget nan", "budget: expected a number of at least", "nan"),
    "no steps": (f"{FORGET} --steps 0", "steps: expected at least 1, got 0"),
    "no damping": (f"{FORGET} --damping -1", "damping: expected a positive number, got -1.0"),
    "held-out nothing": (f"{FORGET} --holdout nowhere.txt", "holdout: expected a file", "nowhere"),
    "held-out beyond the context": (f"{FORGET} --window 99", "holdout: ", "at most 64"),
    "unfitted targets": (f"{FORGET} --targets *.9.*", "targets: '*.9.*' matches no"),
    "an edited model to forget in": (f"{FORGET} --model edited", "not the one the factors"),
    "forgotten in the model": (f"{FORGET} --out model/edited", "out: expected a directory outside"),
    # evaluate
    "nothing to measure": (EVALUATE, "evaluate: expected --passages, --text or --splits, got none"),
    "text beyond the context": (
        f"{EVALUATE} --text data.jsonl --window 99",
        "text: ",
        "at most 64",
    ),
    "split without a name": (f"{EVALUATE} --splits data.jsonl", "splits: expected NAME=FILE, got"),
    "split twice": (f"{EVALUATE} --splits a=x a=y", "splits: expected NAME=FILE|a .safetensors"),
    "no prefix": (f"{EVALUATE} --text data.jsonl --prefix-length 0", "prefix_length: expected at"),
    "relearning without text": (
        f"{EVALUATE} --passages passages.jsonl --measures relearning",
        "measures: expected --passages and --text for 'relearning', got no --text",
    ),
    "recall without passages": (
        f"{EVALUATE} --text data.jsonl --measures recall",
        "measures: expected --passages for 'recall', got none",
    ),
    "kl without text": (
        f"{EVALUATE} --passages passages.jsonl --measures kl",
        "measures: expected --text for 'kl', got none",
    ),
    "tasks without a tokenizer": (
        f"{EVALUATE} --measures tasks",
        "measures: expected a tokenizer for 'tasks', got a model without",
    ),
    "no passages": (f"{EVALUATE} --passages nowhere", "passages: expected a .jsonl", "nowhere"),
    "no baseline": (
        f"{EVALUATE} --baseline nowhere --text data.jsonl",
        "expected a checkpoint dir",
    ),
    "damaged record": ("evaluate --model torn --text data.jsonl", "expected JSON", "curvedit.json"),
    "record of a list": (
        "inspect --json listed",
        "expected the record of an edit",
        "curvedit.json",
    ),
    "passages of no split": (
        f"{EVALUATE} --passages passages.jsonl --passages-split dev",
        "split: expected one of ['None'] in passages.jsonl, got 'dev'",
    ),
    # mine
    "no corpus": (f"{MINE} nowhere.txt", "data: expected a file|corpus: expected", "nowhere.txt"),
    "corpus without a tokenizer": (f"{MINE} text.txt", "tokenizer: expected one for text"),
    "corpus of another vocabulary": (
        f"{MINE} data.jsonl outside.jsonl --prefix-length 2 --suffix-length 1",
        "corpus: expected token ids below 97",
    ),
    "short corpus": (f"{MINE} short.jsonl", "corpus: expected a document of at least 12", "got 3"),
    "mined over something": (f"{MINE} data.jsonl --out a-file", "out: expected a new file"),
    "mined backwards": (f"{MINE} data.jsonl --stride 0", "stride: expected at least 1, got 0"),
    "mined too near": (f"{MINE} data.jsonl --near 0", "near: expected a number in (0, 1], got 0"),
    "no model to mine": ("mine nowhere/x/y --corpus data.jsonl", "model: expected a checkpoint"),
    # others
    "not ours": ("inspect folder", "path: expected a factor directory", "report.json", "folder"),
    "inspect nothing": ("inspect nowhere", "path: expected", "nothing that exists"),
    "a checkpoint": ("inspect model", "path: expected", "a checkpoint"),
    "damaged report": ("inspect torn-report", "report: expected JSON", "report.json"),
    "damaged reference": ("inspect torn-reference", "damaged|reference"),
    "one to merge": ("merge --factors factors", "factors: expected two or more, got only"),
    "merged with a selection": ("merge --factors factors selection", "factors: expected a factor"),
    "merged into something": (
        "merge --factors factors factors --out folder",
        "out: expected a new",
    ),
    "bench of nothing": ("bench --d 0", "d: expected widths of at least 1, got [0]"),
    "bench elsewhere": ("bench --device tpu", "device: expected one of", "got 'tpu'"),
    "demo in a file": ("demo --out a-file", "out: expected a directory, got ", "a-file, a file"),
}


WRITERS = ("fit", "rank", "project", "forget", "evaluate", "merge", "mine")


def listing(directory):
    return {path: path.is_file() and path.read_bytes() for path in directory.rglob("*")}


@pytest.fixture
def here(place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    yield place
    shutil.rmtree(place / "new", ignore_errors=True)


def refusal(words, capsys):
    """The one line that a refused command leaves."""
    capsys.readouterr()
    assert main(words) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"curvedit {words[0]}: error: "), captured.err
    assert captured.err.count("\n") == 1, captured.err
    return captured.err


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(here, capsys, case):
    words, *parts = REFUSED[case]
    words = words.split()
    if "--out" not in words and words[0] in WRITERS:
        words += ["--out", "new"]
    before = listing(here)
    message = refusal(words, capsys)
    for part in parts:
        assert any(each in message for each in part.split("|")), message
    assert listing(here) == before
    assert not (here / "new").exists()
