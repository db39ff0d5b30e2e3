"""Runs of two nodes, and of two devices on one, by real commands and a real S3 server: nothing but time is lost."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tunery_api.reasons import ExitCode
from tunery_trainer.crew.nodes import MEET_SECONDS_ENV
from tunery_trainer.process.place import MASTER_ENV, NODE_ENV, NODES_ENV, PORT_ENV, SIMULATED_ENV

from cluster.s3 import S3Server
from kit.long import long_but
from kit.story import Run, command, environment

SPEC: dict[str, Any] = {
    "lora": {"dropout": "0.1"},
    "training": {"gradientAccumulation": 2, "maxSteps": 60, "learningRate": "1e-3"},
    "checkpoint": {"everySteps": 5},
    "evaluation": {"everySteps": 20},
}
SECONDS = 120.0


class Node(NamedTuple):
    """One container of a run."""

    process: subprocess.Popen[bytes]
    log: Path
    words: Path

    def said(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.words.read_text() or "{}")
        return found


def free_port() -> int:
    """Return a port that is free, and whose neighbour is, most likely."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1]) % 20000 + 20000


class Cluster:
    """Starts the containers of a run, each with a disk of its own."""

    def __init__(self, folder: Path, run_file: Run, *, nodes: int = 2, devices: int = 1, meet: int = 60) -> None:
        self._folder = folder
        self._run_file = run_file
        self._nodes = nodes
        self._devices = devices
        self._meet = meet
        self._attempt = 0

    def start(self, uid: str = "u-1") -> list[Node]:
        """Start one attempt."""
        self._attempt += 1
        port = free_port()
        return [self._node(uid, number, port) for number in range(self._nodes)]

    def _node(self, uid: str, number: int, port: int) -> Node:
        name = f"{uid}-{self._attempt}-{number}"
        work = self._folder / f"work-{name}"
        path = self._run_file(uid=uid, name=f"run-{name}.json", own={"workDir": str(work)}, **SPEC)
        words, log = self._folder / f"words-{name}", self._folder / f"log-{name}"
        words.touch()
        variables = {
            NODES_ENV: str(self._nodes),
            NODE_ENV: str(number),
            MASTER_ENV: "127.0.0.1",
            PORT_ENV: str(port),
            MEET_SECONDS_ENV: str(self._meet),
            SIMULATED_ENV: str(self._devices),
            "TUNERY_TERMINATION_PATH": str(words),
            "GLOO_SOCKET_IFNAME": "lo",
        }
        with log.open("wb") as out:
            process = subprocess.Popen(
                command("train", path), env=environment(**variables), stdout=out, stderr=subprocess.STDOUT
            )
        return Node(process, log, words)


def finish(nodes: list[Node]) -> list[int]:
    """Return the exit codes once all have ended."""
    try:
        return [node.process.wait(SECONDS) for node in nodes]
    finally:
        for node in nodes:
            node.process.kill()


def trains(nodes: list[Node]) -> None:
    """Wait until the run is past its first checkpoints."""
    until = time.monotonic() + SECONDS
    while "step 1" not in nodes[0].log.read_text():
        assert time.monotonic() < until, nodes[0].log.read_text()
        assert all(node.process.poll() is None for node in nodes), [node.log.read_text() for node in nodes]
        time.sleep(0.05)


def published(s3_server: S3Server, folder: Path) -> dict[str, str]:
    """Return the digests of the adapter's files."""
    body = s3_server.client().get_object(Bucket="adapters", Key=f"{folder.name}/out/manifest.json")["Body"]
    files = json.loads(body.read())["files"]
    return {name: files[name]["sha256"] for name in ("adapter_model.safetensors", "adapter_config.json")}


def leader(nodes: list[Node]) -> None:
    nodes[0].process.send_signal(signal.SIGKILL)


def other(nodes: list[Node]) -> None:
    nodes[-1].process.send_signal(signal.SIGKILL)


def leader_told(nodes: list[Node]) -> None:
    nodes[0].process.send_signal(signal.SIGTERM)


def other_told(nodes: list[Node]) -> None:
    nodes[-1].process.send_signal(signal.SIGTERM)


def follower(nodes: list[Node]) -> None:
    """Kill the process of a second device of the last node."""
    story = int(_children(nodes[-1].process.pid)[0])
    for child in _children(story):
        if "follow" in Path(f"/proc/{child}/cmdline").read_text():
            os.kill(int(child), signal.SIGKILL)
            return
    raise AssertionError("there is no other process")


def _children(process: int) -> list[str]:
    found: list[str] = []
    for task in Path(f"/proc/{process}/task").iterdir():
        with suppress(OSError):
            found += (task / "children").read_text().split()
    return found


LOST, TOLD = int(ExitCode.PEER_LOST), int(ExitCode.TERMINATED)
CASES = {
    "the other node is killed": (2, 1, other, [LOST, -signal.SIGKILL]),
    "the first node is killed": (2, 1, leader, [-signal.SIGKILL, LOST]),
    "the other node is told to end": (2, 1, other_told, [LOST, TOLD]),
    "the first node is told to end": (2, 1, leader_told, [TOLD, LOST]),
    "one of two devices is killed": (1, 2, follower, [int(ExitCode.RETRYABLE)]),
    "both devices are told to end": (1, 2, leader_told, [TOLD]),
    "one of four processes is killed": (2, 2, follower, [LOST, int(ExitCode.RETRYABLE)]),
}


@pytest.fixture(scope="module")
def undisturbed() -> dict[tuple[int, int], dict[str, str]]:
    """What a run of so many nodes and devices publishes where nobody disturbs it."""
    return {}


@pytest.mark.parametrize("name", long_but(CASES, "the other node is killed", "one of two devices is killed"))
def test_a_run_that_loses_a_process_goes_on_to_the_same_adapter(
    name: str,
    tmp_path: Path,
    run_file: Run,
    s3_server: S3Server,
    undisturbed: dict[tuple[int, int], dict[str, str]],
) -> None:
    nodes, devices, disturb, codes = CASES[name]
    cluster = Cluster(tmp_path, run_file, nodes=nodes, devices=devices)
    begun = cluster.start()
    trains(begun)
    disturb(begun)
    at = time.monotonic()
    assert finish(begun) == codes, [node.log.read_text() for node in begun]
    assert time.monotonic() - at < 30
    again = cluster.start()
    assert finish(again) == [0] * nodes, [node.log.read_text() for node in again]
    assert "Resuming from the checkpoint of step" in again[0].log.read_text()
    found = published(s3_server, tmp_path)
    if (nodes, devices) not in undisturbed:
        s3_server.client().delete_object(Bucket="adapters", Key=f"{tmp_path.name}/out/manifest.json")
        assert finish(cluster.start("u-2")) == [0] * nodes
        undisturbed[nodes, devices] = published(s3_server, tmp_path)
    assert found == undisturbed[nodes, devices]


def test_a_node_that_never_comes_is_named(tmp_path: Path, run_file: Run) -> None:
    first, second = Cluster(tmp_path, run_file, meet=6).start()
    second.process.kill()
    assert first.process.wait(SECONDS) == ExitCode.RETRYABLE
    failure = first.said()["failure"]
    assert failure["reason"] == "PeerLost"
    assert failure["message"] == "node 1 of 2 has not come within 0.1 minutes"
