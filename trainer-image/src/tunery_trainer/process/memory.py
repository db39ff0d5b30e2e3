"""How much memory the container has in use, of what it may."""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

_CGROUP: Final = Path("/sys/fs/cgroup")


class MemoryUse(NamedTuple):
    """In bytes."""

    used: int
    available: int


def container_memory(cgroup: Path = _CGROUP) -> MemoryUse | None:
    """Return the working set of the container, as the kubelet counts it, and its limit; None where there is no limit.

    Without pages of files that the kernel drops when it needs room: a run that reads a large data set fills them.
    """
    try:
        limit = (cgroup / "memory.max").read_text("utf-8").strip()
        current = int((cgroup / "memory.current").read_text("utf-8"))
        stat = dict(line.split() for line in (cgroup / "memory.stat").read_text("utf-8").splitlines())
    except (OSError, ValueError):
        return None
    if limit == "max":
        return None
    return MemoryUse(max(0, current - int(stat.get("inactive_file", 0))), int(limit))
