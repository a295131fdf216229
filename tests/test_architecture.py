"""The house: rooms in the order of the data, faces, short files, and a short way to the kernels."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import models
import pytest
import torch

import curvedit
from curvedit import _C, kernels

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "python/curvedit"
# A room (a folder, or a file beside them) imports only from rooms above it in this list.
ROOMS = [
    {"checks", "meter", "kernels", "_C"},
    {"files"},
    {"ops"},  # the door to the kernels
    {"data"},
    {"models"},  # the only room that calls a model
    {"factors"},
    {"passes", "selection"},
    {"editing"},
    {"fitting", "ranking", "projection", "forgetting"},  # stages: never each other
    {"report"},
    {"evaluation"},
    {"bench", "doctor", "mining"},
    {"__init__"},
    {"study", "demo"},
    {"cli"},
    {"__main__"},
]
LEVEL = {name: level for level, names in enumerate(ROOMS) for name in names}
FOLDERS = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()}
FILES = sorted(PACKAGE.rglob("*.py"))
# Of kernels/, what belongs to no op of its own.
SHARED = {"__init__", "tiles", "splits", "contract", "products"}
SUFFIXES = (
    "_ref",
    "_torch",
    "_triton",
    "_checks",
    "_plan",
    "_avx2",
    "_avx512_bf16",
    "_avx512",
    "_amx",
    "_portable",
)
HEADERS = ("_kernel", "_device", "_mma", "_wgmma", "_cuda")


def name_of(path):
    return str(path.relative_to(PACKAGE))


def room_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path):
    """Modules of the package that a file imports anywhere: (dotted name, whether in a function)."""
    tree = ast.parse(path.read_text())
    inside = {
        node
        for function in ast.walk(tree)
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            head, *rest = node.module.split(".")
            if head == "curvedit":
                names = [".".join(rest)] if rest else [alias.name for alias in node.names]
                yield from ((name, node in inside) for name in names)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("curvedit."):
                    yield alias.name.removeprefix("curvedit."), node in inside


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_go_up_the_list(path):
    own = room_of(path)
    for name, _ in imports_of(path):
        room = name.split(".")[0]
        if room != own:
            assert LEVEL[room] < LEVEL[own], f"{name_of(path)} must not import {name}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_other_rooms_are_entered_by_their_face(path):
    own = room_of(path)
    for name, _ in imports_of(path):
        room, *inner = name.split(".")
        if room != own and room in FOLDERS:
            assert not inner, f"{name_of(path)}: import from curvedit.{room}, not curvedit.{name}"
        if room == "kernels" and own not in ("ops", "doctor", "bench"):
            pytest.fail(f"{name_of(path)} reaches past ops into the kernels")


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_import_hides_in_a_function(path):
    hidden = [name for name, is_inside in imports_of(path) if is_inside]
    lazy = {"cli"}  # verbs load what they run when they run it
    assert not hidden or room_of(path) in lazy, f"{name_of(path)} imports {hidden} in a function"


def test_no_module_holds_a_function_of_its_own_name():
    for path in [*FILES, *(ROOT / "kernels").glob("*.py"), *(ROOT / "benchmarks").glob("*.py")]:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef):
                assert node.name != path.stem, f"{path.name} holds a function of its own name"


def test_faces_export_what_they_name():
    for folder in FOLDERS - {"demo"}:
        face = __import__(f"curvedit.{folder}", fromlist=["__all__"])
        for name in getattr(face, "__all__", ()):
            assert hasattr(face, name), f"curvedit.{folder}.{name}"


def test_only_one_room_calls_a_model():
    for path in FILES:
        if room_of(path) != "models" and "demo" not in name_of(path):
            for node in ast.walk(ast.parse(path.read_text())):
                called = isinstance(node, ast.Call) and ast.unparse(node.func)
                assert called not in ("model", "self.model", "model.forward"), name_of(path)


def test_kernels_import_nothing_of_the_package():
    for path in (ROOT / "kernels").glob("*.py"):
        assert {name.split(".")[0] for name, _ in imports_of(path)} <= {"kernels"}, path.name


def stem(path):
    name = path.stem
    for suffix in (*SUFFIXES, *HEADERS):
        name = name.removesuffix(suffix)
    return name


def test_every_kernel_has_its_companions():
    sources = [*(ROOT / "csrc").glob("*.c*"), *(ROOT / "kernels").glob("*.py")]
    others = SHARED | {"bindings", "device", "device_none", "cpu", "scale_tokens"}
    stems = {stem(path) for path in sources if path.stem not in others}
    assert len(stems) == 4
    for name in stems:
        for companion in (
            f"kernels/{name}_ref.py",
            f"kernels/{name}_checks.py",
            f"tests/test_{name}.py",
            f"benchmarks/bench_{name}.py",
        ):
            assert (ROOT / companion).is_file(), f"{name} lacks {companion}"


def test_no_file_is_long():
    for folder in ("python", "kernels", "csrc", "tests", "benchmarks"):
        for path in (ROOT / folder).rglob("*.*"):
            if path.suffix in {".py", ".cpp", ".hpp", ".cu"}:
                lines = len(path.read_text().splitlines())
                assert lines <= 400, f"{path.relative_to(ROOT)} has {lines} lines"


def test_the_extension_is_the_only_place_with_pybind11():
    for path in (ROOT / "csrc").glob("*.*"):
        assert ("pybind11" in path.read_text()) == (path.name == "bindings.cpp"), path.name


def frames_of_the_package():
    """Python frames from the caller up to the public function, of this package's own files."""
    folders = tuple(str(Path(module.__file__).parent) for module in (curvedit, kernels))
    depth = 0
    frame = inspect.currentframe()
    while frame is not None:
        depth += frame.f_code.co_filename.startswith(folders)
        frame = frame.f_back
    return depth


@pytest.fixture
def depths(monkeypatch):
    """The depths at which the compiled kernels and torch's products are reached."""
    found = {}

    def watch(owner, name):
        right = getattr(owner, name)

        def watched(*args, **kwargs):
            found.setdefault(name, set()).add(frames_of_the_package())
            return right(*args, **kwargs)

        monkeypatch.setattr(owner, name, watched)

    for name in ("syrk_accumulate", "second_moment_accumulate", "staircase_limits"):
        watch(_C, name)
    watch(torch, "mm")
    return found


@pytest.mark.filterwarnings("ignore:.*fewer positions:UserWarning")
def test_the_way_to_a_kernel_is_short(depths, monkeypatch):
    monkeypatch.setattr("curvedit.kernels.staircase_project_plan._OVERHEAD", 0.0)
    model = models.build("llama")
    factors = curvedit.fit(model, models.ragged_batches("llama"), targets="*.mlp.*", progress=False)
    selection = curvedit.rank(factors, keep_mass=0.3, progress=False)
    curvedit.project(model, selection)
    assert max(depths["syrk_accumulate"]) <= 7
    assert max(depths["staircase_limits"]) <= 5
    assert max(depths["mm"]) <= 5


def test_importing_is_light():
    heavy = ("transformers", "triton", "scipy", "datasets", "curvedit.evaluation")
    code = f"import sys, curvedit; print([name for name in {heavy} if name in sys.modules])"
    code += "; print(curvedit.evaluation.recites.__name__, curvedit.Report.__name__)"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout.split("\n")[:2] == ["[]", "recites Report"]
