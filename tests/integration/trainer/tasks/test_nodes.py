"""Runs of two nodes, and of two devices on one, by real commands and a real S3 server: nothing but time is lost."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tunery_api.reasons import ExitCode
from tunery_trainer.crew.causes import CAUSE_SECONDS

from kit.nodes import Node, Nodes, finish, logs
from kit.s3 import keys_below
from kit.story import Run
from tools.cluster.s3 import S3Server

SPEC: dict[str, Any] = {
    "lora": {"dropout": 0.1},
    "training": {"gradientAccumulation": 4, "maxSteps": 60, "learningRate": 1e-3},
    "checkpoint": {"everySteps": 5},
    "evaluation": {"everySteps": 20},
}
SECONDS = 300.0
"""Nothing hangs. On two cores that other tests keep busy a run took more than two minutes."""


def trains(s3_server: S3Server, folder: Path, nodes: list[Node]) -> None:
    """Wait until the first node knows that a checkpoint of its own is stored: it has begun to store another one."""
    until, bucket = time.monotonic() + SECONDS, s3_server.client()
    while len(steps(bucket, folder)) < 2:
        assert time.monotonic() < until, logs(nodes)
        assert all(node.process.poll() is None for node in nodes), logs(nodes)
        time.sleep(0.05)


def steps(client: Any, folder: Path) -> set[str]:
    """Return the folders of the checkpoints."""
    prefix = f"{folder.name}/checkpoints/u-1/"
    found = client.list_objects_v2(Bucket="adapters", Prefix=prefix).get("Contents", [])
    return {item["Key"].removeprefix(prefix).split("/")[0] for item in found}


def published(s3_server: S3Server, folder: Path) -> str:
    """Return the digest of the adapter's weights; its settings name the base, which is another folder's each time."""
    body = s3_server.client().get_object(Bucket="adapters", Key=f"{folder.name}/out/manifest.json")["Body"]
    return str(json.loads(body.read())["files"]["adapter_model.safetensors"]["sha256"])


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
    _, other_device = nodes[-1].ranks()
    os.kill(other_device, signal.SIGKILL)


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
def undisturbed() -> dict[tuple[int, int], str]:
    """What a run of so many nodes and devices publishes where nobody disturbs it."""
    return {}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_run_that_loses_a_process_goes_on_to_the_same_adapter(
    name: str,
    tmp_path: Path,
    run_file: Run,
    s3_server: S3Server,
    undisturbed: dict[tuple[int, int], str],
) -> None:
    nodes, devices, disturb, codes = CASES[name]
    cluster = Nodes(tmp_path, run_file, SPEC, nodes=nodes, devices=devices)
    begun = cluster.start()
    trains(s3_server, tmp_path, begun)
    disturb(begun)
    at = time.monotonic()
    assert finish(begun, SECONDS) == codes, logs(begun)
    assert time.monotonic() - at < 30
    tells_who_was_told(begun, codes)
    again = cluster.start()
    assert finish(again, SECONDS) == [0] * nodes, logs(again)
    assert "Resuming from the checkpoint of step" in again[0].log.read_text()
    found = published(s3_server, tmp_path)
    if (nodes, devices) not in undisturbed:
        for key in keys_below(s3_server, f"{tmp_path.name}/out/"):
            s3_server.client().delete_object(Bucket="adapters", Key=key)
        assert finish(cluster.start("u-2"), SECONDS) == [0] * nodes
        undisturbed[nodes, devices] = published(s3_server, tmp_path)
    assert found == undisturbed[nodes, devices]


def tells_who_was_told(nodes: list[Node], codes: list[int]) -> None:
    """Check what the logs of a run say that ended as one node was told to."""
    if sorted(codes) != sorted([LOST, TOLD]):
        return
    first, second = said = [node.log.read_text() for node in nodes]
    assert f"\nTold to stop: node {codes.index(TOLD)} was told to.\n" in said[codes.index(LOST)]
    assert "\nTold to stop: finishing this step and saving a checkpoint.\n" in said[codes.index(TOLD)]
    assert "\nStopped; the checkpoint is stored.\n" in first
    assert "\nStopped; node 0 stores the checkpoint.\n" in second


@contextmanager
def held(server: S3Server) -> Iterator[None]:
    """Let the storage take its time for what the body does."""
    pid = server.daemon.pid()
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.slow
def test_the_successor_of_a_drained_node_waits_for_that_of_node_0_which_stores_its_checkpoint(
    tmp_path: Path, run_file: Run, s3_server: S3Server
) -> None:
    """Nothing of it counts as a retry: a drained node costs none, and node 0 ends for that one alone."""
    cluster = Nodes(tmp_path, run_file, SPEC, nodes=2, devices=1)
    nodes = cluster.start()
    trains(s3_server, tmp_path, nodes)
    with held(s3_server):
        other_told(nodes)
        assert nodes[1].process.wait(SECONDS) == TOLD
        cluster.again(nodes, nodes[1])
        until = time.monotonic() + SECONDS / 2
        while "has begun without this one" not in nodes[1].log.read_text():
            assert time.monotonic() < until, logs(nodes)
            time.sleep(0.1)
        time.sleep(CAUSE_SECONDS + 1)
        assert [node.process.poll() for node in nodes] == [None, None], logs(nodes)
    assert nodes[0].process.wait(SECONDS) == LOST, logs(nodes)
    cluster.again(nodes, nodes[0])
    assert finish(nodes, SECONDS) == [0, 0], logs(nodes)
    assert "Resuming from the checkpoint of step" in nodes[0].log.read_text()


@pytest.mark.slow
def test_a_node_that_never_comes_is_named(tmp_path: Path, run_file: Run) -> None:
    cluster = Nodes(tmp_path, run_file, SPEC, nodes=2, devices=1)
    cluster.meet_seconds = 6
    first, second = cluster.start()
    second.process.kill()
    assert first.process.wait(SECONDS) == ExitCode.RETRYABLE
    failure = first.said()["failure"]
    assert failure["reason"] == "PeerLost"
    assert failure["message"] == "node 1 of 2 has not come within 0.1 minutes"


@pytest.mark.parametrize("beyond", [0, 1])
def test_a_port_of_node_0_that_is_taken_is_told_with_what_to_do(beyond: int, tmp_path: Path, run_file: Run) -> None:
    cluster = Nodes(tmp_path, run_file, SPEC, nodes=2, devices=1)
    cluster.meet_seconds = 5
    taken: list[socket.socket] = []
    try:
        first, second = cluster.start(taken=lambda port: taken.append(socket.create_server(("", port + beyond))))
        port = taken[0].getsockname()[1]
        assert first.process.wait(60) == ExitCode.RETRYABLE, first.log.read_text()
        second.process.kill()
    finally:
        for each in taken:
            each.close()
    failure = first.said()["failure"]
    assert failure["reason"] == "PeerLost"
    assert failure["message"] == f"node 0 cannot listen on TCP {port}: another process does"
    (remedy,) = failure["remedies"]
    assert "sidecar" in remedy["text"]
    assert "hostNetwork" in remedy["text"]
