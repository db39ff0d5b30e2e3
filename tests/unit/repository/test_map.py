"""docs/architecture.md is the map of the packages: every folder and top module stands there, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from kit.projects import PROJECTS, ROOT

PAGE = (ROOT / "docs" / "architecture.md").read_text()
PACKAGES = {project.heading: project.source for project in PROJECTS}
TOLD_BESIDE = 12
"""A line that begins further to the right goes on with what the line above it says."""


def maps(page: str, heading: str) -> str:
    """Return the last code block of a section: its map."""
    section = page.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    found: list[str] = re.findall(r"^```\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    return found[-1]


def named(drawn: str, package: str) -> Iterator[str]:
    """Yield the names of a map, each with those of the folders it is drawn in: `adapter/methods`.

    A line names one entry, or several with `|` between them, and says after two spaces what they are.
    """
    above: list[tuple[int, str]] = []
    for line in drawn.splitlines():
        indent = len(line) - len(line.lstrip())
        if not line.strip() or indent >= TOLD_BESIDE:
            continue
        above = [(depth, name) for depth, name in above if depth < indent]
        entries = [entry.strip().rstrip("/") for entry in re.split(r"\s{2,}", line.strip())[0].split("|")]
        folders = [name for _, name in above if name != package]
        yield from ("/".join([*folders, entry]) for entry in entries if entry != package)
        above.append((indent, entries[-1]))


def built(package: Path) -> set[str]:
    """Return every folder of a package and the modules at its top, as a map names them."""
    folders = {str(path.parent.relative_to(package)) for path in package.rglob("__init__.py")} - {"."}
    return folders | {path.stem for path in package.glob("*.py")} - {"__init__"}


@pytest.mark.parametrize("heading", PACKAGES)
def test_the_map_shows_what_is_built_and_nothing_else(heading: str) -> None:
    package = PACKAGES[heading]
    shown = {name.removesuffix(".py") for name in named(maps(PAGE, heading), package.name)} - {"tunery_api"}
    files = {name for name in shown if (package / f"{name}.py").exists()}
    assert shown - files - built(package) == set(), "stands in the map, and nowhere else"
    assert built(package) - shown == set(), "does not stand in the map"


def test_both_ways_to_draw_a_map_are_read() -> None:
    tree = "house/\n  cli.py         the door\n  adapter/       on its\n                 base\n    methods/     each\n"
    floors = "status | manifests     pure\n                       both\nplan\n\nadapter/methods  each one\n"
    assert list(named(tree, "house")) == ["cli.py", "adapter", "adapter/methods"]
    assert list(named(floors, "house")) == ["status", "manifests", "plan", "adapter/methods"]
