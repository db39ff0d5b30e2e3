"""The places of the repository that say its version, and the changelog."""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path
from typing import Final, NamedTuple

from kit.projects import FOLDERS

LOCKED: Final = (*FOLDERS, "tests")
"""The projects whose locks name a version of ours."""
CHART: Final = "charts/tunery/Chart.yaml"
CHANGELOG: Final = "docs/changelog.md"

_PROJECT_VERSION: Final = re.compile(r'^version = "(.*)"$', re.MULTILINE)
_CHART_VERSIONS: Final = re.compile(r"^(version|appVersion): (.*)$", re.MULTILINE)
_UNRELEASED: Final = re.compile(r"^## (?:\d+\.\d+\.\d+ )?Unreleased$", re.MULTILINE)
_HEADING: Final = "## Unreleased"


class ReleaseError(Exception):
    """Why there is no release, as one sentence."""


class Version(NamedTuple):
    """x.y.z, ordered as SemVer orders it."""

    major: int
    minor: int
    patch: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.patch}"


def is_version(text: str) -> bool:
    """Tell whether `text` is x.y.z: the tag of a candidate is none."""
    return bool(re.fullmatch(r"(0|[1-9]\d*)(\.(0|[1-9]\d*)){2}", text, re.ASCII))


def parse(text: str) -> Version:
    """Return the version that `text` is; raises ReleaseError."""
    if not is_version(text):
        raise ReleaseError(f"VERSION must be x.y.z, such as 0.2.0, is {text!r}")
    return Version(*map(int, text.split(".")))


def current(root: Path) -> Version:
    """Return the version that the API's project has."""
    return parse(_PROJECT_VERSION.findall((root / "crds" / "pyproject.toml").read_text())[0])


def set_version(root: Path, version: Version) -> None:
    """Write `version` into the projects and into the chart, as its own and as that of the images."""
    for folder in FOLDERS:
        _rewrite(root / folder / "pyproject.toml", _PROJECT_VERSION, f'version = "{version}"', 1)
    _rewrite(root / CHART, _CHART_VERSIONS, rf"\1: {version}", 2)


def date_changelog(root: Path, version: Version, today: date) -> None:
    """Give the section Unreleased its version and date, and open a new one; raises ReleaseError where it is empty."""
    text = (root / CHANGELOG).read_text()
    parts = _UNRELEASED.split(text)
    if len(parts) != 2:
        raise ReleaseError(f"{CHANGELOG} must have one section Unreleased, has {len(parts) - 1}")
    if not parts[1].split("\n## ", 1)[0].strip():
        raise ReleaseError(f"{CHANGELOG} says nothing under Unreleased: write down what changes for users")
    (root / CHANGELOG).write_text(f"{parts[0]}{_HEADING}\n\n## {version} - {today.isoformat()}{parts[1]}")


def _rewrite(path: Path, pattern: re.Pattern[str], text: str, places: int) -> None:
    written, count = pattern.subn(text, path.read_text())
    if count != places:
        raise ReleaseError(f"{path.name} must say its version in {places} places, does in {count}")
    path.write_text(written)
