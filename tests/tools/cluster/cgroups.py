"""The control group under which the node keeps its pods, so that a killed cluster's processes are found."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

from tools.cluster.waiting import WaitedTooLong, wait_until

MOUNT = Path("/sys/fs/cgroup")
NAME = "tunery"


def _roots() -> list[Path]:
    """Return our group in each hierarchy: one on cgroup v2, one for each controller on v1."""
    if (MOUNT / "cgroup.controllers").exists():
        return [MOUNT / NAME]
    controllers = {path.resolve() for path in MOUNT.iterdir() if path.is_dir() and (path / "cgroup.procs").exists()}
    return [path / NAME for path in sorted(controllers)]


def create() -> None:
    """Make the group in every hierarchy."""
    for root in _roots():
        root.mkdir(exist_ok=True)
        # On v1 a new cpuset is empty, and an empty one takes no process.
        for file in ("cpuset.cpus", "cpuset.mems"):
            with contextlib.suppress(OSError):
                if not (root / file).read_text().strip():
                    (root / file).write_text((root.parent / file).read_text())


def remove(timeout: float = 15) -> None:
    """Kill what is left in the group and remove it."""
    try:
        wait_until(_is_empty, "the pods' processes are gone", timeout)
    except WaitedTooLong:
        return
    for root in _roots():
        for folder in sorted(_groups(root), key=lambda path: -len(path.parts)):
            with contextlib.suppress(OSError):
                folder.rmdir()


def _is_empty() -> bool:
    pids = {pid for root in _roots() for group in _groups(root) for pid in _pids(group)}
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return not pids


def _groups(root: Path) -> list[Path]:
    return [Path(folder) for folder, _, _ in os.walk(root)]


def _pids(group: Path) -> list[int]:
    try:
        return [int(line) for line in (group / "cgroup.procs").read_text().split()]
    except OSError:
        return []
