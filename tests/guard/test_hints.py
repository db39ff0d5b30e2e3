"""A hint, followed to the letter, mends: where a field cannot change, it says that it takes a new job."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from projects import PROJECTS

FIXED = re.compile(r"spec\.(model|dataset|output|training|lora|evaluation|method|preset|quantization|adapters)\b")


def hints(path: Path) -> Iterator[str]:
    """Yield the hints that a file gives to TuneryError, what is filled in left out."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "TuneryError" and len(node.args) > 2:
            parts = [part.value for part in ast.walk(node.args[2]) if isinstance(part, ast.Constant)]
            yield "".join(part for part in parts if isinstance(part, str))


ALL = [hint for project in PROJECTS for path in sorted(project.source.rglob("*.py")) for hint in hints(path)]


def test_hints_are_found() -> None:
    assert len(ALL) >= 4


@pytest.mark.parametrize("hint", [hint for hint in ALL if FIXED.search(hint)])
def test_a_hint_that_names_a_fixed_field_says_that_it_takes_a_new_job(hint: str) -> None:
    assert "new job" in hint
