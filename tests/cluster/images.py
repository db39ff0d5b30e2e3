"""The product's images, tagged by their content."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

from cluster import baseimage, buildah
from cluster.paths import REPOSITORY
from cluster.registry import Registry
from cluster.shell import run


@dataclass(frozen=True)
class Image:
    """One image of the product and the folder of its Dockerfile."""

    name: str
    folder: str

    @property
    def dockerfile(self) -> Path:
        return REPOSITORY / self.folder / "Dockerfile"

    @property
    def repository(self) -> str:
        return f"tunery-{self.name}"

    def tag(self) -> str:
        """Return a digest of everything that is copied into the image."""
        digest = hashlib.sha256()
        for file in self._sources():
            digest.update(str(file.relative_to(REPOSITORY)).encode() + b"\0" + file.read_bytes())
        return digest.hexdigest()[:12]

    def _sources(self) -> list[Path]:
        project = REPOSITORY / self.folder
        files = [self.dockerfile, project / "pyproject.toml", project / "uv.lock", REPOSITORY / "crds/pyproject.toml"]
        for folder in (project / "src", REPOSITORY / "crds" / "src"):
            files += [file for file in folder.rglob("*") if file.is_file() and "__pycache__" not in file.parts]
        return sorted(files)


IMAGES = (Image("operator", "operator"), Image("trainer", "trainer-image"))


def references(registry: Registry) -> dict[str, str]:
    """Return the reference of each image as the present code has it in the cluster's registry."""
    return {image.name: f"{registry.host}/{image.repository}:{image.tag()}" for image in IMAGES}


def build(image: Image) -> str:
    """Build one image unless the local storage has it, and return its local name."""
    local = f"localhost/{image.repository}:{image.tag()}"
    if not buildah.has(local):
        buildah.build(local, image.dockerfile, REPOSITORY, {"BASE_IMAGE": baseimage.ensure()})
    return local


def build_and_push(registry: Registry) -> dict[str, str]:
    """Bring what the cluster's registry lacks into it, and return the reference of each image."""
    for image in IMAGES:
        push_one(image, registry)
    return references(registry)


def push_one(image: Image, registry: Registry) -> None:
    """Bring one image into the cluster's registry, unless it is there."""
    tag = image.tag()
    if not registry.has(image.repository, tag):
        buildah.push(build(image), f"{registry.host}/{image.repository}:{tag}", insecure=True)


def push_elsewhere(prefix: str) -> dict[str, str]:
    """Build the images on a registry's base image, push them under `prefix`, and return their references."""
    pushed = {}
    for image in IMAGES:
        reference = f"{prefix.rstrip('/')}/{image.repository}:{image.tag()}"
        if shutil.which("docker"):
            run(["docker", "build", "--file", image.dockerfile, "--tag", reference, REPOSITORY], timeout=3600)
            run(["docker", "push", "--quiet", reference], timeout=3600)
        else:
            buildah.build(reference, image.dockerfile, REPOSITORY, {})
            buildah.push(reference, reference)
        pushed[image.name] = reference
    return pushed
