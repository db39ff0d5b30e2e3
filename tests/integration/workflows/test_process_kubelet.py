"""The node of these tests ends a pod as a kubelet does."""

from __future__ import annotations

from kit.operator.api import Api, eventually
from kit.operator.stage import make_namespace
from kit.process_kubelet import PLACEMENT, ProcessKubelet
from kit.watch import wait_for_object, watch

IGNORES_SIGTERM = "trap '' TERM; echo started; while :; do sleep 0.1; done"


def test_a_deleted_pod_that_ignores_sigterm_is_killed_after_its_grace_period(api: Api, kubelet: ProcessKubelet) -> None:
    namespace = make_namespace(api)
    container = {"name": "main", "image": "none", "command": ["sh", "-c", IGNORES_SIGTERM]}
    spec = {**PLACEMENT, "containers": [container], "restartPolicy": "Never", "terminationGracePeriodSeconds": 1}
    spec["automountServiceAccountToken"] = False
    account = namespace.path("serviceaccounts", "default")
    eventually("the service account exists, without which no pod is admitted", lambda: api.get(account))
    api.call("POST", namespace.path("pods"), {"metadata": {"name": "deaf"}, "spec": spec})
    path = namespace.path("pods", "deaf")
    assert wait_for_object(api, path, lambda found: found["status"]["phase"] == "Running", 60)
    process = kubelet.find(namespace.name, "deaf")
    eventually("it ignores SIGTERM", lambda: "started" in process.files.log.read_text())
    namespace.delete_pod("deaf")
    events = watch(api, namespace.path("pods"), "fieldSelector=metadata.name%3Ddeaf", 60)
    last = next(found for type_, found in events if type_ == "DELETED")
    (status,) = last["status"]["containerStatuses"]
    assert (status["state"]["terminated"]["exitCode"], last["status"]["phase"]) == (137, "Failed")
    api.delete(f"/api/v1/namespaces/{namespace.name}")
