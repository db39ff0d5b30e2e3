"""Whether the status of an AdapterServer is true: what it says is served, beside what the engines themselves hold."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from kit.kubectl import KubectlError
from kit.processes import PROC, pod_processes
from kit.serving import Server

SOCKET = "run/tunery/engine.sock"
GATEWAY = "tunery_server"
EVERY_SECONDS = 0.5
LATE_SECONDS = 5.0
"""How long the status may say that something is served which is not; 30 where a gateway is dead and cannot tell."""
SILENT_SECONDS = 30.0


class _Socket(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("engine", timeout=5)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket in place of a host."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def held_by_engine(pod: dict[str, Any]) -> set[str] | None:
    """Return the names that a pod's engine lists, asked over its socket as nobody but the node can; None: no answer."""
    gateways = pod_processes(pod, GATEWAY)
    if not gateways:
        return None
    connection = _Socket(str(PROC.joinpath(str(gateways[0]), "root", SOCKET)))
    try:
        connection.request("GET", "/v1/models")
        answer = connection.getresponse()
        return {each["id"] for each in json.loads(answer.read())["data"]} if answer.status == 200 else None
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()


@dataclass
class Truth:
    """What was seen: lies by adapter, each with how long it was told without a break."""

    looks: int = 0
    served: int = 0
    """Looks at which the status said of an adapter that a number of replicas serve it."""
    longest: dict[str, float] = field(default_factory=dict)
    states: dict[str, list[str]] = field(default_factory=dict)
    """Of each adapter, one after the other, with how many replicas serve it."""
    _since: dict[str, float] = field(default_factory=dict)

    def look(self, status: dict[str, Any], engines: list[set[str] | None], now: float) -> None:
        """Compare a status with what each ready replica's engine holds."""
        self.looks += 1
        for each in status.get("adapters", []):
            name, digest = each["name"], each.get("manifestSha256", "")
            states, state = self.states.setdefault(name, []), f"{each['state']} {each.get('replicas', '')}".strip()
            if states[-1:] != [state]:
                states.append(state)
            ready = str(each.get("replicas", "0/0")).partition("/")[0]
            if each["state"] != "Served" or ready == "0":
                self._since.pop(name, None)
                continue
            self.served += 1
            known = f"{name}@{digest[:12]}"
            if len([held for held in engines if held and known in held]) >= int(ready):
                self._since.pop(name, None)
                continue
            since = self._since.setdefault(name, now)
            self.longest[name] = max(self.longest.get(name, 0.0), now - since)


@contextmanager
def watched(server: Server) -> Iterator[Truth]:
    """Compare status and engines from before the block until after it."""
    truth, ended = Truth(), threading.Event()

    def look() -> None:
        status = server.status
        engines = [held_by_engine(pod) for pod in server.pods("serve")]
        truth.look(status, engines, time.monotonic())

    def keep_looking() -> None:
        while not ended.wait(EVERY_SECONDS):
            # The API server does not answer at times.
            with suppress(KubectlError, OSError):
                look()

    look()
    thread = threading.Thread(target=keep_looking, name="truth", daemon=True)
    thread.start()
    try:
        yield truth
    finally:
        ended.set()
        thread.join(30)
        with suppress(KubectlError, OSError):
            look()
