"""Processes of this machine: those of a pod, to be killed, and those with a variable in their environment."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

PROC = Path("/proc")


def pod_processes(pod: dict[str, Any], command: str = "") -> list[int]:
    """Return the processes of a pod whose command line holds `command`."""
    # The drivers of control groups write a uid with dashes, or with underscores.
    uid = pod["metadata"]["uid"]
    names = {uid.encode(), uid.replace("-", "_").encode()}
    found = [folder for folder in PROC.glob("[0-9]*") if any(name in _read(folder / "cgroup") for name in names)]
    return [int(folder.name) for folder in found if command.encode() in _read(folder / "cmdline")]


def kill(pod: dict[str, Any], command: str) -> None:
    """kill -9 what runs `command` in a pod; raises AssertionError where nothing does."""
    found = pod_processes(pod, command)
    assert found, f"{pod['metadata']['name']}: no process runs {command}"
    for pid in found:
        with suppress(ProcessLookupError):  # it died with its parent
            os.kill(pid, signal.SIGKILL)


def environment_of(pid: int) -> bytes:
    """Return the environment that a process was started with."""
    return _read(PROC / str(pid) / "environ")


def with_environment(variable: str) -> dict[int, str]:
    """Return command lines by pid: of processes whose variable, such as `TMPDIR=/tmp/a`, is that path or below it."""
    wanted = variable.encode()
    found = [
        folder
        for folder in PROC.glob("[0-9]*")
        if any(each == wanted or each.startswith(wanted + b"/") for each in _read(folder / "environ").split(b"\0"))
    ]
    return {int(folder.name): _read(folder / "cmdline").replace(b"\0", b" ").decode() for folder in found}


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it has ended
        return b""
