"""The layout's rules: imports point downwards, kernels have their companions, files stay short."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "python/curvedit"
LAYERS = [  # a module may import only from layers before its own
    {"check", "linear", "selection", "kernels", "_C", "meter", "sampling", "batches"},
    {
        "files",
        "factor_files",
        "target",
        "native",
        "native_cuda",
        "eigen",
        "objective",
        "calls",
        "causality",
    },
    {"ops"},
    {"factors", "collector", "report", "editing", "library", "doctor", "profiling"},
    {"store", "workloads", "streaming", "checkpoint", "roofline", "correction"},
    {"fitting", "ranking", "projection", "evaluation", "data"},  # stages: never each other
    {"__init__", "models"},
    {"demo"},
    {"commands"},
    {"cli"},
    {"__main__"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
NO_KERNEL = {
    "__init__",
    "tiles",
    "staircase_checks",
    "staircase_plan",
    "second_moment_checks",
    "syrk_checks",
}
SUFFIXES = ("_ref", "_torch", "_avx2", "_avx512", "_amx", "_portable", "_mma", "_cuda")


def part_of(path):
    """The module or subpackage of the package that a file belongs to."""
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imported(path):
    """Parts of the package that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            head, *rest = node.module.split(".")
            if head == "curvedit":
                yield from ([rest[0]] if rest else [alias.name for alias in node.names])
        elif isinstance(node, ast.Import):
            yield from (
                alias.name.split(".")[1]
                for alias in node.names
                if alias.name.startswith("curvedit.")
            )


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_imports_point_downwards(path):
    own = part_of(path)
    for name in imported(path):
        if name != own or path.name == f"{own}.py":
            assert LEVEL[name] < LEVEL[own], f"{path.name} must not import {name}"


def test_kernels_import_nothing_of_the_package():
    for path in (ROOT / "kernels").glob("*.py"):
        assert set(imported(path)) <= {"kernels"}, path.name


def stem(path):
    name = path.stem
    for suffix in SUFFIXES:
        name = name.removesuffix(suffix)
    return name


def test_every_kernel_has_its_companions():
    native = {stem(p) for p in (ROOT / "csrc").glob("*.c*")} - {"bindings", "device", "device_none"}
    python = {stem(p) for p in (ROOT / "kernels").glob("*.py")} - NO_KERNEL
    assert native | python
    for name in native | python:
        for companion in (
            f"kernels/{name}_ref.py",
            f"tests/test_{name}.py",
            f"benchmarks/bench_{name}.py",
        ):
            assert (ROOT / companion).is_file(), f"{name} lacks {companion}"


def test_no_file_is_long():
    for folder in ("python", "kernels", "csrc", "tests", "benchmarks"):
        for path in (ROOT / folder).rglob("*.*"):
            if path.suffix in {".py", ".cpp", ".hpp", ".cu"}:
                lines = len(path.read_text().splitlines())
                assert lines <= 420, f"{path.relative_to(ROOT)} has {lines} lines"


def test_the_extension_is_the_only_place_with_pybind11():
    for path in (ROOT / "csrc").glob("*.*"):
        assert ("pybind11" in path.read_text()) == (path.name == "bindings.cpp"), path.name
