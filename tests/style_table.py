"""Figures of the code's style, as one table: ``python tests/style_table.py [ROOT]``.

The rows are those by which other projects were measured: sizes, lengths of functions, how errors
are raised, docstrings and annotations of public functions, and import cycles. Docstring lines
count as part of their function.
"""

import ast
import statistics
import sys
from pathlib import Path

LONG = 60  # lines of a function that fit a screen


def python_files(root):
    return sorted([*(root / "python").rglob("*.py"), *(root / "kernels").glob("*.py")])


def lines_of(paths):
    return sum(len(path.read_text().splitlines()) for path in paths)


def functions_of(trees):
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [node for tree in trees.values() for node in ast.walk(tree) if isinstance(node, kinds)]


def public_functions(tree):
    """Functions and methods that a user may call: no underscore on the way to them."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield node
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef) and not inner.name.startswith("_"):
                    yield inner


def is_annotated(function):
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    named += [each for each in (arguments.vararg, arguments.kwarg) if each]
    named = [each for each in named if each.arg not in ("self", "cls") and each.arg.strip("_")]
    return function.returns is not None and all(each.annotation is not None for each in named)


def is_kernel(function):
    """Triton's device functions take no annotations."""
    return any("triton.jit" in ast.unparse(each) for each in function.decorator_list)


def module_of(path, root):
    if path.is_relative_to(root / "kernels"):
        parts = ("curvedit", "kernels", path.stem)
    else:
        parts = path.relative_to(root / "python").with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


def edges(trees, root, *, inside_functions):
    """Module to the modules of the package that it imports."""
    names = {module_of(path, root) for path in trees}
    graph = {name: set() for name in names}
    for path, tree in trees.items():
        own = module_of(path, root)
        nodes = ast.walk(tree) if inside_functions else top_level(tree)
        for node in nodes:
            found = []
            if isinstance(node, ast.ImportFrom) and node.module:
                found = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Import):
                found = [alias.name for alias in node.names]
            graph[own] |= {name for name in found if name in names and name != own}
    return graph


def top_level(tree):
    """Statements that run when a module is imported."""
    todo = list(tree.body)
    while todo:
        node = todo.pop()
        yield node
        if isinstance(node, (ast.If, ast.Try, ast.With)):
            todo += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]


def cycles(graph):
    """Sizes of the strongly connected components with more than one module; faces left out.

    A folder's ``__init__`` imports its modules and is imported by them as a package: no cycle.
    """
    faces = {name for name in graph if any(other.startswith(f"{name}.") for other in graph)}
    graph = {name: targets - faces for name, targets in graph.items() if name not in faces}

    def reachable(start):
        seen, todo = set(), [start]
        while todo:
            for name in graph[todo.pop()] - seen:
                seen.add(name)
                todo.append(name)
        return seen

    reach = {name: reachable(name) for name in graph}
    loops = {
        frozenset(other for other in reach[name] if name in reach[other])
        for name in graph
        if name in reach[name]
    }
    return sorted(map(len, loops), reverse=True)


def share(part, whole):
    return f"{100 * part / whole:.1f} %" if whole else "none"


def table(root):
    """Row name to figure."""
    files = python_files(root)
    trees = {path: ast.parse(path.read_text()) for path in files}
    native = [path for path in (root / "csrc").glob("*") if path.suffix in (".cpp", ".hpp", ".cu")]
    tests = [*(root / "tests").rglob("*.py"), *(root / "tests").rglob("*.[ch]pp")]
    source = lines_of(files) + lines_of(native)
    functions = functions_of(trees)
    lengths = [node.end_lineno - node.lineno + 1 for node in functions]
    nodes = [node for tree in trees.values() for node in ast.walk(tree)]
    raises = sum(isinstance(node, ast.Raise) and node.exc is not None for node in nodes)
    asserts = sum(isinstance(node, ast.Assert) for node in nodes)
    public = [node for tree in trees.values() for node in public_functions(tree)]
    typed = [node for node in public if not is_kernel(node)]
    largest = max(files, key=lambda path: len(path.read_text().splitlines()))
    return {
        "Python lines in package": lines_of(files),
        "C++/CUDA lines": lines_of(native),
        "test lines": lines_of(tests),
        "tests / source": round(lines_of(tests) / source, 2),
        "largest Python file": lines_of([largest]),
        "its name": str(largest.relative_to(root)),
        "median function": statistics.median(lengths),
        "longest function": max(lengths),
        f"functions over {LONG} lines": sum(length > LONG for length in lengths),
        "functions": len(lengths),
        "raise": raises,
        "assert": asserts,
        "public functions with docstring": share(
            sum(ast.get_docstring(node) is not None for node in public), len(public)
        ),
        "public functions fully annotated": share(sum(map(is_annotated, typed)), len(typed)),
        "import cycles": cycles(edges(trees, root, inside_functions=False)) or "none",
        "import cycles with imports in functions": (
            cycles(edges(trees, root, inside_functions=True)) or "none"
        ),
    }


if __name__ == "__main__":
    roots = [Path(word) for word in sys.argv[1:]] or [Path(__file__).parents[1]]
    columns = [table(root) for root in roots]
    for name in columns[0]:
        cells = "  ".join(f"{column[name]!s:>24}" for column in columns)
        sys.stdout.write(f"{name:42}{cells}\n")
