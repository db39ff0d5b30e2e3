"""The recipes of docs/recipes.md link to files that exist."""

from __future__ import annotations

import re

import pytest

from kit.projects import ROOT

PAGE = ROOT / "docs" / "recipes.md"
TARGETS = re.findall(r"^\[([^\]]+)\]: (\S+)$", PAGE.read_text(), re.MULTILINE)


@pytest.mark.parametrize(("name", "target"), TARGETS)
def test_the_file_of_a_step_exists(name: str, target: str) -> None:
    assert (PAGE.parent / target).is_file()
    assert PAGE.read_text().count(f"[{name}]") > 1, "a step names it"
