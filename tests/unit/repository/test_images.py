"""What an image is built from is named alike by its Dockerfile, by the tests' builder and by .dockerignore."""

from __future__ import annotations

import re

import pytest

from kit.projects import ROOT
from tools.cluster.images import IMAGES, Image


@pytest.mark.parametrize("image", IMAGES, ids=lambda image: image.name)
def test_a_dockerfile_copies_what_its_context_holds(image: Image) -> None:
    dockerfile = f"{image.folder}/Dockerfile"
    lines = re.findall(r"^COPY (?!--from)(.+) \S+$", (ROOT / dockerfile).read_text(), re.MULTILINE)
    assert {name for line in lines for name in line.split()} | {dockerfile} == set(image.copied())
    allowed = {line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().split() if line[0] == "!"}
    assert set(image.copied()) - {dockerfile} <= allowed, "for who builds it with Docker from the repository"


@pytest.mark.parametrize("image", IMAGES, ids=lambda image: image.name)
def test_no_folder_of_an_image_holds_another_project(image: Image) -> None:
    """A change of one project gives no other's image a new tag."""
    folders = [ROOT / name for name in image.copied() if (ROOT / name).is_dir()]
    assert [path for folder in folders for path in folder.rglob("pyproject.toml")] == []
