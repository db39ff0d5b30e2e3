"""One adapter by several processes, two pods or two devices of one: it is the adapter that one process trains."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from e2e.conftest import CHECKPOINTS, INDEX, LONG, SETTINGS, Launch, checkpointed, resumed

from kit.environment import images, is_existing
from kit.installation import install
from kit.jobs import Job
from kit.kubectl import Kubectl, wait_for
from kit.published import download, list_keys

pytestmark = pytest.mark.slow

ALONE: dict[str, Any] = {
    **LONG,
    # Of all processes together, and the same rows in each step whatever their number. Dropout draws other masks.
    "training": {**LONG["training"], "maxSteps": 150, "gradientAccumulation": 2},
    "lora": {"dropout": 0},
    "resources": {"gpus": 0, "cpu": "400m", "memory": "2Gi", "ephemeralStorage": "2Gi"},
}
TOGETHER: dict[str, Any] = {**ALONE, "resources": {**ALONE["resources"], "nodes": 2}}
TWO_GPUS: dict[str, Any] = {**ALONE, "resources": {**ALONE["resources"], "gpus": 2, "cpu": "800m", "memory": "4Gi"}}


@pytest.fixture(scope="module")
def one_process() -> dict[str, Any]:
    """The adapter that one process trains, once it is known."""
    return {}


def weights(s3: Any, job: Job, folder: Path) -> dict[str, Any]:
    download(s3, job.manifest["spec"]["output"]["uri"], folder / job.name)
    return load_file(folder / job.name / "adapter_model.safetensors")


@pytest.fixture
def alone(launch: Launch, s3: Any, folder: Path, one_process: dict[str, Any]) -> dict[str, Any]:
    """The weights of one process."""
    if not one_process:
        job = launch("alone", **ALONE)
        job.wait_phase("Succeeded", timeout=400)
        one_process |= weights(s3, job, folder)
    return one_process


def assert_same(mine: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert mine.keys() == theirs.keys()
    assert max(float((mine[name] - theirs[name]).abs().max()) for name in mine) <= 1e-5
    assert max(float(tensor.abs().max()) for tensor in mine.values()) > 1e-2, "something was trained"


def test_two_pods_of_which_one_is_deleted_train_the_adapter_of_one(
    launch: Launch, kubectl: Kubectl, namespace: str, s3: Any, alone: dict[str, Any], folder: Path
) -> None:
    job = launch("together", **TOGETHER)
    step = checkpointed(job)
    assert job.status["pods"] == "2/2"
    (other,) = [pod for pod in job.pods("train") if pod["metadata"]["labels"][INDEX] == "1"]
    kubectl.delete("pod", other["metadata"]["name"], namespace, wait=False)
    status = job.wait_phase("Succeeded", timeout=500)

    assert_same(weights(s3, job, folder), alone)
    assert status["attempts"] == 2, job.story()
    history = [(attempt["attempt"], attempt["index"], attempt.get("reason")) for attempt in status["attemptHistory"]]
    assert sorted(history)[2:] == [(2, 0, "Succeeded"), (2, 1, "Succeeded")]
    assert sorted(each[:2] for each in history)[:2] == [(1, 0), (1, 1)]
    assert resumed(job) >= step
    assert (status["resolved"]["devices"], status["resolved"]["parallelism"]) == (2, "DDP")
    assert "checkpoint" not in status
    assert list_keys(s3, f"{CHECKPOINTS}/{namespace}/{job.name}-{job.uid}") == []
    uid = job.uid
    kubectl.delete(job.kind, job.name, namespace)
    name = f"tunery-{uid[:8]}"
    wait_for("its Service to go", lambda: kubectl.get("service", name, namespace) is None, 30)


@pytest.fixture
def simulated(kubectl: Kubectl, environment: dict[str, str]) -> Iterator[None]:
    """The chart with two simulated devices in each pod, and as it was before at the end."""
    if is_existing():
        pytest.skip("GPUs are not simulated on a cluster of yours")
    install(kubectl, images(environment), *SETTINGS, strings=["trainer.env.TUNERY_SIMULATED_DEVICES=2"])
    yield
    install(kubectl, images(environment), *SETTINGS)


def test_two_devices_of_a_pod_train_the_adapter_of_one(
    launch: Launch, s3: Any, alone: dict[str, Any], simulated: None, folder: Path
) -> None:
    job = launch("devices", **TWO_GPUS)
    checkpointed(job)
    (pod,) = job.pods("train")
    assert pod["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "2"
    status = job.wait_phase("Succeeded", timeout=500)
    assert_same(weights(s3, job, folder), alone)
    assert (status["resolved"]["devices"], status["resolved"]["parallelism"]) == (2, "DDP")
    assert status["attempts"] == 1
    assert status["gpuSeconds"] == pytest.approx(2 * status["runSeconds"], abs=2)
    assert "pods" not in status, "there is one"
