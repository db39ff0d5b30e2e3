"""Whether the disk has room for what a target of make is about to write: without it the target ends at once."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from tools.cluster.paths import REPOSITORY, cache_dir

TEST: Final = "test"
DEMO: Final = "demo"
SERVING: Final = "demo-serving"
GOALS: Final = (TEST, DEMO, SERVING)
"""Targets of make, each of which writes what the one before it writes, and more."""
_RESERVE_GB: Final = 3
"""What buckets, logs and data take."""
_ENVIRONMENT: Final = 7
"""tests/.venv and the cache of uv, which share their files."""
_PROGRAMS: Final = 2
# Measured after both demos, and rounded up. The trainer's image has 6.6 GB, 3.3 packed, vLLM's 5.5 and 2.9: each lies
# packed in the registry and on the node, unpacked on the node, and the trainer's in buildah's storage, too.
_BUILDS: Final = 14
"""What buildah keeps, 8, and part of the 18 more that it needs while it commits the trainer's image: the node is empty
then."""
_REGISTRY: Final = 4
_NODE: Final = 12
_VLLM_BUILD: Final = 14
"""uv 5, the registry 3, and buildah's storage 6 until the image is pushed."""
_VLLM_ON_NODE: Final = 9


class NoRoom(Exception):
    """A sentence on how much disk is missing."""


def require(needed: int, folders: Iterable[Path]) -> None:
    """Raise NoRoom if the disk of a folder has less than `needed` GB free."""
    for folder in folders:
        there = _existing(folder)
        free = shutil.disk_usage(there).free / 1e9
        if free < needed:
            raise NoRoom(f"{needed} GB of free disk are needed, and {there} has {free:.1f} GB. Fix: free some space.")


def check(goal: str, state: Path) -> None:
    """Raise NoRoom if a disk has less free than a goal still writes to it; `state` is the cluster's state folder."""
    needed: Counter[int] = Counter()
    folders: dict[int, Path] = {}
    for path, size in _missing(goal, state):
        disk = os.stat(_existing(path)).st_dev
        needed[disk] += size
        folders.setdefault(disk, path)
    for disk, size in needed.items():
        require(size, [folders[disk]])


def engine_mark(state: Path, name: str) -> Path:
    """Return the file that says that a cluster's node has an engine's image."""
    return state / f"engine-{name}"


def _missing(goal: str, state: Path) -> Iterator[tuple[Path, int]]:
    """Yield what is not there yet of cache and cluster, with its GB, and the reserve."""
    yield cache_dir(), _RESERVE_GB
    for path, size, first in _parts(state):
        if GOALS.index(first) <= GOALS.index(goal) and not path.exists():
            yield path, size


def _parts(state: Path) -> Iterator[tuple[Path, int, str]]:
    cache = cache_dir()
    yield REPOSITORY / "tests" / ".venv", _ENVIRONMENT, TEST
    yield cache / "bin", _PROGRAMS, TEST
    yield cache / "buildah", _BUILDS, DEMO
    yield cache / "registry", _REGISTRY, DEMO
    yield state / "containerd", _NODE, DEMO
    yield cache / "registry/docker/registry/v2/repositories/tunery-engine", _VLLM_BUILD, SERVING
    yield engine_mark(state, "vllm"), _VLLM_ON_NODE, SERVING


def _existing(path: Path) -> Path:
    return next(each for each in (path, *path.parents) if each.exists())
