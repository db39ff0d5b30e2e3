"""The rules of the repository itself: what stands where, and what is never written into a file."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from kit.projects import PROJECTS, ROOT

TOP_LEVEL = {"crds", "operator", "trainer-image", "charts", "tests", "docs", "Makefile", "README.md", "LICENSE"}
# Locks name where packages come from; this file names what it looks for.
LOCKS = {"uv.lock", "go.sum"}
REGISTRIES = re.compile(
    r"\b(pypi\.org|pythonhosted\.org|npmjs\.(org|com)|(proxy|sum)\.golang\.org|docker\.io|ghcr\.io|quay\.io|gcr\.io|"
    r"registry\.k8s\.io|nvcr\.io|(deb|ftp)\.debian\.org|crates\.io|repo1?\.maven\.org)\b"
)
MACHINE_PATHS = re.compile(r"(?<![\w.-])(/work/(main|shared)\b|/home/\w|/tmp/(tunery|brief)|/root/(?!\.cache/uv\b))")


def tracked() -> list[Path]:
    """Return every file that is in git, or would be after `git add`, and exists."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def texts() -> list[tuple[Path, str]]:
    """Return every file that a person wrote, but this one."""
    chosen = [path for path in tracked() if path.name not in LOCKS and path != Path(__file__).resolve()]
    return [(path.relative_to(ROOT), path.read_text(errors="replace")) for path in chosen]


def test_nothing_shadows_the_standard_librarys_operator() -> None:
    assert not (ROOT / "operator" / "__init__.py").exists()
    assert not (ROOT / "tests" / "operator").exists()
    tests = [path for path in (ROOT / "operator").rglob("test*.py") if ".venv" not in path.parts]
    assert tests == []


def test_the_top_level_is_fixed() -> None:
    found = {path.relative_to(ROOT).parts[0] for path in tracked()}
    assert {name for name in found if not name.startswith(".")} == TOP_LEVEL


def folders(path: Path) -> set[str]:
    return {child.name for child in path.iterdir() if child.is_dir() and any(child.glob("*.py"))}


@pytest.mark.parametrize("kind", ["unit", "integration"])
@pytest.mark.parametrize("package", ["tunery_common", "tunery_server", "tunery_trainer"])
def test_folders_of_tests_are_named_as_those_of_the_package(kind: str, package: str) -> None:
    (source,) = (project.source for project in PROJECTS if project.package == package)
    assert folders(ROOT / "tests" / kind / package.removeprefix("tunery_")) <= folders(source) | {"engine"}


def test_no_file_names_a_registry_host() -> None:
    found = {str(path): match.group() for path, text in texts() if (match := REGISTRIES.search(text))}
    assert found == {}


def test_no_file_names_a_path_of_one_machine() -> None:
    found = {str(path): match.group() for path, text in texts() if (match := MACHINE_PATHS.search(text))}
    assert found == {}


def test_the_chart_and_the_projects_have_one_version() -> None:
    chart = yaml.safe_load((ROOT / "charts" / "tunery" / "Chart.yaml").read_text())
    versions = {
        project.folder: tomllib.loads((ROOT / project.folder / "pyproject.toml").read_text())["project"]["version"]
        for project in PROJECTS
    }
    assert set(versions.values()) == {chart["version"]} == {chart["appVersion"]}


def test_ci_calls_the_readmes_test_command() -> None:
    assert re.search(r"^make test\b", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert re.search(r"\bmake test$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
