"""The README's commands, code and links match the package."""

import re
import shlex
from pathlib import Path

import pytest

import curvedit
from curvedit.cli import build_parser

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    line for _, text in BLOCKS for line in text.splitlines() if line.startswith("curvedit ")
]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_accepted(command):
    build_parser().parse_args(shlex.split(command)[1:])


def test_python_compiles_and_names_exist():
    for language, text in BLOCKS:
        if language == "python":
            compile(text, "README", "exec")
            for name in re.findall(r"curvedit\.(\w+)", text):
                assert hasattr(curvedit, name), name


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for document in ("README.md", "CONTRIBUTING.md"):
        assert set(re.findall(r"make ([a-z-]+)", (ROOT / document).read_text())) <= targets


def test_links_to_files_resolve():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
