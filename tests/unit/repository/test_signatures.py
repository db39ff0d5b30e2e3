"""The sizes of the house style: few parameters, none of them bundled; short functions, short files."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping

import pytest

from kit.projects import PROJECTS, ROOT

PACKAGES = tuple(project.source for project in PROJECTS)
LINES_OF_A_FUNCTION = 40
LINES_OF_A_FILE = 400
Function = ast.FunctionDef | ast.AsyncFunctionDef

# What stands in the way of the rules today: what is mended is taken out here, and nothing is put in.
BUNDLES: dict[str, list[str]] = {}
LONG_FUNCTIONS: dict[str, int] = {"tunery_trainer.training.trl_config.sft_config": 50}
LONG_FILES: dict[str, int] = {}


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


def tuple_aliases(tree: ast.Module) -> dict[str, ast.expr]:
    """Return the names that a module gives to types at its top."""
    named: dict[str, ast.expr] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            named[node.targets[0].id] = node.value
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
            named[node.target.id] = node.value
    return {
        name: value for name, value in named.items() if not isinstance(value, ast.Constant) and is_bundle(value, {})
    }


def is_bundle(annotation: ast.expr | None, aliases: Mapping[str, ast.expr]) -> bool:
    """Say whether an annotation is a tuple of different classes, or may be one."""
    if isinstance(annotation, ast.BinOp) and isinstance(annotation.op, ast.BitOr):
        return is_bundle(annotation.left, aliases) or is_bundle(annotation.right, aliases)
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        return is_bundle(ast.parse(annotation.value, mode="eval").body, aliases)
    if isinstance(annotation, ast.Name | ast.Attribute):
        return (annotation.id if isinstance(annotation, ast.Name) else annotation.attr) in aliases
    if not isinstance(annotation, ast.Subscript):
        return False
    head = ast.unparse(annotation.value).rsplit(".", 1)[-1]
    parts = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
    if head in {"tuple", "Tuple"}:
        return len({ast.unparse(part) for part in parts if ast.unparse(part) != "..."}) > 1
    return head in {"Optional", "Union", "Annotated"} and any(is_bundle(part, aliases) for part in parts)


def parameters(function: Function) -> list[ast.arg]:
    """Return every parameter, by position and by name."""
    given = function.args
    rest = [star for star in (given.vararg, given.kwarg) if star]
    return [*given.posonlyargs, *given.args, *given.kwonlyargs, *rest]


def bundles(trees: Mapping[str, ast.Module]) -> dict[str, list[str]]:
    """Return the parameters that are tuples of different classes, by function."""
    aliases = {name: value for tree in trees.values() for name, value in tuple_aliases(tree).items()}
    found = {}
    for module, tree in trees.items():
        for name, function in functions(tree, module):
            if bad := [given.arg for given in parameters(function) if is_bundle(given.annotation, aliases)]:
                found[name] = bad
    return found


def length(function: Function) -> int:
    """Return the lines of a function's body, without its docstring."""
    documented = ast.get_docstring(function, clean=False) is not None
    body = function.body[1:] if documented else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def test_no_parameter_is_a_bundle_of_several() -> None:
    """Five parameters are the limit, and it is not got round: what belongs together is a dataclass with a name."""
    assert bundles(sources()) == BUNDLES


def test_no_function_is_too_long() -> None:
    named = {name: length(node) for module, tree in sources().items() for name, node in functions(tree, module)}
    assert {name: lines for name, lines in named.items() if lines > LINES_OF_A_FUNCTION} == LONG_FUNCTIONS


def test_no_file_is_too_long() -> None:
    paths = [path for package in PACKAGES for path in package.rglob("*.py")]
    lines = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in paths}
    assert {name: count for name, count in lines.items() if count > LINES_OF_A_FILE} == LONG_FILES


@pytest.mark.parametrize(
    ("annotation", "found"),
    [
        ("tuple[Store, str]", True),
        ("tuple[Store, str] | None", True),
        ("'tuple[Store, str]'", True),
        ("Optional[tuple[Store, str]]", True),
        ("typing.Tuple[Store, str]", True),
        ("Place", True),
        ("other.Place", True),
        ("tuple[Store, ...]", False),
        ("tuple[int, int]", False),
        ("Store | None", False),
        ("dict[str, tuple[Store, str]]", False),
    ],
)
def test_bundles_are_found(annotation: str, found: bool) -> None:
    tree = ast.parse(f"Place = tuple[Store, str]\nclass Run:\n    def go(self, there: {annotation}): ...\n")
    assert bundles({"run": tree}) == ({"run.Run.go": ["there"]} if found else {})


def test_lines_are_counted_without_the_docstring() -> None:
    (node,) = ast.parse('def go() -> int:\n    """One\n\n    two.\n    """\n    a = 1\n\n    return a\n').body
    assert isinstance(node, ast.FunctionDef)
    assert length(node) == 3
