"""AdapterServer on a real node: from LoRAJobs to answers, and whatever happens to it on the way.

The engine is the one that TUNERY_ENGINE names: `stand-in` (transformers and PEFT behind vLLM's API, in `make test`) or
`vllm` (`make test-serving`). What is the same in both is told by tests/integration/server/engine/test_contract.py.
"""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from e2e.conftest import ENGINE, SERVED_BASE, Train

from kit.jobs import Job
from kit.kubectl import Kubectl, wait_for
from kit.operator.pods import OperatorRecord, operator_pods
from kit.processes import PROC, kill, pod_processes
from kit.published import download, list_keys, split_uri
from kit.serving import CHOSEN, Server, storage_standing_still, traffic
from kit.truth import GATEWAY, LATE_SECONDS, SILENT_SECONDS, held_by_engine, watched

pytestmark = pytest.mark.usefixtures("engine", "base")
NAMESPACE = "e2e-serving"
LABEL = {"team": "support"}
PROMPT = "Say number 4. Number 4, number 4. The answer repeats the number of the question."
SECONDS_TO_ANSWER = 10
SECONDS_TO_KEY = 90
"""Until what is new in a Secret is known to a gateway: the kubelet's own time, and the gateway's."""
TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def server(kubectl: Kubectl, tenant: str, train: Train) -> Server:
    """A server with one adapter by reference, and a selector that nothing has the label of yet."""
    first = train("first")
    manifest = {
        "apiVersion": "tunery.dev/v1alpha1",
        "kind": "AdapterServer",
        "metadata": {"name": "support"},
        "spec": {
            "model": {"uri": SERVED_BASE, "secretRef": {"name": "s3"}},
            "adapters": [{"name": "first", "loraJobRef": {"name": "first"}}],
            "adapterSelector": {"matchLabels": LABEL},
            "adapterSecretRef": {"name": "s3"},
            "engine": {"maxRank": 16, "maxAdaptersInBatch": 4, "maxLoadedAdapters": 8, "precision": "Float32"},
            "resources": {"gpus": 0, "cpu": "700m", "memory": "8Gi", "ephemeralStorage": "2Gi"},
        },
    }
    server = Server(kubectl, manifest, tenant)
    server.apply()
    first.wait_phase("Succeeded")
    server.wait_ready()
    server.wait_state("first", "Served")
    return server


def plain_logprobs(model: Path, adapter: Path | None) -> list[float]:
    """Return what plain transformers and PEFT say of PROMPT."""
    script = Path(__file__).with_name("plain_peft_logprobs.py")
    command = [sys.executable, str(script), str(model), str(adapter or "-"), PROMPT]
    told = subprocess.run(command, env=os.environ | {"HF_HUB_OFFLINE": "1"}, check=True, capture_output=True, text=True)
    found: list[float] = json.loads(told.stdout)
    return found


def farthest(one: list[float], other: list[float]) -> float:
    """Return the largest difference of two lists of one length."""
    assert len(one) == len(other)
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def version(server: Server, job: Job) -> str:
    """Return the engine's name of what a job has published."""
    return f"{job.name}@{job.status['adapter']['manifestSha256'][:12]}"


def test_what_a_job_trained_is_what_is_answered(
    server: Server, train: Train, base: Path, s3: Any, tmp_path: Path
) -> None:
    """The log-probabilities of the whole prompt are PEFT's, the base's stay the base's, and all are one API."""
    first = train_known(server, "first")
    download(s3, first.status["adapter"]["uri"], tmp_path / "first")
    ours, plain = server.prompt_logprobs("first", PROMPT), server.prompt_logprobs("served", PROMPT)
    assert farthest(ours, plain_logprobs(base, tmp_path / "first")) < TOLERANCE
    assert farthest(plain, plain_logprobs(base, None)) < TOLERANCE
    assert farthest(ours, plain) > 10 * TOLERANCE, "they can be told apart"
    reply = server.ask("first")
    assert (reply.model, reply.headers[CHOSEN]) == (version(server, first), version(server, first))
    assert server.ask(version(server, first)).status == 200
    assert CHOSEN not in server.ask("served").headers
    names = {each["id"] for each in server.request("/v1/models").body["data"]}
    assert {"served", "first"} <= names


def train_known(server: Server, name: str) -> Job:
    """Return a LoRAJob that is there."""
    manifest = {"kind": "LoRAJob", "metadata": {"name": name}}
    return Job(server.kubectl, manifest, server.namespace)


def test_a_label_is_enough_to_be_answered_and_to_be_answered_no_more(server: Server, train: Train) -> None:
    job = train("labelled", LABEL)
    assert server.ask("labelled").status == 404
    job.wait_phase("Succeeded")
    succeeded = time.monotonic()
    reply = server.wait_answer("labelled")
    assert time.monotonic() - succeeded < SECONDS_TO_ANSWER
    assert reply.model == version(server, job)
    served = server.wait_state("labelled", "Served")
    assert (served["source"], served["replicas"]) == ("LoRAJob/labelled", "1/1")

    server.kubectl.run("label", "lorajob", "labelled", "-n", server.namespace, "team-")
    unlabelled = time.monotonic()
    server.wait_answer("labelled", 404)
    assert time.monotonic() - unlabelled < SECONDS_TO_ANSWER
    wait_for("its entry to go", lambda: not server.adapter("labelled"), 30)


@pytest.mark.slow
def test_an_update_is_atomic_and_nobody_sees_an_error(server: Server, train: Train) -> None:
    old = version(server, train_known(server, "first"))
    with traffic(server, "first", "served") as seen, watched(server) as truth:
        job = train("first", training=TWICE)
        job.wait_phase("Succeeded")
        new = version(server, job)
        wait_for("the new version", lambda: server.ask("first").model == new, 60)
    assert max(truth.longest.values(), default=0.0) < LATE_SECONDS, truth.longest
    assert new != old
    assert seen.failed == []
    answered = [reply.model for reply in seen.replies if reply.model != "served"]
    assert set(answered) == {old, new}
    assert answered == sorted(answered, key=[old, new].index), "never the old one again"
    wait_for("the status to say so", lambda: served_digest(server).startswith(new.split("@")[1]), 30)


def served_digest(server: Server) -> str:
    """Return the digest that the status says is served under the name first."""
    found = server.adapter("first")
    return str(found.get("manifestSha256", "")) if found.get("state") == "Served" else ""


TWICE = {"maxSteps": 24, "learningRate": 2e-2, "batchSize": 2, "gradientAccumulation": 1, "maxLength": 128}


@pytest.mark.slow
def test_what_must_not_be_served_is_refused_with_its_reason_and_others_are_answered(
    server: Server, train: Train, s3: Any
) -> None:
    """One flipped byte, a rank too high, a method that vLLM does not know, a base of another name, nothing at all."""
    trained = [
        train("big", lora={"rank": 32}),
        train("dora", method="DoRA"),
        train("foreign", model={"uri": SERVED_BASE, "secretRef": {"name": "s3"}, "servedName": "other"}),
    ]
    # Of content that no replica has: what it has verified before, it has by its digest.
    plain = train("plain", training=TWICE)
    plain.wait_phase("Succeeded")
    corrupt = copy_with_a_flipped_byte(s3, plain, f"s3://adapters/{server.namespace}/corrupt")
    named = [{"name": job.name, "loraJobRef": {"name": job.name}} for job in trained]
    uris = [{"name": "corrupt", "uri": corrupt}, {"name": "nothing", "uri": f"s3://adapters/{server.namespace}/no"}]
    with traffic(server, "first", "served") as seen:
        server.patch_spec(adapters=[*server.manifest["spec"]["adapters"], *named, *uris])
        for job in trained:
            job.wait_phase("Succeeded")
        for name, reason, word in (
            ("corrupt", "AdapterCorrupt", "adapter_model.safetensors"),
            ("nothing", "AdapterMissing", "manifest.json"),
            ("big", "RankTooHigh", "maxRank"),
            ("dora", "AdapterUnsupported", "DoRA"),
            ("foreign", "BaseMismatch", "other"),
        ):
            told = server.wait_state(name, "Failed", timeout=60)
            assert told["reason"] == reason, told
            assert word in told["message"], told
            assert told["hint"], told
            refused = server.ask(name)
            assert refused.status in (404, 503), refused
    assert seen.failed == []
    assert server.status["phase"] == "Degraded"
    server.patch_spec(adapters=server.manifest["spec"]["adapters"])
    wait_for("phase Ready", lambda: server.status["phase"] == "Ready", 60)
    server.wait_answer("big", 404)


def copy_with_a_flipped_byte(s3: Any, job: Job, place: str) -> str:
    """Copy what a job has published, with one byte of the weights changed."""
    bucket, prefix = split_uri(job.status["adapter"]["uri"])
    _, target = split_uri(place)
    for key in list_keys(s3, job.status["adapter"]["uri"]):
        body = bytearray(s3.get_object(Bucket=bucket, Key=f"{prefix}/{key}")["Body"].read())
        if key == "adapter_model.safetensors":
            body[-1] ^= 1
        s3.put_object(Bucket=bucket, Key=f"{target}/{key}", Body=bytes(body))
    return place


def test_nothing_of_the_engine_is_reachable(server: Server, kubectl: Kubectl) -> None:
    (pod,) = server.pods("serve")
    assert_only_the_gateways_paths(server)
    others = sockets_of(pod) - {8000}
    # torch's store listens on all addresses, whatever it is told; the NetworkPolicy is what closes that.
    assert ENGINE == "vllm" or others == set(), "the gateway alone listens on the network"
    speaking = [port for port in others if speaks_http(pod["status"]["podIP"], port)]
    assert speaking == [], "what else listens does not speak vLLM's API"
    (policy,) = owned(server, "networkpolicies")
    assert policy["spec"]["ingress"] == [{"ports": [{"port": 8000, "protocol": "TCP"}]}]


def assert_only_the_gateways_paths(server: Server) -> None:
    """Fail where a path of vLLM that the gateway does not have is answered."""
    for path in ("/v1/load_lora_adapter", "/adapters", "/invocations", "/pause", "/tokenize", "/docs", "/openapi.json"):
        for method in ("GET", "POST", "DELETE"):
            assert server.request(path, b"{}", method).status == 404, (method, path)


def speaks_http(address: str, port: int) -> bool:
    """Tell whether a port answers a request of HTTP."""
    connection = http.client.HTTPConnection(address, port, timeout=3)
    try:
        connection.request("GET", "/v1/models")
        return connection.getresponse().status > 0
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def sockets_of(pod: dict[str, Any]) -> set[int]:
    """Return the TCP ports that anything in a pod listens on, on any address, by its network namespace."""
    (process, *_) = pod_processes(pod, ENGINE_PROCESS)
    ports = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{process}/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *_ = line.split()
            address, _, port = local.rpartition(":")
            if state == "0A" and address not in LOOPBACK:
                ports.add(int(port, 16))
    return ports


LOOPBACK = {"0100007F", "00000000000000000000000001000000"}


@pytest.mark.slow
def test_an_engine_that_is_killed_serves_the_same_again(server: Server) -> None:
    (pod,) = server.pods("serve")
    first = version(server, train_known(server, "first"))
    with watched(server) as truth:
        again(server, pod, first)
    assert max(truth.longest.values(), default=0.0) < LATE_SECONDS, truth.longest


def again(server: Server, pod: dict[str, Any], first: str) -> None:
    """Kill the engine of a pod, and return once it serves the same version as before."""
    kill(pod, ENGINE_PROCESS)
    wait_for("the replica to be taken out", lambda: server.ask("first").status != 200, 30)
    assert server.wait_answer("first", timeout=400).model == first
    server.wait_state("first", "Served")
    (same,) = server.pods("serve")
    assert same["metadata"]["uid"] == pod["metadata"]["uid"], "the pod stays, its engine's container restarts"


ENGINE_PROCESS = "engine.sock"
"""A word of the command lines of the engine, whichever it is, and of the shell before it: they end together."""


@pytest.mark.slow
def test_a_gateway_that_is_killed_takes_over_what_the_engine_holds(server: Server) -> None:
    (pod,) = server.pods("serve")
    first = version(server, train_known(server, "first"))
    held = held_by_engine(pod)
    assert held
    assert first in held
    with watched(server) as truth:
        kill(pod, GATEWAY)
        wait_for("the gateway to be gone", lambda: server.ask("first").status != 200, 30)
        assert server.wait_answer("first", timeout=120).model == first
        assert held_by_engine(pod) == held
        server.wait_state("first", "Served")
    # A gateway that is dead tells nobody.
    assert max(truth.longest.values(), default=0.0) < SILENT_SECONDS + LATE_SECONDS, truth.longest


@pytest.mark.slow
def test_without_storage_what_is_loaded_is_answered(server: Server, environment: dict[str, str]) -> None:
    """S3 stands still, as seen by the replica: its requests hang. What is new waits and says so; it is served after."""
    with storage_standing_still(environment):
        server.patch_spec(adapters=[*server.manifest["spec"]["adapters"], {"name": "late", "uri": LATE}])
        for _ in range(20):
            assert server.ask("first").status == 200
            time.sleep(0.5)
        assert server.adapter("late").get("state") in ("Loading", "Waiting", None)
    told = server.wait_state("late", "Failed", timeout=180)
    assert told["reason"] == "AdapterMissing", told
    server.patch_spec(adapters=server.manifest["spec"]["adapters"])


LATE = f"s3://adapters/{NAMESPACE}/late"


@pytest.mark.slow
def test_pods_start_and_serve_without_an_operator(server: Server, kubectl: Kubectl, operator: OperatorRecord) -> None:
    """The operator is scaled to nothing; a pod is deleted; the new one reads what to serve from its ConfigMap."""
    del operator
    (deployment,) = {pod["metadata"]["labels"]["app.kubernetes.io/instance"] for pod in operator_pods(kubectl)}
    scale = ("scale", "deployment", "-n", "tunery-system", "--all", "--replicas")
    kubectl.run(*scale[:-1], "--replicas=0")
    try:
        wait_for("the operator to end", lambda: not operator_pods(kubectl), 60)
        (pod,) = server.pods("serve")
        kubectl.delete("pod", pod["metadata"]["name"], server.namespace)
        reply = server.wait_answer("first", timeout=400)
        assert reply.model == version(server, train_known(server, "first")), deployment
    finally:
        kubectl.run(*scale[:-1], "--replicas=1")
        kubectl.run("rollout", "status", "deployment", "-n", "tunery-system", "--timeout=90s")
    server.wait_state("first", "Served", timeout=60)


@pytest.mark.slow
def test_only_who_has_a_key_is_answered(server: Server, kubectl: Kubectl) -> None:
    """Keys come and go without a restart; a new pod is made once, as the Secret is named."""
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "keys"},
        "stringData": {"web": "a-long-key-of-web"},
    }
    kubectl.apply(secret, namespace=server.namespace)
    server.patch_spec(access={"apiKeysSecretRef": {"name": "keys"}}, rollout={"maxSurge": 0, "maxUnavailable": 1})
    server.wait_answer("first", 401, timeout=400)
    server.key = "a-long-key-of-web"
    server.wait_answer("first", timeout=60)
    assert_only_the_gateways_paths(server)
    (before,) = server.pods("serve")
    kubectl.apply(secret | {"stringData": {"batch": "another-long-key"}}, namespace=server.namespace)
    server.key = "another-long-key"
    server.wait_answer("first", timeout=SECONDS_TO_KEY)
    (pod,) = server.pods("serve")
    assert pod["metadata"]["uid"] == before["metadata"]["uid"], "a key takes no new pod"
    assert restarts(pod) == restarts(before)
    told = {
        "the pod's logs": logs_of(kubectl, pod, server.namespace),
        "the operator's logs": "".join(logs_of(kubectl, each, "tunery-system") for each in operator_pods(kubectl)),
        "status and events": json.dumps([server.status, server.events(), kubectl.list("events", server.namespace)]),
        "metrics": str(server.request("/metrics").body),
        "children": json.dumps(owned(server, "deployments,configmaps,services,pods")),
        "command lines": command_lines(),
    }
    assert "tunery_adapter_requests_total" in told["metrics"]
    assert "tunery_server" in told["command lines"]
    for place, text in told.items():
        assert "a-long-key" not in text, place
        assert "another-long-key" not in text, place


def restarts(pod: dict[str, Any]) -> dict[str, int]:
    """Return how often each container has restarted."""
    return {each["name"]: each["restartCount"] for each in pod["status"]["containerStatuses"]}


def logs_of(kubectl: Kubectl, pod: dict[str, Any], namespace: str) -> str:
    """Return everything that a pod has logged."""
    log = kubectl.run("logs", pod["metadata"]["name"], "-n", namespace, "--all-containers", timeout=60)
    assert log, pod["metadata"]["name"]
    return log


def command_lines() -> str:
    """Return the command lines of all processes of the node."""
    found = []
    for path in PROC.glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended
            found.append(path.read_bytes().decode(errors="replace"))
    return "\n".join(found)


def test_deletion_takes_everything_but_the_adapters(server: Server, kubectl: Kubectl, s3: Any) -> None:
    kubectl.delete(server.kind, server.name, server.namespace)
    kinds = "deployments,configmaps,services,poddisruptionbudgets,networkpolicies,pods"
    wait_for("everything to go", lambda: not owned(server, kinds), 120)
    assert list_keys(s3, train_known(server, "first").status["adapter"]["uri"])


def owned(server: Server, kinds: str) -> list[dict[str, Any]]:
    """Return what there is of a server."""
    selector = f"tunery.dev/kind=adapterserver,tunery.dev/owner={server.name}"
    return server.kubectl.list(kinds, server.namespace, selector)
