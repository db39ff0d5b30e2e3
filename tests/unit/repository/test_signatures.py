"""The sizes that ruff does not check: lines of a function and of a file."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache

from kit.projects import PROJECTS, ROOT

PACKAGES = tuple(project.source for project in PROJECTS)
LINES_OF_A_FUNCTION = 40
LINES_OF_A_FILE = 400
Function = ast.FunctionDef | ast.AsyncFunctionDef

# Exceptions of today: remove them when they are gone, and add none.
LONG_FUNCTIONS: dict[str, int] = {"tunery_trainer.training.trl_config.sft_config": 50}
LONG_FILES: dict[str, int] = {}


@cache
def sources() -> dict[str, ast.Module]:
    """Return every module of the packages, by its dotted name."""
    found = {}
    for package in PACKAGES:
        for path in sorted(package.rglob("*.py")):
            name = ".".join(path.relative_to(package.parent).with_suffix("").parts).removesuffix(".__init__")
            found[name] = ast.parse(path.read_text())
    return found


def functions(node: ast.AST, name: str) -> Iterator[tuple[str, Function]]:
    """Yield every function below a node, methods and inner ones too, with its dotted name."""
    for child in ast.iter_child_nodes(node):
        inner = f"{name}.{child.name}" if isinstance(child, Function | ast.ClassDef) else name
        if isinstance(child, Function):
            yield inner, child
        yield from functions(child, inner)


def length(function: Function) -> int:
    """Return the lines of a function's body, without its docstring."""
    documented = ast.get_docstring(function, clean=False) is not None
    body = function.body[1:] if documented else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def test_no_function_is_too_long() -> None:
    named = {name: length(node) for module, tree in sources().items() for name, node in functions(tree, module)}
    assert {name: lines for name, lines in named.items() if lines > LINES_OF_A_FUNCTION} == LONG_FUNCTIONS


def test_no_file_is_too_long() -> None:
    paths = [path for package in PACKAGES for path in package.rglob("*.py")]
    lines = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in paths}
    assert {name: count for name, count in lines.items() if count > LINES_OF_A_FILE} == LONG_FILES


def test_lines_are_counted_without_the_docstring() -> None:
    (node,) = ast.parse('def go() -> int:\n    """One\n\n    two.\n    """\n    a = 1\n\n    return a\n').body
    assert isinstance(node, ast.FunctionDef)
    assert length(node) == 3
