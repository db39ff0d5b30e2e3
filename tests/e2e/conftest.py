"""The product, installed by Helm on a real node with the real images; one tenant namespace for each test."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kit import held_out
from kit.environment import cluster_environment, engine_settings, images
from kit.installation import install
from kit.jobs import Job
from kit.kubectl import Kubectl, wait_for
from kit.operator.pods import OperatorRecord
from kit.published import list_keys, s3_client, split_uri
from kit.tenant import create_tenant
from kit.tiny_models import write_chat_model
from tools.cluster.tiny import make_tiny_model

TINY = "s3://models/tiny"
ROWS = "s3://datasets/e2e/rows.jsonl"
PAIRS = "s3://datasets/e2e/pairs.jsonl"
RATINGS = "s3://datasets/e2e/ratings.jsonl"
CHECKPOINTS = "s3://adapters/tunery-checkpoints"
REPORT_FILES = {"data-report.json", "data-report.md"}

SETTINGS = ("preflight.resources.cpu=800m",)
"""Of the chart: as much as a job of the tests asks for, so that two pods of any kind work side by side on two cores."""

ENGINE = os.environ.get("TUNERY_ENGINE", "stand-in")
"""Of servers: transformers and PEFT behind vLLM's API, or `vllm`."""
SERVED_BASE = "s3://models/served"
RESOURCES = {"gpus": 0, "cpu": "500m", "memory": "3Gi", "ephemeralStorage": "2Gi"}
"""Of a job that trains beside the server."""

Launch = Callable[..., Job]
Train = Callable[..., Job]


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    return cluster_environment()


@pytest.fixture(scope="session")
def kubectl(environment: dict[str, str]) -> Kubectl:
    return Kubectl(environment)


@pytest.fixture(scope="session")
def s3(environment: dict[str, str]) -> Any:
    return s3_client(environment)


@pytest.fixture(scope="session", autouse=True)
def operator(kubectl: Kubectl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OperatorRecord]:
    """Follow the operator through the whole run; at its end, fail on any restart of its own and any error in its log.

    A test that kills the operator's process says so to the record.
    """
    record = OperatorRecord(kubectl, tmp_path_factory.mktemp("operator"))
    record.start()
    yield record
    record.stop()
    assert record.starts(), "no operator was seen in the whole run"
    assert not (faults := record.faults()), "\n".join(faults)


@pytest.fixture(scope="session", autouse=True)
def installed(operator: OperatorRecord, kubectl: Kubectl, environment: dict[str, str]) -> None:
    install(kubectl, images(environment), *SETTINGS)


@pytest.fixture(scope="session", autouse=True)
def inputs(s3: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A tiny model, good rows, also as preferences, and rows of which line 17 is bad."""
    folder = make_tiny_model(tmp_path_factory.mktemp("model") / "tiny")
    for path in folder.iterdir():
        s3.upload_file(str(path), "models", f"tiny/{path.name}")
    rows = [chat(index) for index in range(80)]
    _put(s3, "e2e/rows.jsonl", rows)
    _put(s3, "e2e/pairs.jsonl", [pair(index) for index in range(80)])
    _put(s3, "e2e/ratings.jsonl", [rating(index) for index in range(80)])
    _put(s3, "e2e/line-17.jsonl", [*rows[:16], {"messages": [{"role": "user", "content": None}]}, *rows[17:]])


def pair(index: int) -> dict[str, Any]:
    """Return a question with its answer and with a refusal, which a tiny model tells apart in a few steps."""
    ask, answer = (turn["content"] for turn in chat(index)["messages"])
    return {"prompt": ask, "chosen": answer, "rejected": f"Sorry, I do not know that. ({index})"}


def rating(index: int) -> dict[str, Any]:
    """Return a question with a good or a bad answer, in turn."""
    row, good = pair(index), index % 2 == 0
    return {"prompt": row["prompt"], "completion": row["chosen" if good else "rejected"], "label": good}


def chat(index: int) -> dict[str, Any]:
    """Return a row that a tiny model can learn: the answer repeats the question's number."""
    return {
        "messages": [
            {"role": "user", "content": f"Say number {index % 10}."},
            {"role": "assistant", "content": f"Number {index % 10}, number {index % 10}. ({index})"},
        ]
    }


def _put(s3: Any, key: str, rows: list[dict[str, Any]]) -> None:
    body = "\n".join(json.dumps(row) for row in rows).encode()
    s3.put_object(Bucket="datasets", Key=key, Body=body)


@pytest.fixture
def namespace(request: pytest.FixtureRequest, kubectl: Kubectl, environment: dict[str, str]) -> Iterator[str]:
    """A tenant of its own; deleting it must never hang, and nobody waits for it."""
    name = "e2e-" + re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).strip("-")[:50].rstrip("-")
    kubectl.delete("namespace", name)
    create_tenant(kubectl, name, environment)
    yield name
    kubectl.delete("namespace", name, wait=False)


@pytest.fixture
def launch(kubectl: Kubectl, namespace: str) -> Launch:
    """Return a function that applies a LoRAJob of the tiny model; keywords replace blocks of its spec."""

    def apply(name: str, **blocks: Any) -> Job:
        return Job(kubectl, lorajob(namespace, name, **blocks), namespace).apply()

    return apply


def lorajob(namespace: str, name: str, **blocks: Any) -> dict[str, Any]:
    """Return a LoRAJob of a few seconds; keywords replace blocks of its spec."""
    secret = {"name": "s3"}
    spec: dict[str, Any] = {
        "model": {"uri": TINY, "secretRef": secret},
        "dataset": {"uri": ROWS, "secretRef": secret},
        "method": "LoRA",
        "training": {
            "maxSteps": 20,
            "learningRate": 1e-2,
            "batchSize": 2,
            "gradientAccumulation": 1,
            "maxLength": 128,
        },
        "output": {"uri": f"s3://adapters/{namespace}/{name}", "secretRef": secret, "overwrite": True},
        "resources": {"gpus": 0, "cpu": "800m", "memory": "3Gi", "ephemeralStorage": "2Gi"},
    }
    return {
        "apiVersion": "tunery.dev/v1alpha1",
        "kind": "LoRAJob",
        "metadata": {"name": name},
        "spec": spec | blocks,
    }


def adaptermerge(namespace: str, name: str, **spec: Any) -> dict[str, Any]:
    """Return an AdapterMerge; keywords are fields of its spec."""
    common: dict[str, Any] = {
        "output": {"uri": f"s3://adapters/{namespace}/{name}", "secretRef": {"name": "s3"}, "overwrite": True},
        "resources": {"gpus": 0, "cpu": "800m", "memory": "3Gi", "ephemeralStorage": "2Gi"},
    }
    return {
        "apiVersion": "tunery.dev/v1alpha1",
        "kind": "AdapterMerge",
        "metadata": {"name": name},
        "spec": common | spec,
    }


LONG: dict[str, Any] = {
    "training": {"maxSteps": 400, "learningRate": 1e-3, "batchSize": 2, "gradientAccumulation": 1, "maxLength": 128},
    "checkpoint": {"everySteps": 25},
    "preflight": "Skip",
}
"""Blocks of a LoRAJob that trains for about a minute, with checkpoints."""


def checkpointed(job: Job, timeout: float = 240) -> int:
    """Return the step of the first checkpoint that the status reports."""
    return wait_for(f"{job.name}: a checkpoint", lambda: job.status.get("checkpoint", {}).get("step"), timeout)


INDEX = "batch.kubernetes.io/job-completion-index"
"""The label of a pod which says its number among those that train together."""


def running_pod(job: Job) -> dict[str, Any]:
    """Return the one pod of the job that trains now."""
    (pod,) = [pod for pod in job.pods("train") if pod["status"]["phase"] == "Running"]
    return pod


def resumed(job: Job) -> int:
    """Return the step of the checkpoint that the pod which succeeded went on from, by its log; 0: from the start.

    Of several pods that train together, the first.
    """
    first = [pod for pod in job.pods("train") if pod["metadata"]["labels"].get(INDEX, "0") == "0"]
    (done,) = [pod for pod in first if pod["status"]["phase"] == "Succeeded"]
    log = job.kubectl.run("logs", done["metadata"]["name"], "-n", job.namespace, "-c", "trainer")
    found = re.search(r"Resuming from the checkpoint of step (\d+)", log)
    return int(found[1]) if found else 0


def report_place(job: Job) -> str:
    """Return where the data report of a job lies while nothing of it is published."""
    return f"s3://adapters/tunery-reports/{job.namespace}/{job.name}-{job.uid}"


def plain_peft_loss(s3: Any, adapter: Path, model: str = TINY, rows: str = ROWS) -> float:
    """Return the loss of rows with a downloaded adapter on its base model, by plain transformers and PEFT alone."""
    place = adapter.with_name(f"{adapter.name}-inputs")
    folder, file = place / "model", place / "rows.jsonl"
    folder.mkdir(parents=True)
    bucket, prefix = split_uri(model)
    for key in list_keys(s3, model):
        s3.download_file(bucket, f"{prefix}/{key}", str(folder / key))
    s3.download_file(*split_uri(rows), str(file))
    return held_out.plain_peft_loss(folder, adapter, file)


@pytest.fixture(scope="module")
def engine(installed: None, kubectl: Kubectl, environment: dict[str, str]) -> Iterator[None]:
    """The chart with the engine's image, and as it was before at the end."""
    install(kubectl, images(environment), *SETTINGS, *engine_settings(environment, ENGINE))
    yield
    install(kubectl, images(environment), *SETTINGS)


@pytest.fixture(scope="module")
def base(s3: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base that is served, on this machine's disk too: vLLM on CPUs knows no heads smaller than 32."""
    folder = write_chat_model(tmp_path_factory.mktemp("served"), initializer_range=0.1, head_dim=32)
    for path in folder.iterdir():
        s3.upload_file(str(path), "models", f"served/{path.name}")
    return folder


@pytest.fixture(scope="module")
def tenant(request: pytest.FixtureRequest, kubectl: Kubectl, environment: dict[str, str]) -> Iterator[str]:
    """The module's NAMESPACE, new."""
    namespace: str = request.module.NAMESPACE
    kubectl.delete("namespace", namespace)
    create_tenant(kubectl, namespace, environment)
    yield namespace
    kubectl.delete("namespace", namespace, wait=False)


@pytest.fixture(scope="module")
def train(kubectl: Kubectl, tenant: str) -> Train:
    """Return a function that trains an adapter; keywords replace blocks of its spec."""

    def apply(name: str, labels: dict[str, str] | None = None, **blocks: Any) -> Job:
        quick = {
            "model": {"uri": SERVED_BASE, "secretRef": {"name": "s3"}},
            "preflight": "Skip",
            "resources": RESOURCES,
            "lora": {"rank": 8},
        }
        manifest = lorajob(tenant, name, **(quick | blocks))
        manifest["metadata"]["labels"] = labels or {}
        job = Job(kubectl, manifest, tenant)
        kubectl.delete(job.kind, job.name, tenant)
        return job.apply()

    return apply


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "downloaded"
