"""Fields of a status are written by their names in JSON: each of them is one that the API has."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import tunery_operator
from tunery_api.kinds import KINDS

SOURCES = Path(tunery_operator.__path__[0])
KNOWN = {str(info.alias) for kind in KINDS.values() for info in kind.status.model_fields.values()}
STATUSES = {"draft.fields", "self.fields", "status", "obj.status", "old", "new", "snapshot.status"}
"""What holds a whole status, wherever it is read in `status/` and `controllers/`."""


def names_in(tree: ast.AST) -> Iterator[str]:
    """Yield each name of a field that is set or read by a literal."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            holder, first = ast.unparse(node.func.value), node.args[0] if node.args else None
            if holder == "draft" and node.func.attr == "put":
                yield from (keyword.arg for keyword in node.keywords if keyword.arg)
            reads = holder in STATUSES and node.func.attr in ("get", "setdefault", "pop")
            changes = holder == "draft" and node.func.attr in ("merge", "add")
            if (reads or changes) and isinstance(first, ast.Constant):
                yield str(first.value)
        elif isinstance(node, ast.Subscript) and ast.unparse(node.value) in STATUSES:
            yield from (part.value for part in [node.slice] if isinstance(part, ast.Constant))


@pytest.mark.parametrize(("room", "least"), [("status", 15), ("controllers", 5)])
def test_every_field_that_is_named_is_one_of_the_api(room: str, least: int) -> None:
    # What conditions.py calls a status is that of a condition.
    paths = [path for path in (SOURCES / room).glob("*.py") if path.name != "conditions.py"]
    found = {name: path.name for path in paths for name in names_in(ast.parse(path.read_text()))}
    assert len(found) > least
    assert {name: file for name, file in found.items() if name not in KNOWN} == {}


def test_a_name_that_is_misspelt_is_found() -> None:
    wrong = 'draft.put(podname=1)\ndraft.add("runSecond", 1)\ndraft.fields.get("atempts")\nstatus["phases"]'
    assert set(names_in(ast.parse(wrong))).isdisjoint(KNOWN)
    assert len(list(names_in(ast.parse(wrong)))) == 4
