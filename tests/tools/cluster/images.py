"""The product's images, tagged by their content."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.cluster import baseimage, buildah
from tools.cluster.paths import REPOSITORY
from tools.cluster.registry import Registry
from tools.cluster.shell import run, succeeds


@dataclass(frozen=True)
class Image:
    """One image of the product, the folder of its Dockerfile, what it shares."""

    name: str
    folder: str
    shared: tuple[str, ...] = ("crds",)
    """The projects that it installs beside its own."""
    on: tuple[Image, ...] = ()
    """The images that it is built from, in place of a base of Debian and Python: the first is what it stands on."""
    files: tuple[str, ...] = ()
    """What its Dockerfile reads, where its folder is no project."""

    @property
    def repository(self) -> str:
        return f"tunery-{self.name}"

    def copied(self) -> list[str]:
        """Return the files and folders, from the root of the repository, that the Dockerfile reads."""
        if self.files:
            return [f"{self.folder}/Dockerfile", *self.files]
        own = [f"{self.folder}/{name}" for name in ("Dockerfile", "pyproject.toml", "uv.lock", "src")]
        others = (f"{project}/{name}" for project in self.shared for name in ("pyproject.toml", "src"))
        return [*own, *others]


COMMON = "trainer-image/common"
TRAINER = Image("trainer", "trainer-image", ("crds", COMMON))
SERVER = Image("server", "trainer-image/server", ("crds", COMMON))
IMAGES = (TRAINER, Image("operator", "operator"), SERVER)
"""The trainer first: the node unpacks it while the others are built."""
STAND_IN_FILES = ("__init__.py", "engine.py", "engine_model.py", "engine_protocol.py")
# None of the product's: each is made only where somebody asks for it. vLLM's has 5 GB.
ENGINES = {
    "vllm": Image("engine", "tests/tools/engine", shared=()),
    "stand-in": Image(
        "stand-in",
        "tests/tools/standin",
        on=(TRAINER, SERVER),
        files=tuple(f"tests/kit/{name}" for name in STAND_IN_FILES),
    ),
}


@dataclass(frozen=True)
class Snapshot:
    """A copy of what goes into an image: somebody may edit the sources while it is built."""

    image: Image
    context: Path

    @property
    def dockerfile(self) -> Path:
        return self.context / self.image.folder / "Dockerfile"

    def tag(self) -> str:
        """Return a digest of every file, behind a letter: YAML and Helm take a tag that is all digits for a number."""
        digest = hashlib.sha256()
        for image in self.image.on:
            with snapshot(image) as below:
                digest.update(below.tag().encode())
        for file in sorted(file for file in self.context.rglob("*") if file.is_file()):
            digest.update(str(file.relative_to(self.context)).encode() + b"\0" + file.read_bytes())
        return f"c{digest.hexdigest()[:12]}"


@contextmanager
def snapshot(image: Image) -> Iterator[Snapshot]:
    """Copy the sources of an image for the time of a build."""
    with tempfile.TemporaryDirectory() as folder:
        for name in image.copied():
            source, target = REPOSITORY / name, Path(folder, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
            else:
                shutil.copy2(source, target)
        yield Snapshot(image, Path(folder))


def build(taken: Snapshot) -> str:
    """Build an image unless the local storage has it, and return its local name; it takes the place of older ones."""
    local = f"localhost/{taken.image.repository}"
    name = f"{local}:{taken.tag()}"
    if not buildah.has(name):
        buildah.build(name, taken.dockerfile, taken.context, _bases_of(taken.image))
        # Each has a layer of its own; the lower ones are shared, and stay.
        buildah.remove(set(buildah.names(local)) - {name})
    return name


def _bases_of(image: Image) -> dict[str, str]:
    """Return the build arguments that name what an image is built from, made if need be."""
    if not image.on:
        return {"BASE_IMAGE": baseimage.ensure()}
    names = []
    for below in image.on:
        with snapshot(below) as taken:
            names.append(build(taken))
    return {"BASE_IMAGE": names[0]} | {
        f"{below.name.upper()}_IMAGE": name for below, name in zip(image.on, names, strict=True)
    }


def push_one(image: Image, registry: Registry, *, keep: bool = True) -> str:
    """Bring one image into the cluster's registry, unless it is there, and return its reference.

    `keep=False` for a large one that seldom changes: the local storage need not have it a second time.
    """
    with snapshot(image) as taken:
        reference = f"{registry.host}/{image.repository}:{taken.tag()}"
        if not registry.has(image.repository, taken.tag()):
            name = build(taken)
            buildah.push(name, reference, local=True)
            if not keep:
                buildah.remove([name])
    return reference


def push_elsewhere(prefix: str) -> tuple[str, dict[str, str]]:
    """Build the images and push them under `prefix`; return their common tag, and their references by digest.

    The base image is the Dockerfile's, from its registry, unless the variable BASE_IMAGE names another.
    """
    arguments = {"BASE_IMAGE": os.environ["BASE_IMAGE"]} if os.environ.get("BASE_IMAGE") else {}
    with_docker = succeeds(["docker", "info"]) and succeeds(["docker", "buildx", "version"])
    pushed = {}
    with ExitStack() as stack:
        snapshots = [stack.enter_context(snapshot(image)) for image in IMAGES]
        tag = f"c{hashlib.sha256(' '.join(each.tag() for each in snapshots).encode()).hexdigest()[:12]}"
        for taken in snapshots:
            repository = f"{prefix.rstrip('/')}/{taken.image.repository}"
            push = _push_with_docker if with_docker else _push_with_buildah
            pushed[taken.image.name] = f"{repository}@{push(taken, f'{repository}:{tag}', arguments)}"
    return tag, pushed


def _push_with_buildah(taken: Snapshot, reference: str, arguments: Mapping[str, str]) -> str:
    buildah.build(reference, taken.dockerfile, taken.context, arguments)
    return buildah.push(reference, reference, local=reference.startswith("localhost"))


def _push_with_docker(taken: Snapshot, reference: str, arguments: Mapping[str, str]) -> str:
    flags = [f"--build-arg={name}={value}" for name, value in arguments.items()]
    command: list[str | Path] = ["docker", "build", *flags, "--file", taken.dockerfile, "--tag", reference]
    run([*command, taken.context], env={"DOCKER_BUILDKIT": "1"}, timeout=3600)
    # Its last line is `TAG: digest: sha256:… size: …`.
    found = re.findall(r"digest: (sha256:[a-f0-9]{64})", run(["docker", "push", reference], timeout=3600))
    return str(found[-1])


def chart_values(pushed: Mapping[str, str]) -> dict[str, Any]:
    """Return the values of the chart that name these images."""
    images = {name: {"image": reference} for name, reference in pushed.items()}
    return {"operator": images["operator"], "trainer": images["trainer"], "serving": {"server": images["server"]}}
