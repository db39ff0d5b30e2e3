"""Every import of a package, and where it stands: at the top of its file, within a function, or for types only."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

_LIGHT = frozenset(sys.stdlib_module_names)
"""The standard library is imported where one likes: it has no door."""


class Stand(StrEnum):
    """Where an import stands."""

    TOP = "top"
    LATE = "late"
    TYPES = "types"


@dataclass(frozen=True)
class Import:
    """One import statement's module: from the module `source` of a package, the module or library `target`."""

    source: str
    target: str
    line: int
    stand: Stand


@dataclass(frozen=True)
class Package:
    """A package as its files say it; module names without the package's own."""

    name: str
    modules: frozenset[str]
    imports: tuple[Import, ...]
    type_checking: int
    """How many `if TYPE_CHECKING` there are."""


def read_package(folder: Path) -> Package:
    """Read every file below the package's folder."""
    trees = {_module(path, folder): ast.parse(path.read_text()) for path in sorted(folder.rglob("*.py"))}
    modules = frozenset(trees)
    imports = [
        Import(source, target, node.lineno, stand)
        for source, tree in trees.items()
        for node, stand in _statements(tree, Stand.TOP)
        for target in _targets(node, folder.name, modules)
    ]
    blocks = sum(_is_for_types(node) for tree in trees.values() for node in ast.walk(tree))
    return Package(folder.name, modules, tuple(imports), blocks)


def _module(path: Path, folder: Path) -> str:
    return ".".join(path.relative_to(folder).with_suffix("").parts).removesuffix(".__init__")


def _is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def _statements(node: ast.AST, stand: Stand) -> Iterator[tuple[ast.Import | ast.ImportFrom, Stand]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, stand
        elif _is_for_types(child):
            yield from _statements(child, Stand.TYPES)
        else:
            inner = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from _statements(child, Stand.LATE if inner else stand)


def _targets(node: ast.Import | ast.ImportFrom, package: str, modules: frozenset[str]) -> set[str]:
    """Return the package's modules that a statement imports (`.name`), and the libraries (`name`)."""
    if isinstance(node, ast.Import):
        named = {alias.name for alias in node.names}
    else:
        named = {f"{node.module}.{alias.name}" for alias in node.names}
    return {_target(name, package, modules) for name in named} - _LIGHT - {"__future__"}


def _target(name: str, package: str, modules: frozenset[str]) -> str:
    head, _, rest = name.partition(".")
    if head != package:
        return head
    return f".{rest if rest in modules else rest.rpartition('.')[0]}"
