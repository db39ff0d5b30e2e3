"""Images of one static program each: the pause container, and Kueue."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tools.cluster import binaries, buildah
from tools.cluster.registry import Registry

DOCKERFILE = 'FROM scratch\nCOPY {name} {path}\nUSER {user}:{user}\nENTRYPOINT ["{path}"]\n'


@dataclass(frozen=True)
class Program:
    """A program, how its folder is built, and where and as whom it stands in its image."""

    name: str
    build: Callable[[], Path]
    path: str
    user: int


PAUSE = Program("pause", binaries.pause, "/pause", 65535)
"""Holds a pod's namespaces."""
KUEUE = Program("kueue", binaries.kueue, "/manager", 65532)
"""Where its chart looks for it."""


def ensure(program: Program, registry: Registry) -> str:
    """Return the image's reference in the cluster's registry, where it is pushed the first time."""
    folder = program.build()
    tag = folder.name.rpartition("-")[2]
    reference = f"{registry.host}/{program.name}:{tag}"
    if not registry.has(program.name, tag):
        local = f"localhost/{program.name}:{tag}"
        with tempfile.TemporaryDirectory() as context:
            shutil.copy(folder / program.name, context)
            dockerfile = Path(context, "Dockerfile")
            dockerfile.write_text(DOCKERFILE.format(name=program.name, path=program.path, user=program.user))
            buildah.build(local, dockerfile, Path(context), {})
        buildah.push(local, reference, local=True)
    return reference
