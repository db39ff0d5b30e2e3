"""The recipes of docs/contributing.md name every place that a change of their kind takes, and none that is gone."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from kit.projects import PROJECTS, ROOT

PAGE = ROOT / "docs" / "contributing.md"
CODE = tuple(project.source for project in PROJECTS)
LINK = re.compile(r"\[([^\]]+)\](?:\(([^)#\s]+)(?:#[^)\s]*)?\))?")
"""`[text](target)`, or `[text]` whose target stands at the end of the section."""
TARGET = re.compile(r"^\[([^\]]+)\]: (\S+)$", re.MULTILINE)
WHATEVER = frozenset({"README.md", ".importlinter", "operations.md", "tenantpolicy.yaml", "test_render.py"})
"""Pages and settings that tell of every reason or kind without this one's words."""


class Example(NamedTuple):
    """What stands in the code today for what a recipe adds."""

    words: str
    """A regular expression, for code without comments and docstrings."""
    beside: frozenset[str] = frozenset()
    """Files of the code that the recipe names for something else."""


EXAMPLES = {
    "A field": Example(r"neftune_?noise_?alpha", frozenset({"crds/src/tunery_api/rules.py"})),
    "A training method": Example(r"ia3|\bq?dora\b|use_dora"),
    "A merge method": Example(r"magnitude_?prune"),
    "A failure reason": Example(r"gpu_?unavailable"),
    "A kind": Example(
        r"kind\.adaptermerge|['\"]adaptermerge['\"]|adaptermerges|parse_adaptermerge|adapter_?merge_?spec|\badapter_merge\b"
        r"|adaptermerge_steps|adaptermergestatus",
        frozenset(
            {
                "trainer-image/src/tunery_trainer/tasks/__init__.py",
                "crds/src/tunery_api/serverstatus.py",
                "crds/src/tunery_api/server_rules.py",
                "operator/src/tunery_operator/plan/adapterserver.py",
                "operator/src/tunery_operator/manifests/server.py",
                "operator/src/tunery_operator/status/server/compute.py",
                "operator/src/tunery_operator/plan/batchinference.py",
                "operator/src/tunery_operator/status/results.py",
            }
        ),
    ),
}


def recipe(title: str) -> list[Path]:
    """Return the files that the steps of a recipe link to, in their order."""
    text = PAGE.read_text()
    targets = dict(TARGET.findall(text))
    section = TARGET.sub("", text).split(f"\n### {title}\n", 1)[1]
    steps = re.split(r"^#", section, maxsplit=1, flags=re.MULTILINE)[0]
    return [(PAGE.parent / (target or targets[name])).resolve() for name, target in LINK.findall(steps)]


@cache
def said_by(path: Path) -> str:
    """Return the code of a file without comments and docstrings."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [line for line in body if not _is_text(line)] or [ast.Pass()]  # type: ignore[attr-defined]
    return ast.unparse(tree)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def names(paths: set[Path]) -> set[str]:
    return {path.relative_to(ROOT).as_posix() for path in paths}


def holders(words: str) -> set[Path]:
    """Return the files of the code in which the example stands."""
    found = re.compile(words, re.IGNORECASE)
    files = [path for folder in CODE for path in folder.rglob("*.py")]
    return {path for path in files if found.search(said_by(path)) or found.search(path.stem)}


def test_every_recipe_is_held() -> None:
    section = PAGE.read_text().split("\n## Recipes\n", 1)[1].split("\n## ", 1)[0]
    assert set(re.findall(r"^### (.+)$", section, re.MULTILINE)) == set(EXAMPLES)


@pytest.mark.parametrize("title", EXAMPLES)
def test_every_file_of_a_recipe_exists(title: str) -> None:
    files = recipe(title)
    assert len(files) >= 5
    assert [str(path) for path in files if not path.is_file()] == []


@pytest.mark.parametrize("title", EXAMPLES)
def test_a_recipe_names_exactly_the_code_in_which_its_example_stands(title: str) -> None:
    """Is there a new place to edit? Then the recipe is to say so. Is one gone? Then the step goes."""
    words, beside = EXAMPLES[title]
    listed = {path for path in recipe(title) if any(path.is_relative_to(folder) for folder in CODE)}
    assert names(listed) - beside == names(holders(words))
    assert beside <= names(listed)


@pytest.mark.parametrize("title", EXAMPLES)
def test_the_tests_and_pages_of_a_recipe_know_its_example(title: str) -> None:
    found = re.compile(EXAMPLES[title].words, re.IGNORECASE)
    others = [path for path in recipe(title) if not any(path.is_relative_to(folder) for folder in CODE)]
    silent = [path for path in others if path.name not in WHATEVER and not found.search(path.read_text())]
    assert names(set(silent)) == set()


def test_a_new_place_would_be_found(tmp_path: Path) -> None:
    """Code counts, and a mention in a comment or a docstring does not."""
    (tmp_path / "talk.py").write_text('"""Like IA3."""\n\nX = 1  # IA3 has none\n')
    (tmp_path / "code.py").write_text('X = {"IA3": 1}\n')
    assert ["IA3" in said_by(tmp_path / name) for name in ("talk.py", "code.py")] == [False, True]
