"""What may change in an object that exists, and what only while no pod runs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

import pytest

from tunery_api.kinds import Kind
from tunery_api.lorasweep import LoRASweepSpec

from kit.api_server import ApiServer
from kit.kubectl import KubectlError
from kit.validations import ONE, Spec, manifest


class Edited:
    """An object that a test edits."""

    def __init__(self, server: ApiServer, namespace: str, kind: Kind, name: str, **spec: Any) -> None:
        self._patch = partial(server.patch, kind.value, name, namespace=namespace)
        server.create(manifest(kind, spec, name), namespace)

    def change(self, spec: Spec, *, dry_run: bool = False) -> Spec:
        """Change fields, to None to remove them; return the new spec."""
        changed: Spec = self._patch({"spec": spec}, dry_run=dry_run)["spec"]
        return changed

    def rejects(self, spec: Spec, message: str) -> None:
        """Assert that a change is rejected with a message that matches."""
        with pytest.raises(KubectlError, match=message):
            self.change(spec)

    def set_running(self, status: str) -> None:
        """Say whether a pod runs."""
        condition = {"type": "Running", "status": status, "reason": "X", "lastTransitionTime": "2026-01-31T12:00:00Z"}
        self._patch({"status": {"conditions": [condition]}}, status=True)


Make = Callable[..., Edited]


@pytest.fixture(scope="module")
def make(api_server: ApiServer, namespace: str) -> Make:
    """Create an object of a kind, with a name and fields of its spec."""
    return partial(Edited, api_server, namespace)


@pytest.fixture(scope="module")
def objects(make: Make) -> dict[Kind, Edited]:
    """An object of each kind, of which no test keeps a change."""
    specs: dict[Kind, Spec] = {
        Kind.LORAJOB: {"training": {"seed": 1}},
        Kind.LORASWEEP: {"parameters": [{"path": "lora.rank", "choices": ["4", "8"]}], "parallelTrials": 4},
        Kind.ADAPTERSERVER: {},
        Kind.BATCHINFERENCE: {},
    }
    return {kind: make(kind, "unchanged", **spec) for kind, spec in specs.items()}


@pytest.mark.parametrize(
    ("kind", "change", "field"),
    [
        (Kind.LORAJOB, {"training": {"seed": 2}}, "training"),
        (Kind.LORAJOB, {"training": None}, "training"),
        (Kind.LORAJOB, {"lora": {"rank": 4}}, "lora"),
        (Kind.LORAJOB, {"resources": {"gpus": 1}}, "resources.gpus"),
        (Kind.LORAJOB, {"resources": {"nodes": 2}}, "resources.nodes"),
        (Kind.LORAJOB, {"resources": {"cpu": "8"}}, "resources.cpu"),
        (Kind.BATCHINFERENCE, {"resources": {"cpu": "4"}}, "resources.cpu"),
        (Kind.BATCHINFERENCE, {"input": {"uri": "s3://data/other.jsonl"}}, "input"),
        (Kind.BATCHINFERENCE, {"serverRef": {"name": "other"}}, "serverRef"),
        (Kind.BATCHINFERENCE, {"maxErrors": 7}, "maxErrors"),
        (Kind.ADAPTERSERVER, {"model": {"uri": "s3://models/other"}}, "model"),
        (Kind.ADAPTERSERVER, {"model": {"servedName": "other"}}, "model"),
    ],
)
def test_a_field_is_final(objects: dict[Kind, Edited], kind: Kind, change: Spec, field: str) -> None:
    objects[kind].rejects(change, rf"{field} cannot be changed\. Fix: delete the {kind} and apply it again")


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        (Kind.LORAJOB, {"suspend": True, "ttlSecondsAfterFinished": 5, "activeDeadlineSeconds": 60}),
        (Kind.BATCHINFERENCE, {"suspend": True, "activeDeadlineSeconds": 60}),
        (Kind.BATCHINFERENCE, {"retries": 1, "resources": {"memory": "4Gi"}}),
        (Kind.ADAPTERSERVER, {"adapters": [ONE | {"name": "one"}], "replicas": 0}),
        (Kind.ADAPTERSERVER, {"adapterSelector": {"matchLabels": {"team": "support"}}}),
        (Kind.ADAPTERSERVER, {"engine": {"maxRank": 320, "args": ["--seed=1"]}, "resources": {"gpus": 0}}),
        (Kind.ADAPTERSERVER, {"rollout": {"maxSurge": 0, "maxUnavailable": 1}}),
        (Kind.ADAPTERSERVER, {"aliases": [{"name": "one:prod", "targets": [{"adapter": "one"}]}]}),
        (Kind.ADAPTERSERVER, {"access": {"apiKeysSecretRef": {"name": "k"}}}),
    ],
)
def test_a_field_may_change(objects: dict[Kind, Edited], kind: Kind, change: Spec) -> None:
    assert objects[kind].change(change, dry_run=True).items() >= change.items()


OF_A_SWEEP: Final[Spec] = {
    "template": {"method": "DoRA"},
    "preset": None,
    "parameters": [{"path": "lora.rank", "choices": ["4", "16"]}],
    "initial": [{"lora.rank": 8}],
    "warmStartFrom": [{"name": "earlier"}],
    "objective": {"tolerance": 0.01},
    "sampler": {"type": "Random"},
    "pruner": {"type": "None"},
    "seed": 1,
    "maxTrials": 1,
    "parallelTrials": 8,
    "maxFailedTrials": 9,
    "stopAfterTrialsWithoutImprovement": 5,
    "budget": {"gpuSeconds": 5},
    "activeDeadlineSeconds": 60,
    "preflight": "Every",
    "final": {"training": {"epochs": 3}},
    "keepAdapters": 2,
    "output": {"uri": "s3://adapters/other"},
    "suspend": True,
    "ttlSecondsAfterFinished": 60,
}
MUTABLE_OF_A_SWEEP: Final = {
    "activeDeadlineSeconds",
    "budget",
    "maxFailedTrials",
    "maxTrials",
    "parallelTrials",
    "stopAfterTrialsWithoutImprovement",
    "suspend",
    "ttlSecondsAfterFinished",
}
"""As docs/sweeps.md lists them: all else is final."""


def test_every_field_of_a_sweep_is_tried() -> None:
    assert OF_A_SWEEP.keys() == {field.alias for field in LoRASweepSpec.model_fields.values()}


@pytest.mark.parametrize("field", OF_A_SWEEP)
def test_only_the_listed_fields_of_a_sweep_may_change(objects: dict[Kind, Edited], field: str) -> None:
    change = {field: OF_A_SWEEP[field]}
    if field in MUTABLE_OF_A_SWEEP:
        assert objects[Kind.LORASWEEP].change(change, dry_run=True)[field] == OF_A_SWEEP[field]
    else:
        objects[Kind.LORASWEEP].rejects(change, f"{field} cannot be changed")


AT_REST: Final[list[Spec]] = [
    {"retries": 5},
    {"scheduling": {"priorityClassName": "low"}},
    {"scheduling": {"nodeSelector": {"pool": "b"}}},
    {"scheduling": None},
    {"resources": {"memory": "48Gi"}},
    {"resources": {"memory": "48Gi", "ephemeralStorage": "90Gi", "nodes": 1}},
]
POOL: Final = {"nodeSelector": {"pool": "a"}}


@pytest.mark.parametrize("running", ["False", "Unknown", None])
def test_settings_of_the_next_pod_may_change_while_none_runs(make: Make, running: str | None) -> None:
    job = make(Kind.LORAJOB, f"rests-{str(running).lower()}", scheduling=POOL)
    if running is not None:
        job.set_running(running)
    for change in [*AT_REST, {"resources": None}]:
        job.change(change)


def test_settings_of_the_next_pod_are_fixed_while_one_runs(make: Make) -> None:
    job = make(Kind.LORAJOB, "runs", scheduling=POOL, resources={"cpu": "2"})
    job.set_running("True")
    for change in AT_REST:
        job.rejects(change, r"cannot be changed while a pod runs\. Fix: set suspend: true, wait for phase")
    job.change({"suspend": True, "activeDeadlineSeconds": 60})
    job.set_running("False")
    job.change({"resources": {"memory": "48Gi"}, "suspend": False})


def test_quotes_of_a_quantity_are_no_change(make: Make) -> None:
    job = make(Kind.LORAJOB, "quoted", resources={"cpu": "2", "memory": "8589934592"})
    job.set_running("True")
    job.change({"resources": {"cpu": 2, "memory": 8589934592}})
    job.change({"resources": {"cpu": "2", "memory": "8589934592"}})
    for cpu in (3, "3", "2.5", None):
        job.rejects({"resources": {"cpu": cpu}}, r"resources\.cpu cannot be changed. Fix: delete")
    for memory in (8589934591, "8G"):
        job.rejects({"resources": {"memory": memory}}, r"resources\.memory cannot be changed while a pod runs")


def test_a_stop_is_final(make: Make) -> None:
    job = make(Kind.LORAJOB, "stops")
    job.set_running("True")
    for wrong in ("", " \n", "x" * 257):
        job.rejects({"stop": wrong}, r"spec\.stop")
    job.rejects({"onStop": "Keep"}, r"spec\.onStop")
    job.change({"stop": "gut genug: ÄÖ" + "ü" * 243, "onStop": "Discard"})
    for other in ("another reason", None):
        job.rejects({"stop": other}, "stop is final and can be neither changed nor removed")
    for on_stop in ("Publish", None):
        job.change({"onStop": on_stop, "suspend": True})
    make(Kind.LORAJOB, "stopped-before", stop="only to be looked at")
