"""The containers of a run on several nodes, as processes of this machine, each with a disk of its own."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from tunery_api.names import MASTER_ENV, NODES_ENV
from tunery_trainer.commands import FOLLOW
from tunery_trainer.crew.nodes import MEET_SECONDS_ENV
from tunery_trainer.process.place import NODE_ENV, PORT_ENV, SIMULATED_ENV

from kit.fork_server import SERVER, Process, trainer_server
from kit.story import Run, command, environment
from tools.cluster.daemon import ENDS_WITH_PARENT
from tools.cluster.ports import free_pair


class Node(NamedTuple):
    """One container of a run."""

    process: Process | subprocess.Popen[bytes]
    log: Path
    words: Path

    def said(self) -> dict[str, Any]:
        """Return its termination message."""
        found: dict[str, Any] = json.loads(self.words.read_text() or "{}")
        return found

    def ranks(self) -> list[int]:
        """Return the processes that train in it, by their ids: the one that tells the story, then those that follow.

        Empty before it has begun: the container's first process is the parent that writes the last words.
        """
        story = [child for child in _children(self.process.pid) if _name(child) != SERVER][:1]
        followers = [child for each in story for child in _children(each) if _follows(child)]
        return story + followers


class Nodes:
    """Starts the containers of a run."""

    def __init__(
        self, folder: Path, run_file: Run, spec: dict[str, Any], *, nodes: int, devices: int, cold: bool = False
    ) -> None:
        """`spec` has the blocks of the LoRAJob, `devices` is how many processes train in each container.

        `cold`: each process imports its libraries itself.
        """
        self._cold = cold
        self._folder = folder
        self._run_file = run_file
        self._spec = spec
        self._nodes = nodes
        self._devices = devices
        self._attempt = 0
        self._started = 0
        self._port = 0
        self._uid = ""
        self.meet_seconds = 60

    def start(self, uid: str = "u-1", *, taken: Callable[[int], object] | None = None) -> list[Node]:
        """Start one attempt; `taken` may take its ports before, of which it is told the first."""
        self._attempt += 1
        self._port, self._uid = free_pair(), uid
        if taken is not None:
            taken(self._port)
        return [self._node(number) for number in range(self._nodes)]

    def again(self, nodes: list[Node], ended: Node) -> None:
        """Start one of them again, as the Job does where a pod has ended while the others wait for it."""
        number = nodes.index(ended)
        nodes[number] = self._node(number)

    def _node(self, number: int) -> Node:
        self._started += 1
        uid = self._uid
        name = f"{uid}-{self._attempt}-{number}-{self._started}"
        work = self._folder / f"work-{name}"
        path = self._run_file(uid=uid, name=f"run-{name}.json", own={"workDir": str(work)}, **self._spec)
        words, log = self._folder / f"words-{name}", self._folder / f"log-{name}"
        words.touch()
        several = {
            NODES_ENV: str(self._nodes),
            NODE_ENV: str(number),
            MASTER_ENV: "127.0.0.1",
            PORT_ENV: str(self._port),
            MEET_SECONDS_ENV: str(self.meet_seconds),
        }
        variables = {
            **(several if self._nodes > 1 else {}),
            SIMULATED_ENV: str(self._devices),
            "TUNERY_TERMINATION_PATH": str(words),
            "GLOO_SOCKET_IFNAME": "lo",
        }
        with log.open("wb") as out:
            popen = subprocess.Popen if self._cold else trainer_server().popen
            process = popen(
                [*ENDS_WITH_PARENT, *command("train", path)],
                env=environment(**variables),
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        return Node(process, log, words)


def finish(nodes: list[Node], seconds: float) -> list[int]:
    """Return the exit codes once all have ended; raises subprocess.TimeoutExpired after `seconds` of one."""
    try:
        return [node.process.wait(seconds) for node in nodes]
    finally:
        for node in nodes:
            node.process.kill()


def logs(nodes: list[Node]) -> str:
    """Return what all of them have printed."""
    return "\n".join(node.log.read_text() for node in nodes)


def _children(process: int) -> list[int]:
    found: list[int] = []
    with suppress(OSError):
        for task in os.scandir(f"/proc/{process}/task"):
            with suppress(OSError):
                found += map(int, Path(task.path, "children").read_text().split())
    return found


def _follows(process: int) -> bool:
    with suppress(OSError):
        return _name(process) == FOLLOW or f"\0{FOLLOW}\0" in Path(f"/proc/{process}/cmdline").read_text()
    return False


def _name(process: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{process}/comm").read_text().strip()
    return ""
