"""GGUF files: read as what their blocks stand for, written as checkpoints, refused in words."""

import json
import re
import shutil

import pytest
import torch
import transformers

import curvedit
from curvedit.cli import main
from curvedit.models import convert_gguf, load_model, load_tokenizer

pytest.importorskip("gguf")
pytest.importorskip("accelerate")
tiny = pytest.importorskip("gguf_tiny")

pytestmark = pytest.mark.filterwarnings("ignore:.*fewer positions:UserWarning")

TEXT = "the thin cat and the other path, then they thought of the math. " * 8


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with two files, what they hold, and a text."""
    directory = tmp_path_factory.mktemp("gguf")
    (directory / "text.txt").write_text(TEXT)
    tiny.write(directory / "tiny.gguf")
    tiny.write(directory / "q8.gguf", quantised=True)
    return directory


@pytest.mark.parametrize("quantised", [False, True], ids=["float32", "Q8_0"])
def test_the_weights_are_exactly_those_of_the_file(tmp_path, quantised):
    expected = tiny.write(tmp_path / "tiny.gguf", quantised=quantised)
    model = load_model(tmp_path / "tiny.gguf", device="cpu")
    assert type(model) is transformers.LlamaForCausalLM
    assert not model.training
    found = dict(model.named_parameters())
    assert set(found) == set(expected)
    for name, weight in expected.items():
        assert found[name].dtype == torch.float32
        assert torch.equal(found[name], weight), name
    if not quantised:
        ids = torch.arange(20)[None]
        torch.testing.assert_close(model(ids).logits, tiny.build()(ids).logits, rtol=0, atol=1e-5)


def test_the_precision_is_as_asked_for(place):
    model = load_model(str(place / "q8.gguf"), dtype="bfloat16", device="cpu")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.config._name_or_path == str(place / "q8.gguf")


def test_the_tokenizer_is_that_of_the_file(place, tmp_path):
    tokenizer = load_tokenizer(place / "tiny.gguf")
    assert tokenizer(TEXT)["input_ids"] == tiny.TOKENIZER(TEXT)["input_ids"]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1)
    assert tokenizer.name_or_path == str(place / "tiny.gguf")
    tiny.write(tmp_path / "bare.gguf", tokenizer=False)
    assert load_tokenizer(tmp_path / "bare.gguf") is None


def test_a_file_that_was_replaced_is_read_anew(place, tmp_path):
    path = tmp_path / "x.gguf"
    shutil.copy(place / "tiny.gguf", path)
    before = load_model(path, device="cpu").lm_head.weight
    path.unlink()
    expected = tiny.write(path, quantised=True)
    after = load_model(path, device="cpu").lm_head.weight
    assert not torch.equal(before, after)
    assert torch.equal(after, expected["lm_head.weight"])


def test_a_converted_directory_is_the_same_model(place, tmp_path):
    written = convert_gguf(place / "q8.gguf", tmp_path / "out")
    model = load_model(tmp_path / "out", device="cpu")
    state = model.state_dict()
    assert set(state) == set(written.state_dict())
    assert all(torch.equal(state[name], each) for name, each in written.state_dict().items())
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert "quantization_config" not in config
    tokens = load_tokenizer(tmp_path / "out")(TEXT)["input_ids"]
    assert tokens == tiny.TOKENIZER(TEXT)["input_ids"]


def run(words, directory):
    """Run a command; words with a dot or slash in front are paths in the directory."""
    named = [str(directory / word[1:]) if word.startswith("@") else word for word in words.split()]
    return main(named)


FIT = "fit --data @text.txt --targets *.mlp.* --window 32 --device cpu --no-progress"


def test_the_command_line_fits_converts_and_edits(place, tmp_path, capfd):
    for name in ("q8.gguf", "text.txt"):
        shutil.copy(place / name, tmp_path / name)
    rows = [json.dumps({"text": TEXT[start : start + 60]}) for start in range(0, 180, 60)]
    (tmp_path / "passages.jsonl").write_text("\n".join(rows))
    measured = "--passages @passages.jsonl --prefix-length 8 --suffix-length 4 --text @text.txt"
    for words in (
        f"{FIT} --model @q8.gguf --out @factors",
        "rank --factors @factors --keep-mass 0.6 --out @selection --no-progress",
        "convert @q8.gguf --out @model",
        "project --model @model --selection @selection --out @edited",
        f"evaluate --model @edited --baseline @q8.gguf --window 32 {measured} --out @report "
        "--no-progress",
    ):
        assert run(words, tmp_path) == 0, capfd.readouterr().err
    report = curvedit.Report.load(tmp_path / "report").to_json()
    assert report["before"]["perplexity"] != report["after"]["perplexity"]
    assert (tmp_path / "model/config.yaml").is_file()
    written = capfd.readouterr()
    assert "[transformers]" not in written.err
    assert "%|" not in written.err
    assert re.search(r"LlamaForCausalLM, [\d,]+ parameters in float32, dequantised", written.out)


def test_bars_are_shown_on_a_terminal_only(place, tmp_path, capfd, monkeypatch):
    transformers.utils.logging.enable_progress_bar()
    convert_gguf(place / "tiny.gguf", tmp_path / "hidden")
    assert capfd.readouterr().err == ""
    assert transformers.utils.logging.is_progress_bar_enabled()
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    convert_gguf(place / "tiny.gguf", tmp_path / "hidden too", progress=False)
    assert capfd.readouterr().err == ""
    convert_gguf(place / "tiny.gguf", tmp_path / "shown")
    assert "de-quantizing" in capfd.readouterr().err
    transformers.utils.logging.disable_progress_bar()


def test_the_command_line_mines(place, capfd):
    words = "mine @tiny.gguf --corpus @text.txt --prefix-length 8 --suffix-length 4 --near 0.25"
    run(f"{words} --out @mined.jsonl --device cpu --no-progress", place)
    assert "windows" in capfd.readouterr().out


def refusal(words, directory, capsys):
    before = sorted(directory.rglob("*"))
    capsys.readouterr()
    assert run(words, directory) == 1
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1, captured.err
    assert sorted(directory.rglob("*")) == before
    return captured.err


@pytest.fixture
def wrong(place, tmp_path):
    """Files that cannot be read as a model."""
    whole = (place / "tiny.gguf").read_bytes()
    (tmp_path / "text.txt").write_text(TEXT)
    (tmp_path / "text.gguf").write_text("not a model at all, but a longer text")
    (tmp_path / "empty.gguf").write_bytes(b"")
    (tmp_path / "head.gguf").write_bytes(whole[:1000])
    (tmp_path / "half.gguf").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "garbled.gguf").write_bytes(whole[:24] + b"\xff" * 400 + whole[424:])
    (tmp_path / "m-00001-of-00003.gguf").write_bytes(whole)
    tiny.write(tmp_path / "other.gguf", architecture="plamo")
    tiny.write(tmp_path / "lacking.gguf", leave_out=["model.layers.1.mlp.up_proj.weight"])
    return tmp_path


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.gguf", "model: expected a GGUF file, got .*, which does not exist"),
        ("text.gguf", "model: expected a GGUF file, got .*, which does not begin as one"),
        ("empty.gguf", "model: expected a GGUF file, got .*, which does not begin as one"),
        ("head.gguf", r"model: .*head.gguf cannot be loaded \("),
        ("half.gguf", r"model: .*half.gguf cannot be loaded \("),
        ("garbled.gguf", r"model: .*garbled.gguf cannot be loaded \("),
        ("m-00001-of-00003.gguf", "expected one GGUF file with all tensors, got .*; join them"),
        ("other.gguf", r"model: .*other.gguf cannot be loaded \(.*plamo.* is not supported"),
        ("lacking.gguf", "lacks 1 tensors of LlamaForCausalLM, such as '.*1.mlp.up_proj.weight'"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(wrong, capsys, name, message):
    with pytest.raises((ValueError, OSError), match=message) as caught:
        load_model(wrong / name, device="cpu")
    assert "\n" not in str(caught.value)
    for words in (f"{FIT} --out @new --model", "convert --out @new"):
        assert str(wrong / name) in refusal(f"{words} @{name}", wrong, capsys)


def test_a_missing_package_is_named_before_any_work(place, capsys, monkeypatch):
    from curvedit.models import gguf_files

    there = gguf_files.find_spec
    lacking = {"gguf", "accelerate"}
    monkeypatch.setattr(
        gguf_files, "find_spec", lambda name: None if name in lacking else there(name)
    )
    wanted = "model: reading a GGUF file needs gguf and accelerate; pip install 'curvedit[gguf]'"
    for words in (
        f"{FIT} --model @tiny.gguf --out @new",
        "mine @tiny.gguf --corpus @text.txt --out @new",
        "evaluate --model @tiny.gguf --text @text.txt --out @new",
        "convert @tiny.gguf --out @new",
    ):
        assert wanted in refusal(words, place, capsys)
    lacking.remove("accelerate")
    with pytest.raises(ModuleNotFoundError, match="needs gguf; pip install"):
        load_model(place / "tiny.gguf", device="cpu")


def test_edits_on_disk_ask_for_a_converted_file(place, tmp_path, capsys):
    hint = "tiny.gguf, a GGUF file; convert it first: curvedit convert "
    batches = curvedit.token_batches([TEXT], tokenizer=tiny.TOKENIZER, window=32)
    factors = curvedit.fit(tiny.build(), batches, targets="*.0.mlp.*", progress=False)
    factors.save(tmp_path / "factors")
    selection = curvedit.rank(factors, keep_mass=0.6, progress=False)
    curvedit.save_selection(selection, tmp_path / "selection", factors)
    for name in ("tiny.gguf", "text.txt"):
        shutil.copy(place / name, tmp_path / name)
    (tmp_path / "run.yaml").write_text(
        f"model: {tmp_path}/tiny.gguf\nfit: {{data: {tmp_path}/text.txt, targets: '*'}}\n"
        "rank: {keep_mass: 0.5}\n"
    )
    forget = "forget --model @tiny.gguf --factors @factors --passages @text.txt --holdout @text.txt"
    for words in (
        "project --model @tiny.gguf --selection @selection --out @new",
        f"{forget} --out @new",
        "run @run.yaml --out @new",
    ):
        assert hint in refusal(words, tmp_path, capsys)
    with pytest.raises(FileNotFoundError, match=hint):
        curvedit.project(tmp_path / "tiny.gguf", selection, out=tmp_path / "new")
    passages = curvedit.Passages([[3, 4, 5]], [[6, 7]])
    with pytest.raises(FileNotFoundError, match=hint):
        curvedit.forget(
            tmp_path / "tiny.gguf", factors, passages, holdout=batches, out=tmp_path / "new"
        )


def test_convert_takes_files_only(place, tmp_path, capsys):
    shutil.copy(place / "tiny.gguf", tmp_path / "tiny.gguf")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/inside").write_text("")
    assert "expected a GGUF file, NAME.gguf, got" in refusal(
        "convert @full --out @new", tmp_path, capsys
    )
    assert "out: expected a new or empty" in refusal(
        "convert @tiny.gguf --out @full", tmp_path, capsys
    )
    with pytest.raises(ValueError, match=r"model: expected a GGUF file, NAME\.gguf, got"):
        convert_gguf(tmp_path / "full", tmp_path / "new")
    with pytest.raises(ValueError, match="dtype: expected one of"):
        convert_gguf(tmp_path / "tiny.gguf", tmp_path / "new", dtype="int8")


def test_a_conversion_that_fails_leaves_nothing(place, tmp_path, monkeypatch):
    def fails(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(transformers.LlamaForCausalLM, "save_pretrained", fails)
    with pytest.raises(OSError, match=r"out: writing .* failed"):
        convert_gguf(place / "tiny.gguf", tmp_path / "below/new")
    assert list(tmp_path.iterdir()) == []


def test_what_is_read_is_asked_not_to_run_code(tmp_path, monkeypatch):
    tiny.write(tmp_path / "tiny.gguf")
    asked = []

    def record(owner):
        right = owner.from_pretrained

        def loaded(*args, **options):
            asked.append(options)
            return right(*args, **options)

        monkeypatch.setattr(owner, "from_pretrained", loaded)

    for owner in ("AutoConfig", "LlamaForCausalLM", "AutoTokenizer"):
        record(getattr(transformers, owner))
    load_model(tmp_path / "tiny.gguf", device="cpu")
    load_tokenizer(tmp_path / "tiny.gguf")
    assert len(asked) >= 3
    assert all(options["trust_remote_code"] is False for options in asked)
