"""The packages of the product, each with the folder of its project."""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).resolve().parents[2]


class Project(NamedTuple):
    """A folder with a pyproject.toml and a lock of its own."""

    folder: str
    package: str

    @property
    def source(self) -> Path:
        """The folder of its package."""
        return ROOT / self.folder / "src" / self.package


PROJECTS: Final = (
    Project("crds", "tunery_api"),
    Project("crds", "tunery_search"),
    Project("crds/client", "tunery"),
    Project("operator", "tunery_operator"),
    Project("trainer-image/common", "tunery_common"),
    Project("trainer-image", "tunery_trainer"),
    Project("trainer-image/server", "tunery_server"),
)

FOLDERS: Final = tuple(dict.fromkeys(project.folder for project in PROJECTS))
"""The folder of crds has two packages."""
NAMES: Final = tuple(
    package.replace("_", "-") for package in (project.package for project in PROJECTS) if package != "tunery_search"
)
"""The names of the distributions, in the order of FOLDERS."""
