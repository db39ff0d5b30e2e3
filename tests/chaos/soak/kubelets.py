"""KWOK plays the kubelets: nodes that do not exist, and pods that run, end and stop as the name of their job says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import yaml

from kit.operator.api import Api, Json
from kit.operator.objects import REPORT, RESULT
from tools.cluster import binaries
from tools.cluster.daemon import Daemon

GOOD: Final = "good"
"""Jobs of this name train to the end."""
FLAKY: Final = "flaky"
"""Each attempt is killed for its memory as often as not."""
BAD: Final = "bad"
"""The trainer says that no retry can help."""
UNFIT: Final = "unfit"
"""Preflight finds bad data."""
ENDLESS: Final = "endless"
"""Trains until somebody stops it."""
FATES: Final = (GOOD, FLAKY, BAD, UNFIT, ENDLESS)

_FATE: Final = '.metadata.labels["tunery.dev/owner"] | split("-") | .[0]'
_ROLE: Final = '.metadata.labels["tunery.dev/role"]'
_FAILURE: Final[Json] = {"failure": {"reason": "DatasetInvalid", "message": "line 1: no such field"}}


class Kubelets:
    """KWOK, and so many nodes."""

    def __init__(self, api: Api, kubeconfig: Path, folder: Path) -> None:
        self._api = api
        self._kubeconfig = kubeconfig
        self._folder = folder
        self._daemon = Daemon("kwok", folder, ends_with_parent=True)

    def start(self, nodes: int = 10) -> None:
        """Start KWOK, and make the nodes."""
        config = self._folder / "kwok.yaml"
        config.write_text(yaml.safe_dump_all([_node_stage(), *_pod_stages()]))
        program = binaries.kwok() / "kwok"
        flags = ["--manage-all-nodes", "--node-lease-duration-seconds=40", "--v=ERROR"]
        self._daemon.start([program, "--config", config, "--kubeconfig", self._kubeconfig, *flags])
        for number in range(nodes):
            self._api.call("POST", "/api/v1/nodes", {"metadata": {"name": f"kwok-{number}"}})

    def stop(self) -> None:
        """Stop KWOK."""
        self._daemon.stop()


def _node_stage() -> Json:
    """Make nodes ready, with room for everything."""
    template = """
{{ $now := Now }}
conditions:
{{ range NodeConditions }}
- lastHeartbeatTime: {{ $now | Quote }}
  lastTransitionTime: {{ $now | Quote }}
  message: {{ .message | Quote }}
  reason: {{ .reason | Quote }}
  status: {{ .status | Quote }}
  type: {{ .type | Quote }}
{{ end }}
allocatable: {cpu: 10k, memory: 100Ti, ephemeral-storage: 1000Ti, pods: 1M}
capacity: {cpu: 10k, memory: 100Ti, ephemeral-storage: 1000Ti, pods: 1M}
phase: Running
"""
    ready = '.status.conditions.[] | select( .type == "Ready" ) | .status'
    return _stage("node-ready", "Node", [_is(ready, "NotIn", "True")], template, 0)


def _pod_stages() -> list[Json]:
    lives = _is(".metadata.deletionTimestamp", "DoesNotExist")
    started = _is(".status.containerStatuses.[].state.running.startedAt", "Exists")
    ends = _is(".metadata.deletionTimestamp", "Exists")
    over = ("Succeeded", "Failed")
    starts = [lives, _is(".status.phase", "In", "Pending")]
    runs = [lives, _is(".status.phase", "In", "Running"), started]
    checks = [*runs, _is(_ROLE, "In", "preflight")]
    trains = [*runs, _is(_ROLE, "In", "train")]
    stops = [ends, _is(".status.phase", "NotIn", *over)]
    gone = [ends, _is(".status.phase", "In", *over), _is(".metadata.finalizers", "DoesNotExist")]
    return [
        _stage("start", "Pod", starts, _running(), 1),
        _stage("checked", "Pod", [*checks, _is(_FATE, "NotIn", UNFIT)], _ended(0, REPORT), 2),
        _stage("unfit", "Pod", [*checks, _is(_FATE, "In", UNFIT)], _ended(64, _FAILURE), 2),
        _stage("trained", "Pod", [*trains, _is(_FATE, "In", GOOD, FLAKY)], _ended(0, RESULT), 20),
        _stage("killed", "Pod", [*trains, _is(_FATE, "In", FLAKY)], _ended(137, None, "OOMKilled"), 10),
        _stage("refused", "Pod", [*trains, _is(_FATE, "In", BAD)], _ended(64, _FAILURE), 10),
        _stage("stopped", "Pod", stops, _ended(143, {}), 3),
        _stage("gone", "Pod", gone, None, 0),
    ]


def _is(key: str, operator: str, *values: str) -> Json:
    return {"key": key, "operator": operator, **({"values": list(values)} if values else {})}


def _stage(name: str, kind: str, selector: list[Json], template: str | None, seconds: int) -> Json:
    """Return what KWOK does to objects that match, after so many seconds and up to as many more."""
    delay = {"durationMilliseconds": 1000 * seconds, "jitterDurationMilliseconds": 2000 * seconds}
    return {
        "apiVersion": "kwok.x-k8s.io/v1alpha1",
        "kind": "Stage",
        "metadata": {"name": name},
        "spec": {
            "resourceRef": {"apiGroup": "v1", "kind": kind},
            "selector": {"matchExpressions": selector},
            "weight": 1,
            "delay": delay,
            "next": {"delete": True} if template is None else {"statusTemplate": template},
        },
    }


def _running() -> str:
    return """
{{ $now := Now }}
phase: Running
startTime: {{ $now | Quote }}
containerStatuses:
- name: trainer
  image: example/trainer:1
  imageID: ""
  ready: true
  restartCount: 0
  started: true
  state: {running: {startedAt: {{ $now | Quote }}}}
"""


def _ended(code: int, message: Json | None, reason: str = "") -> str:
    """Return the status of a pod whose container ended with an exit code and a termination message."""
    said = json.dumps("" if message is None else json.dumps(message))
    return f"""
{{{{ $now := Now }}}}
phase: {"Failed" if code else "Succeeded"}
containerStatuses:
- name: trainer
  image: example/trainer:1
  imageID: ""
  ready: false
  restartCount: 0
  started: false
  state:
    terminated:
      exitCode: {code}
      reason: {reason or ("Error" if code else "Completed")}
      message: {said}
      startedAt: {{{{ or .status.startTime $now | Quote }}}}
      finishedAt: {{{{ $now | Quote }}}}
"""
