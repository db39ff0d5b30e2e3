"""BatchInference on a real node: a file of requests for two models through a server, killed on the way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from e2e.conftest import SERVED_BASE, Train

from kit.jobs import Job
from kit.kubectl import Kubectl, wait_for
from kit.processes import kill
from kit.published import download, list_keys
from kit.serving import Server

pytestmark = pytest.mark.usefixtures("engine", "base")
NAMESPACE = "e2e-batches"
INPUT = f"s3://datasets/{NAMESPACE}/prompts.jsonl"
LINES = 400


@pytest.fixture(scope="module")
def server(kubectl: Kubectl, tenant: str, train: Train) -> Server:
    """A server with one adapter."""
    trained = train("bot", {"team": "batches"})
    secret = {"name": "s3"}
    spec = {
        "model": {"uri": SERVED_BASE, "secretRef": secret},
        "adapterSelector": {"matchLabels": {"team": "batches"}},
        "adapterSecretRef": secret,
        "engine": {"maxRank": 16, "maxAdaptersInBatch": 4, "maxLoadedAdapters": 8, "precision": "Float32"},
        "resources": {"gpus": 0, "cpu": "700m", "memory": "8Gi", "ephemeralStorage": "2Gi"},
    }
    made = {"apiVersion": "tunery.dev/v1alpha1", "kind": "AdapterServer", "metadata": {"name": "desk"}, "spec": spec}
    server = Server(kubectl, made, tenant)
    server.apply()
    trained.wait_phase("Succeeded")
    server.wait_ready()
    server.wait_state("bot", "Served")
    return server


def lines(count: int) -> list[dict[str, Any]]:
    """Return requests for the adapter and for the base in turn; every third names no model."""
    made = []
    for index in range(count):
        model = {0: {"model": "bot"}, 1: {"model": "served"}}.get(index % 3, {})
        body = {**model, "prompt": f"Say number {index}.", "max_tokens": 4, "temperature": 0}
        made.append({"custom_id": f"r-{index}", "method": "POST", "url": "/v1/completions", "body": body})
    return made


def batch(name: str, uri: str = INPUT, **spec: Any) -> dict[str, Any]:
    """Return a BatchInference; keywords are fields of its spec."""
    common: dict[str, Any] = {
        "serverRef": {"name": "desk"},
        "input": {"uri": uri, "secretRef": {"name": "s3"}},
        "output": {"uri": f"s3://adapters/{NAMESPACE}/{name}", "secretRef": {"name": "s3"}, "overwrite": True},
        "defaultModel": "bot",
        "concurrency": 4,
        "resources": {"cpu": "200m", "memory": "512Mi", "ephemeralStorage": "1Gi"},
    }
    metadata = {"name": name}
    return {
        "apiVersion": "tunery.dev/v1alpha1",
        "kind": "BatchInference",
        "metadata": metadata,
        "spec": common | spec,
    }


def put(s3: Any, key: str, text: str) -> str:
    s3.put_object(Bucket="datasets", Key=f"{NAMESPACE}/{key}", Body=text.encode())
    return f"s3://datasets/{NAMESPACE}/{key}"


def text_of(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.mark.slow
def test_every_line_is_answered_once_by_the_version_that_the_manifest_names(
    server: Server, kubectl: Kubectl, s3: Any, tmp_path: Path
) -> None:
    """The pod is killed on the way: the next one goes on, and nothing is lost, doubled or out of order."""
    put(s3, "prompts.jsonl", text_of(lines(LINES)))
    job = Job(kubectl, batch("answers"), NAMESPACE).apply()
    wait_for("some lines", lambda: job.status.get("answered", 0) > 10, 180)
    (pod,) = [pod for pod in job.pods("batch") if pod["status"]["phase"] == "Running"]
    kill(pod, "tunery_server")
    status = job.wait_phase("Succeeded", timeout=400)
    assert status["attempts"] == 2, job.story()
    assert (status["lines"], status["answered"], status.get("errors", 0)) == (LINES, LINES, 0)
    assert job.condition("OutputUploaded")["status"] == "True"

    manifest = download(s3, status["output"]["uri"], tmp_path / "out")
    rows = [json.loads(line) for line in (tmp_path / "out" / "output.jsonl").read_text().splitlines()]
    assert [row["custom_id"] for row in rows] == [f"r-{index}" for index in range(LINES)]
    digest = Job(kubectl, {"kind": "LoRAJob", "metadata": {"name": "bot"}}, NAMESPACE).status["adapter"]
    version = f"bot@{digest['manifestSha256'][:12]}"
    assert {row["response"]["body"]["model"] for row in rows} == {version, "served"}
    answered = {each["name"]: each for each in manifest["lineage"]["answeredBy"]}
    assert answered["bot"]["manifestSha256"] == digest["manifestSha256"]
    assert sum(each["lines"] for each in answered.values()) == LINES
    same = server.ask("bot", prompt="Say number 0.", max_tokens=4)
    assert rows[0]["response"]["body"]["choices"][0]["text"] == same.body["choices"][0]["text"]
    assert list_keys(s3, f"s3://adapters/tunery-checkpoints/{NAMESPACE}/answers-{job.uid}") == []


def test_a_bad_line_is_named_before_the_first_request(server: Server, kubectl: Kubectl, s3: Any) -> None:
    del server
    rows = lines(20)
    rows[6]["url"] = "/v1/files"
    rows[11]["body"]["model"] = "nobody"
    uri = put(s3, "bad.jsonl", text_of(rows) + "{not json}\n")
    job = Job(kubectl, batch("bad", uri), NAMESPACE).apply()
    status = job.wait_phase("Failed", timeout=180)
    assert status["failure"]["reason"] == "InputInvalid", job.story()
    for word in ("line 7", "/v1/files", "line 12", "nobody", "line 21"):
        assert word in status["failure"]["message"], status["failure"]
    assert status["attempts"] == 1, "no retry can mend it"
    put(s3, "bad.jsonl", text_of(lines(20)))
    job.retry("1")
    assert job.wait_phase("Succeeded", timeout=180)["answered"] == 20


@pytest.mark.slow
def test_a_batch_waits_for_its_server(server: Server, kubectl: Kubectl) -> None:
    job = Job(kubectl, batch("early", serverRef={"name": "later"}), NAMESPACE).apply()
    job.wait_phase("Waiting", timeout=60)
    assert "later" in job.condition("InputsReady")["message"]
    kubectl.delete(job.kind, job.name, NAMESPACE)
