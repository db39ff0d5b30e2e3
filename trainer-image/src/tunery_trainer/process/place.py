"""Where a process stands among those that train together: its node, its device, and where the first one listens."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from tunery_api.names import MASTER_ENV, NODES_ENV, NODES_PORTS
from tunery_api.reasons import FailureReason
from tunery_api.remedies import retry
from tunery_api.runspec import RunSpec
from tunery_common.errors import TuneryError
from tunery_trainer.process.environment import VISIBLE_ENV

PLACE_ENV: Final = "TUNERY_PLACE"
HERE: Final = "127.0.0.1"
SIMULATED_ENV: Final = "TUNERY_SIMULATED_DEVICES"
"""For trials without GPUs: so many processes on the CPU of each pod, whatever the manifest asks for."""
NODE_ENV: Final = "JOB_COMPLETION_INDEX"
"""The Job controller's own."""
PORT_ENV: Final = "TUNERY_PORT"
PORT: Final = NODES_PORTS[0]
"""Of the collectives, and the next one of the nodes' channel; every pod has its own."""
_MOST: Final = 16
"""Of simulated devices: as many GPUs as a manifest may ask for."""
_NUMBERS: Final = frozenset(map(str, range(_MOST + 1)))
_GPUS: Final = Path("/proc/driver/nvidia/gpus")
"""Has a folder for each GPU of the machine, in a container too."""


@dataclass(frozen=True)
class Place:
    """A place; by default that of a process which is alone."""

    node: int = 0
    nodes: int = 1
    device: int = 0
    devices: int = 1
    """Processes of each node, one for each device."""
    master: str = HERE
    """The host name of node 0."""
    port: int = 0
    """Where the first process listens for the collectives; 0: there is none to listen to, or none has begun."""
    control_port: int = 0
    """Where node 0 listens for the other nodes."""

    @property
    def world(self) -> int:
        """Processes in all."""
        return self.nodes * self.devices

    @property
    def rank(self) -> int:
        """The number of this process among them."""
        return self.node * self.devices + self.device

    def of(self, device: int) -> Place:
        """Return the place of another process of this node."""
        return replace(self, device=device)

    def begun(self) -> Place:
        """Return the place where the processes of this machine meet now; call it as they are started.

        Until then anybody may take a port that was free. Of one node nothing is heard outside of the machine.
        """
        if self.nodes > 1:
            return self
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        return replace(self, port=_free_port())

    def environment(self) -> dict[str, str]:
        """Return the variables of the process that stands here: its place, and its device alone."""
        visible = os.environ.get(VISIBLE_ENV, "").split(",")
        own = visible[self.device] if self.device < len(visible) else ""
        return {PLACE_ENV: json.dumps(asdict(self)), "CUDA_VISIBLE_DEVICES": own}


def own_place(variables: Mapping[str, str] = os.environ) -> Place:
    """Return the place that the process which started this one has given it."""
    return Place(**json.loads(variables[PLACE_ENV]))


def place_of(run: RunSpec, shared: int | None = None, variables: Mapping[str, str] = os.environ) -> Place:
    """Return the place of the process that trains `run` in this container, or without one on this machine.

    `shared` as for `counts_of`.
    """
    devices, nodes = counts_of(run, shared, variables)
    if nodes > 1:
        port = int(variables.get(PORT_ENV) or PORT)
        return Place(int(variables[NODE_ENV]), nodes, 0, devices, variables[MASTER_ENV], port, port + 1)
    return Place(devices=devices)


def counts_of(run: RunSpec, shared: int | None = None, variables: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """Return how many devices of each node train `run`, and how many nodes.

    In a cluster that is what the manifest asks for. Without one this machine is the only node: it is as many GPUs as
    are here, at most those that each node was to have, and of them the most that can share `shared` evenly, the passes
    or rows of an optimizer step; None: any number can.
    """
    asked = run.lora_job.resources if run.lora_job else None
    nodes = int(variables.get(NODES_ENV) or (asked.nodes if asked and not run.local else 1))
    if not run.local:
        return simulated(variables) or max(1, asked.gpus if asked else 0), nodes
    devices = devices_here(run, variables)
    return most_that_share(devices, nodes, shared), nodes


def most_that_share(devices: int, nodes: int, shared: int | None) -> int:
    """Return the most of `devices` of each node that can share `shared` evenly, at least 1; None: any number can."""
    return next(count for count in range(devices, 0, -1) if count == 1 or not (shared or 0) % (count * nodes))


def devices_here(run: RunSpec, variables: Mapping[str, str] = os.environ) -> int:
    """Return how many devices of this machine the manifest asks for, one node's; at least 1."""
    gpus = run.lora_job.resources.gpus if run.lora_job else 0
    there = len(list(_GPUS.iterdir())) if _GPUS.is_dir() else 0
    shown = variables.get(VISIBLE_ENV)
    visible = len(shown.split(",")) if shown else there
    return simulated(variables) or max(1, min(gpus, there, visible))


def simulated(variables: Mapping[str, str] = os.environ) -> int:
    """Return how many processes of a pod train on the CPU as if each had a GPU; 0: there are no simulated devices.

    Raises TuneryError(InvalidSpec) for what is no such number.
    """
    said = variables.get(SIMULATED_ENV) or "0"
    if said not in _NUMBERS:
        raise TuneryError(
            FailureReason.INVALID_SPEC,
            f"{SIMULATED_ENV} must be a whole number from 1 to {_MOST}, is {said!r}",
            retry(f"Set {SIMULATED_ENV} to such a number, or unset it for no simulated devices"),
        )
    return int(said)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HERE, 0))
        return int(probe.getsockname()[1])
