"""What lists the projects in a form of its own, such as the Makefile, lists those of tests/kit/projects.py."""

from __future__ import annotations

import configparser
import re
import tomllib
from pathlib import Path

from kit.projects import FOLDERS, NAMES, PROJECTS, ROOT

PACKAGES = {project.package for project in PROJECTS}
OTHERS = {"tests", "tests/tools/engine"}
"""Projects that are no part of the product."""
TESTS = tomllib.loads((ROOT / "tests" / "pyproject.toml").read_text())


def variable(name: str) -> set[str]:
    """Return the words of a variable of the Makefile."""
    found = re.search(rf"^{name} := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert found is not None, name
    return set(found[1].split())


def test_every_project_is_listed() -> None:
    found = {path.parent for depth in ("*", "*/*", "tests/*/*") for path in ROOT.glob(f"{depth}/pyproject.toml")}
    assert {folder.relative_to(ROOT).as_posix() for folder in found} == {*FOLDERS} | OTHERS


def test_a_project_is_named_as_its_package() -> None:
    for folder, name in zip(FOLDERS, NAMES, strict=True):
        packages = [project.package for project in PROJECTS if project.folder == folder]
        written = tomllib.loads((ROOT / folder / "pyproject.toml").read_text())
        assert written["project"]["name"] == name == packages[0].replace("_", "-")
        assert written["tool"]["uv"]["build-backend"]["module-name"] in (packages, packages[0])
        assert all((ROOT / folder / "src" / package / "__init__.py").is_file() for package in packages)


def test_the_makefile_locks_every_project_and_mypy_finds_every_package() -> None:
    assert variable("PROJECTS") == {*FOLDERS} | OTHERS
    mypy = configparser.RawConfigParser()
    mypy.read(ROOT / ".mypy.ini")
    assert all(f"/{project.folder}/src:" in mypy["mypy"]["mypy_path"] for project in PROJECTS)
    assert all(any(Path(folder).is_relative_to(source) for source in variable("SOURCES")) for folder in FOLDERS)


def test_the_tests_install_and_cover_every_project() -> None:
    sources = TESTS["tool"]["uv"]["sources"]
    assert {name: source["path"] for name, source in sources.items()} == {
        name: f"../{folder}" for name, folder in zip(NAMES, FOLDERS, strict=True)
    }
    assert {re.split(r"[\[>]", name)[0] for name in TESTS["project"]["dependencies"]} >= {*NAMES}
    assert set(TESTS["tool"]["coverage"]["run"]["source_pkgs"]) == PACKAGES


def test_linters_know_every_package() -> None:
    contracts = configparser.ConfigParser()
    contracts.read(ROOT / ".importlinter")
    assert set(contracts["importlinter"]["root_packages"].split()) == PACKAGES
    ruff = tomllib.loads((ROOT / ".ruff.toml").read_text())
    assert set(ruff["lint"]["isort"]["known-first-party"]) == PACKAGES
