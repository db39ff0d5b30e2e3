"""Whether the disk has room for what is about to be built: a demo is warned, `make test` and `make try` end."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from tools.cluster.paths import cache_dir

RESERVE_GB: Final = 3
"""What a demo's buckets, logs and data take."""
# Measured after both demos, and rounded up. The trainer's image has 6.6 GB, 3.3 packed, vLLM's 5.5 and 2.9: each lies
# packed in the registry and on the node, unpacked on the node, and the trainer's in buildah's storage, too.
_BUILDS: Final = 14
"""What buildah keeps, 8, and part of the 18 more that it needs while it commits the trainer's image: the node is empty
then."""
_REGISTRY: Final = 4
_PROGRAMS: Final = 1
_NODE: Final = 12
_VLLM_BUILD: Final = 14
"""uv 5, the registry 3, and buildah's storage 6 until the image is pushed."""
_VLLM_ON_NODE: Final = 9


class NoRoom(Exception):
    """A sentence on how much disk is missing."""


def require(needed: int, folders: Iterable[Path]) -> None:
    """Raise NoRoom if the disk of a folder has less than `needed` GB free."""
    for folder in folders:
        there = next(each for each in (folder, *folder.parents) if each.exists())
        free = shutil.disk_usage(there).free / 1e9
        if free < needed:
            raise NoRoom(f"{needed} GB of free disk are needed, and {there} has {free:.1f} GB. Fix: free some space.")


def lacking(state: Path, *, engine: bool) -> int:
    """Return how many GB are still to be written: by what is not there yet of cache and cluster; an estimate."""
    return RESERVE_GB + sum(size for path, size in _parts(state, engine) if not path.exists())


def _parts(state: Path, engine: bool) -> Iterator[tuple[Path, int]]:
    cache = cache_dir()
    yield cache / "buildah", _BUILDS
    yield cache / "registry", _REGISTRY
    yield cache / "bin", _PROGRAMS
    yield state / "containerd", _NODE
    if engine:
        yield cache / "registry/docker/registry/v2/repositories/tunery-engine", _VLLM_BUILD
        yield engine_mark(state, "vllm"), _VLLM_ON_NODE


def engine_mark(state: Path, name: str) -> Path:
    """Return the file that says that a cluster's node has an engine's image."""
    return state / f"engine-{name}"


def warning(state: Path, *, engine: bool = False) -> str | None:
    """Return a sentence where less is free than is still to be written; None where there is enough."""
    folder = next(each for each in (state, *state.parents) if each.exists())
    free, needed = shutil.disk_usage(folder).free / 1e9, lacking(state, engine=engine)
    if free >= needed:
        return None
    return (
        f"{free:.0f} GB of disk are free, and some {needed} more are about to be written (what is there of "
        f"{cache_dir()} and {state} is counted): a node whose disk is full ends its pods. It goes on; Ctrl-C stops it."
    )
