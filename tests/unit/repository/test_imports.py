"""What import-linter cannot see: imports by name, and which libraries the API takes along."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kit.projects import PROJECTS, ROOT

API = ROOT / "crds" / "src" / "tunery_api"
PACKAGES = tuple(project.source for project in PROJECTS)
BY_NAME = {"import_module", "__import__", "spec_from_file_location"}
LAZY = {"tunery_api/__init__.py", "tunery/cli.py"}
"""Load each name of the API, and each command, when it is used."""
API_LIBRARIES = {"pydantic", "pydantic_core", "yaml"}


def imports_by_name(tree: ast.AST) -> Iterator[str]:
    """Yield the functions by which a module imports another whose name is a string."""
    for node in ast.walk(tree):
        name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
        if name in BY_NAME:
            yield name


def libraries(tree: ast.AST) -> Iterator[str]:
    """Yield what a module imports from outside of the standard library."""
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else names
        yield from ({name.split(".")[0] for name in names} - sys.stdlib_module_names)


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_nothing_is_imported_by_name(package: Path) -> None:
    found = {
        path.relative_to(package.parent).as_posix(): sorted(set(imports_by_name(ast.parse(path.read_text()))))
        for path in package.rglob("*.py")
    }
    assert {name: by for name, by in found.items() if by and name not in LAZY} == {}


def test_the_api_takes_few_libraries_along() -> None:
    found = {library for path in API.rglob("*.py") for library in libraries(ast.parse(path.read_text()))}
    assert found - {"tunery_api"} == API_LIBRARIES


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_every_folder_is_a_package(package: Path) -> None:
    """Linters of imports pass over one that is none."""
    folders = {path.parent for path in package.rglob("*.py")}
    assert [folder.name for folder in sorted(folders) if not (folder / "__init__.py").is_file()] == []
