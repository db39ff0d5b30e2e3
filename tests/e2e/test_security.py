"""No credential anywhere, and no right to read one."""

from __future__ import annotations

import json

from e2e.conftest import SETTINGS, Launch

from kit.environment import images
from kit.installation import NAMESPACE, install, uninstall
from kit.kubectl import Kubectl, KubectlError, wait_for
from kit.operator.pods import operator_pods
from kit.processes import environment_of, pod_processes
from kit.tenant import s3_secret

SERVICE_ACCOUNT = f"system:serviceaccount:{NAMESPACE}:tunery"


def test_the_operator_cannot_read_secrets(kubectl: Kubectl) -> None:
    for verb in ("get", "list", "watch"):
        try:
            answer = kubectl.run("auth", "can-i", verb, "secrets", "--all-namespaces", "--as", SERVICE_ACCOUNT)
        except KubectlError as error:
            answer = str(error)
        assert "no" in answer.split()[-1]


def test_the_operator_is_not_root_in_a_restricted_namespace(kubectl: Kubectl) -> None:
    namespace = kubectl.get("namespace", NAMESPACE)
    assert namespace is not None
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    pods = operator_pods(kubectl)
    assert pods
    for pod in pods:
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True


def test_the_secret_key_stands_nowhere(
    launch: Launch, kubectl: Kubectl, namespace: str, environment: dict[str, str]
) -> None:
    job = launch("discreet")
    failing = launch("indiscreet", output={"uri": "s3://no-such-bucket/x", "secretRef": {"name": "s3"}})
    job.wait_phase("Succeeded")
    failing.wait_phase("Failed")
    assert_nowhere(environment["AWS_SECRET_ACCESS_KEY"], kubectl, namespace)


def test_a_credential_that_cannot_be_one_is_told_and_stands_nowhere(
    launch: Launch, kubectl: Kubectl, namespace: str, environment: dict[str, str]
) -> None:
    """Libraries quote a value that fits into no header: the parts before and after a line break must not come out."""
    broken = {
        "AWS_SESSION_TOKEN": "FwoGZXIvYXdzEJr-first\nQoJb3JpZ2luX2Vj-second",
        "HF_TOKEN": "hf_firstPart\nsecondPart",
    }
    launched = {}
    for name, value in broken.items():
        secret = s3_secret(namespace, environment, name.lower().replace("_", "-"))
        secret["stringData"][name] = value
        kubectl.apply(secret)
        reference = {"name": secret["metadata"]["name"]}
        blocks = {
            "AWS_SESSION_TOKEN": {"output": {"uri": "s3://adapters/x", "secretRef": reference}},
            "HF_TOKEN": {"model": {"uri": "hf://nobody/nothing", "secretRef": reference}},
        }
        launched[name] = launch(reference["name"], **blocks[name])
    for name, job in launched.items():
        failure = job.wait_phase("Failed")["failure"]
        assert failure["reason"] == "SecretNotFound"
        assert name in failure["message"]
        assert job.name in failure["message"]
        assert "line break" in failure["message"]
    for value in broken.values():
        for part in value.split("\n"):
            assert_nowhere(part, kubectl, namespace)


def assert_nowhere(secret: str, kubectl: Kubectl, namespace: str) -> None:
    """Fail where an object that people read, or a log, holds a secret."""
    kinds = "pods,jobs,configmaps,events,lorajobs.tunery.dev,deployments,replicasets"
    for where in (namespace, NAMESPACE):
        assert secret not in kubectl.run("get", kinds, "-n", where, "-o", "json")
        for pod in kubectl.list("pods", where):
            name = pod["metadata"]["name"]
            assert secret not in kubectl.run("logs", name, "-n", where, "--all-containers")
            assert secret not in json.dumps(pod["spec"])


def test_no_process_has_the_secret_key_in_its_environment(launch: Launch, environment: dict[str, str]) -> None:
    training = {"maxSteps": 400, "learningRate": 1e-3, "batchSize": 2, "gradientAccumulation": 1, "maxLength": 128}
    job = launch("watched", training=training, preflight="Skip")
    job.wait_phase("Training", timeout=200)
    (pod,) = [pod for pod in job.pods("train") if pod["status"]["phase"] == "Running"]
    pids = pod_processes(pod)
    assert pids
    for pid in pids:
        assert environment["AWS_SECRET_ACCESS_KEY"].encode() not in environment_of(pid)


def test_uninstalling_first_blocks_nothing(launch: Launch, kubectl: Kubectl) -> None:
    """Runs last in this file: it uninstalls the operator and installs it again."""
    job = launch("orphan", suspend=True)
    job.wait_phase("Suspended")
    uninstall(kubectl)
    try:
        kubectl.delete("lorajob", "orphan", job.namespace)
        kubectl.delete("namespace", job.namespace, wait=False)
        wait_for("the namespace to go", lambda: kubectl.get("namespace", job.namespace) is None, 90)
    finally:
        install(kubectl, images(kubectl.environment), *SETTINGS)
