"""Versions that are written down twice agree, and the package says which version it is."""

import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

import curvedit

ROOT = Path(__file__).parents[1]
WORKFLOW = ROOT / ".github/workflows/ci.yml"


@pytest.fixture(scope="module")
def project():
    """The metadata in pyproject.toml."""
    tomllib = pytest.importorskip("tomllib", reason="part of Python from 3.11")
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def requirements(project):
    lists = [project["build-system"]["requires"], project["project"]["dependencies"]]
    lists += project["project"]["optional-dependencies"].values()
    return [Requirement(text) for texts in lists for text in texts]


def pins(name):
    lines = (ROOT / name).read_text().splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {each.name: Version(str(each.specifier).removeprefix("==")) for each in found}


def hooks():
    """Repository to its pinned revision."""
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    return {each["repo"]: each.get("rev", "") for each in config["repos"]}


def test_the_version_is_that_of_the_metadata(project):
    assert curvedit.__version__ == version("curvedit") == project["project"]["version"]


def test_the_package_runs_as_a_module():
    command = [sys.executable, "-m", "curvedit", "--version"]
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    assert found.stdout == f"curvedit {curvedit.__version__}\n"


def test_the_hooks_run_the_same_ruff(project):
    (ruff,) = (each for each in requirements(project) if each.name == "ruff")
    assert str(ruff.specifier) == "==" + hooks()["https://github.com/astral-sh/ruff-pre-commit"][1:]


def test_hooks_are_pinned_to_releases():
    for repository, revision in hooks().items():
        if repository != "local":
            assert re.fullmatch(r"v\d+(\.\d+)+", revision), f"{repository}: {revision!r}"


def test_the_oldest_constraints_are_the_lower_bounds(project):
    """What another package forces stands below a line that says so."""
    oldest = pins("constraints-oldest.txt")
    for requirement in requirements(project):
        bounds = [each for each in requirement.specifier if each.operator in (">=", "==")]
        for bound in bounds:
            assert oldest.pop(requirement.name, None) == Version(bound.version), requirement.name
    assert set(oldest) == {"pyarrow"}


def test_the_current_constraints_are_promised(project):
    promised = {each.name: each.specifier for each in requirements(project)}
    for name, pinned in pins("constraints.txt").items():
        assert pinned in promised.get(name, SpecifierSet()), name


def test_ci_runs_every_python_that_is_promised(project):
    matrix = yaml.safe_load(WORKFLOW.read_text())["jobs"]["test"]["strategy"]["matrix"]["include"]
    tested = {each["python"] for each in matrix if not each.get("name")}
    prefix = "Programming Language :: Python :: 3."
    classifiers = project["project"]["classifiers"]
    assert tested == {each.split(" :: ")[-1] for each in classifiers if each.startswith(prefix)}
    promised = SpecifierSet(project["project"]["requires-python"])
    assert min(tested, key=Version) in promised
    assert f"3.{min(int(each[2:]) for each in tested) - 1}" not in promised


def test_ci_runs_what_make_test_runs():
    """The hooks run ruff; every other command of ``make test`` is a step."""
    recipe = re.search(r"^test:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    commands = {line.strip().removeprefix("$(BIN)/") for line in recipe[1].splitlines()}
    jobs = yaml.safe_load(WORKFLOW.read_text())["jobs"].values()
    steps = {step["run"] for job in jobs for step in job["steps"] if "run" in step}
    others = {command for command in commands if not command.startswith("ruff ")}
    assert others <= steps
    assert any("pre-commit run --all-files" in step for step in steps)
