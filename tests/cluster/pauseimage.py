"""The image of the container that holds a pod's namespaces."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from cluster import binaries, buildah
from cluster.registry import Registry

REPOSITORY = "pause"
DOCKERFILE = 'FROM scratch\nCOPY pause /pause\nUSER 65535:65535\nENTRYPOINT ["/pause"]\n'


def ensure(registry: Registry) -> str:
    """Return the image's reference in the cluster's registry, where it is pushed the first time."""
    folder = binaries.pause()
    tag = folder.name.rpartition("-")[2]
    reference = f"{registry.host}/{REPOSITORY}:{tag}"
    if not registry.has(REPOSITORY, tag):
        with tempfile.TemporaryDirectory() as context:
            shutil.copy(folder / "pause", context)
            dockerfile = Path(context, "Dockerfile")
            dockerfile.write_text(DOCKERFILE)
            buildah.build(f"localhost/{REPOSITORY}:{tag}", dockerfile, Path(context), {})
        buildah.push(f"localhost/{REPOSITORY}:{tag}", reference, insecure=True)
    return reference
