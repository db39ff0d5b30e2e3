"""How much memory the container has in use, of what it may; and how this process gives back what it has freed."""

from __future__ import annotations

import ctypes
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

CGROUP: Final = Path("/sys/fs/cgroup")
"""What the container may use is told below it."""
_PROCESS: Final = Path("/proc/self/statm")
_UNLIMITED: Final = 1 << 60
"""From here on a limit of cgroup v1 is none: it has no word for that, but the largest number that it can hold."""
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_LARGE: Final = 1 << 20
_LARGEST: Final = 32 << 20
"""glibc's names and numbers (malloc.h); what it would come to by itself, and twice of it for what is trimmed."""


class MemoryUse(NamedTuple):
    """In bytes."""

    used: int
    available: int


class _Files(NamedTuple):
    """Where a version of cgroup says it, below its mount; the last is the name of a line of `stat`."""

    limit: str
    current: str
    stat: str
    droppable: str


_VERSIONS: Final = (
    _Files("memory.max", "memory.current", "memory.stat", "inactive_file"),
    _Files("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
)


def container_memory(asked: int | None = None, cgroup: Path = CGROUP, process: Path = _PROCESS) -> MemoryUse | None:
    """Return the working set of the container, as the kubelet counts it, and its limit; None where there is no limit.

    Without pages of files that the kernel drops when it needs room: a run that reads a large data set fills them.
    Where no cgroup of this container has a limit, it is what the manifest asks for (`asked`, in bytes; None: nothing),
    of which this process has so much in use.
    """
    found = next(_of_cgroup(cgroup), None)
    if found is not None or not asked:
        return found
    own = _of_process(process)
    return None if own is None else MemoryUse(own, asked)


def _of_cgroup(cgroup: Path) -> Iterator[MemoryUse]:
    """Yield what each version of cgroup that is here says; nothing where it has no limit."""
    for files in _VERSIONS:
        try:
            limit = (cgroup / files.limit).read_text("utf-8").strip()
            current = int((cgroup / files.current).read_text("utf-8"))
            stat = dict(line.split() for line in (cgroup / files.stat).read_text("utf-8").splitlines())
            if limit != "max" and int(limit) < _UNLIMITED:
                yield MemoryUse(max(0, current - int(stat.get(files.droppable, 0))), int(limit))
        except (OSError, ValueError):
            continue


def _of_process(statm: Path) -> int | None:
    """Return what this process holds that is of no file, in bytes; None where the system does not say it."""
    try:
        _, resident, shared, *_ = map(int, statm.read_text("utf-8").split())
    except (OSError, ValueError):
        return None
    return max(0, resident - shared) * resource.getpagesize()


@contextmanager
def nothing_hoarded() -> Iterator[None]:
    """Let glibc give each large block back to the kernel as it is freed, in the body and not after it; else nothing.

    Left alone it raises by itself what counts as large up to 32 MiB, and keeps smaller blocks that lie between others.
    As a base was quantised, block by block, these came to several times its 4 bits, for the rest of the run. Whoever
    has set the limits by glibc's own variables keeps them.
    """
    library = ctypes.CDLL(None)
    is_set = any(name.startswith("MALLOC_") for name in os.environ) or "malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if is_set or not (hasattr(library, "mallopt") and hasattr(library, "malloc_trim")):
        yield
        return
    library.mallopt(_M_MMAP_THRESHOLD, _LARGE)
    try:
        yield
    finally:
        library.mallopt(_M_MMAP_THRESHOLD, _LARGEST)
        library.mallopt(_M_TRIM_THRESHOLD, 2 * _LARGEST)
        library.malloc_trim(0)
