"""An AdapterServer against a real API server and Kubernetes' own controllers; the tests play kubelets and replicas."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from kit.operator.api import Json, Refused, eventually
from kit.operator.live_server import CHILDREN, SERVERS, Server, served
from kit.operator.objects import RESULT, Namespace, adapterserver, lorajob
from kit.operator.process import OperatorProcess

LABELS = {"team": "support"}
SELECTOR = {"matchLabels": LABELS}
CONTAINERS = {"containers": [{"name": "engine", "image": "i"}]}


@pytest.fixture
def make(namespace: Namespace, operator: OperatorProcess, progress_tls: Path) -> Callable[..., Server]:
    """A maker of servers, such as `make(replicas=2)`."""

    def make(**spec: Any) -> Server:
        eventually("the namespace's ServiceAccount", lambda: namespace.get("serviceaccounts", "default"))
        namespace.apply(adapterserver("support", **spec))
        return Server(namespace, operator, progress_tls)

    return make


def train(namespace: Namespace, name: str, labels: dict[str, str] | None = None) -> None:
    """Bring a LoRAJob to its success."""
    body = lorajob(name, preflight="Skip")
    body["metadata"]["labels"] = labels or {}
    namespace.apply(body)
    adapter = {**RESULT["adapter"], "uri": f"s3://adapters/{name}", "servedName": "tiny"}
    namespace.finish(name, {**RESULT, "adapter": adapter})
    namespace.wait_phase(name, "Succeeded")


def label(namespace: Namespace, name: str, **labels: str | None) -> None:
    namespace.api.patch(namespace.path("lorajobs", name), {"metadata": {"labels": labels}})


def test_from_apply_to_adapters_that_come_and_go(make: Callable[..., Server], namespace: Namespace) -> None:
    server = make(adapterSelector=SELECTOR)
    config = server.child("deployments")["spec"]["template"]["spec"]["volumes"]
    names = {volume["configMap"]["name"] for volume in config if "configMap" in volume}
    eventually("all children", lambda: all(server.children().values()))
    assert server.children() == {
        "deployments": ["support-server"],
        "configmaps": sorted(names),
        "services": ["support-server"],
        "poddisruptionbudgets": ["support-server"],
        "networkpolicies": ["support-server"],
    }
    namespace.wait_phase("support", "Starting", SERVERS)
    [pod] = server.start()
    answer = server.report(pod)
    assert answer["intervalSeconds"] == 5.0
    status = namespace.wait_phase("support", "Ready", SERVERS)
    assert (status["readyText"], status["adaptersText"]) == ("1/1", "0/0")
    assert status["url"] == f"http://support-server.{namespace.name}.svc:8000/v1"

    # It appears by itself once it has succeeded.
    train(namespace, "bot", LABELS)
    train(namespace, "other")
    desired = server.wait_desired("bot")
    [adapter] = desired["adapters"]
    assert adapter["manifestSha256"] == RESULT["adapter"]["manifestSha256"]
    assert adapter["source"] == "LoRAJob/bot"
    server.wait_adapter("bot", "Loading")
    assert server.report(pod)["desired"] == desired
    assert "desired" not in server.report(pod, served("bot")), "the replica knows it by now"
    assert server.wait_adapter("bot", "Served")["replicas"] == "1/1"
    assert namespace.wait_phase("support", "Ready", SERVERS)["adaptersText"] == "1/1"

    # And goes with its label.
    label(namespace, "bot", team=None)
    server.wait_desired()
    assert server.report(pod, served("bot"))["desired"].get("adapters", []) == []
    eventually("it is reported", lambda: server.status["adaptersText"] == "0/0")
    label(namespace, "bot", team="support")
    server.wait_desired("bot")
    namespace.delete("lorajobs", "bot")
    server.wait_desired()

    # All will go with the object, whenever the garbage collector comes by.
    uid = (namespace.get(SERVERS, "support") or {})["metadata"]["uid"]
    found = [item for plural in CHILDREN for item in namespace.api.items(namespace.path(plural))]
    references = [item["metadata"].get("ownerReferences", []) for item in found]
    assert sum([reference["uid"] for reference in each] == [uid] for each in references) == 6


def test_what_is_named_is_waited_for_and_kept_when_its_object_goes(
    make: Callable[..., Server], namespace: Namespace
) -> None:
    server = make(adapters=[{"name": "bot:1", "loraJobRef": {"name": "bot"}}])
    assert "does not exist" in str(server.wait_adapter("bot:1", "Waiting"))
    train(namespace, "bot")
    desired = server.wait_desired("bot:1")
    namespace.delete("lorajobs", "bot")
    namespace.wait_reason("support", "AdaptersKept", SERVERS)
    assert server.desired() == desired
    namespace.patch_spec("support", SERVERS, adapters=[])
    server.wait_desired()


def test_a_job_that_expires_at_once_is_taken_over_before_it_goes(
    make: Callable[..., Server], namespace: Namespace
) -> None:
    server = make(adapters=[{"name": "bot", "loraJobRef": {"name": "bot"}}])
    server.child("configmaps", "adapters")
    namespace.apply(lorajob("bot", preflight="Skip", ttlSecondsAfterFinished=0))
    namespace.finish("bot")
    server.wait_desired("bot")
    eventually("it is gone", lambda: namespace.get("lorajobs", "bot") is None)
    assert [item["name"] for item in server.desired()["adapters"]] == ["bot"]


def test_a_change_rolls_out_and_replicas_alone_make_no_new_pods(
    make: Callable[..., Server], namespace: Namespace
) -> None:
    server = make()
    first = server.child("deployments")
    [pod] = server.start()
    server.report(pod)
    namespace.wait_phase("support", "Ready", SERVERS)
    namespace.patch_spec("support", SERVERS, replicas=2)
    eventually("two are wanted", lambda: server.child("deployments")["spec"]["replicas"] == 2)
    assert server.child("deployments")["spec"]["template"] == first["spec"]["template"]
    assert len(namespace.api.items(namespace.path("replicasets"))) == 1
    for each in server.start(2):
        server.report(each)
    assert namespace.wait_phase("support", "Ready", SERVERS)["readyText"] == "2/2"

    namespace.patch_spec("support", SERVERS, engine={"maxRank": 128}, scheduling={"nodeSelector": {"a": "b"}})
    eventually("a new template", lambda: server.child("deployments")["spec"]["template"] != first["spec"]["template"])
    second = server.child("deployments")
    assert second["spec"]["replicas"] == 2
    assert second["metadata"]["uid"] == first["metadata"]["uid"]
    assert second["spec"]["template"]["spec"]["nodeSelector"] == {"a": "b"}
    assert len(server.children()["configmaps"]) == 3, "the old pods read their own serve.json"
    eventually("the new pods are ready", lambda: _rolled_out(server))
    eventually(
        "it is reported", lambda: namespace.condition("support", "Progressing", SERVERS)["reason"] == "RolledOut"
    )
    namespace.patch_spec("support", SERVERS, scheduling=None)
    eventually(
        "what was said no more is gone",
        lambda: "nodeSelector" not in server.child("deployments")["spec"]["template"]["spec"],
    )
    namespace.patch_spec("support", SERVERS, replicas=0)
    namespace.wait_phase("support", "Stopped", SERVERS)
    eventually("no pods", lambda: not server.pods())


def _rolled_out(server: Server) -> bool:
    """Play the kubelet of all pods; tell whether those of the newest template are the only ones."""
    for pod in server.pods():
        with suppress(Refused):
            server.namespace.serve_pod(pod)
    status = server.child("deployments")["status"]
    return bool(status.get("updatedReplicas") == status.get("replicas") == status.get("availableReplicas") == 2)


def test_a_strangers_deployment_is_left_alone(make: Callable[..., Server], namespace: Namespace) -> None:
    labels = {"app": "strange"}
    spec = {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": CONTAINERS}}
    body = {"metadata": {"name": "support-server"}, "spec": {**spec, "replicas": 0}}
    strange = namespace.api.call("POST", namespace.path("deployments"), body)
    server = make()
    eventually("it is reported", lambda: server.status.get("failure", {}).get("reason") == "NameConflict")
    assert "Deployment support-server exists" in server.status["failure"]["message"]
    assert server.child("deployments")["spec"] == strange["spec"]
    namespace.delete("deployments", "support-server")
    eventually("its own one", lambda: server.child("deployments")["metadata"].get("ownerReferences"))
    eventually("nothing is in the way", lambda: server.status.get("failure", {}).get("reason") != "NameConflict")


def test_a_spec_that_is_wrong_leaves_its_children_alone_until_it_is_mended(
    make: Callable[..., Server], namespace: Namespace
) -> None:
    server = make()
    before = server.child("deployments")
    namespace.patch_spec("support", SERVERS, adapters=[{"name": "tiny", "uri": "s3://adapters/x"}])
    status = namespace.wait_phase("support", "Invalid", SERVERS)
    assert status["failure"]["reason"] == "InvalidSpec"
    assert "spec.adapters[0].name" in status["failure"]["message"]
    assert server.child("deployments")["spec"] == before["spec"]
    namespace.patch_spec("support", SERVERS, adapters=[{"name": "bot", "uri": "s3://adapters/x"}])
    server.wait_desired("bot")
    eventually("it is well", lambda: server.status["phase"] != "Invalid")


@pytest.mark.slow
def test_the_clusters_no_is_told_and_passes(make: Callable[..., Server], namespace: Namespace) -> None:
    namespace.deny("", "services", "no ReconcileContext here")
    server = make()
    eventually("it is reported", lambda: server.status.get("failure", {}).get("reason") == "CreateRefused")
    assert "no ReconcileContext here" in server.status["failure"]["message"]
    namespace.allow()
    server.child("services")
    eventually("it passes", lambda: server.status.get("failure", {}).get("reason") != "CreateRefused")


class TestReports:
    def test_a_pod_that_only_says_it_is_a_replica_is_refused(
        self, make: Callable[..., Server], namespace: Namespace
    ) -> None:
        server = make()
        [pod] = server.start()
        server.report(pod)
        labels = (namespace.get("pods", pod) or {})["metadata"]["labels"]
        foreign = {"labels": {**labels, "app": "foreign"}}
        replica_set = {
            "selector": {"matchLabels": {"app": "foreign"}},
            "template": {"metadata": foreign, "spec": CONTAINERS},
        }
        meta = {"name": "foreign"}
        namespace.api.call(
            "POST", namespace.path("replicasets"), {"metadata": meta, "spec": {**replica_set, "replicas": 1}}
        )
        alone = {"metadata": {"name": "alone", "labels": {**labels, "pod-template-hash": "x"}}, "spec": CONTAINERS}
        namespace.api.call("POST", namespace.path("pods"), alone)
        others = [
            each for each in eventually("a foreign pod", lambda: server.pods()[2:] and server.pods()) if each != pod
        ]
        assert len(others) == 2
        for other in others:
            poster = server.poster(other)
            token = poster.token()
            eventually("it is refused", lambda poster=poster, token=token: poster.post(token, _body()) == 403)
        told = [item["pod"] for item in server.status["replicaStatuses"]]
        assert told == [pod]

    def test_each_pod_says_only_what_is_its_to_say(self, make: Callable[..., Server], namespace: Namespace) -> None:
        server = make()
        [pod] = server.start()
        server.report(pod)
        time.sleep(1.0)
        assert server.poster(pod).post(server.poster(pod).token()) == 422, "it trains nothing"
        namespace.apply(lorajob("c", preflight="Skip"))
        trainer = server.poster(namespace.run_pod("c-train"))
        namespace.wait_running("c")
        assert trainer.post(trainer.token(), _body()) == 422, "it serves nothing"

    def test_a_report_of_4096_adapters_is_taken_and_none_beyond(
        self, make: Callable[..., Server], namespace: Namespace
    ) -> None:
        server = make()
        [pod] = server.start()
        adapters = [served(f"adapter-{index:04}-{'n' * 60}", message="m" * 100) for index in range(4096)]
        server.report(pod, *adapters)
        time.sleep(1.0)
        poster = server.poster(pod)
        assert poster.post(poster.token(), b" " * 1_600_000) == 413

    def test_replicas_that_know_a_later_revision_are_told_a_still_later_one(
        self, make: Callable[..., Server], namespace: Namespace
    ) -> None:
        server = make(adapters=[{"name": "bot", "uri": "s3://adapters/x"}])
        [pod] = server.start()
        server.wait_desired("bot")
        server.report(pod, revision=40)
        eventually("a later revision", lambda: server.desired()["revision"] == 41)


def _body() -> Json:
    return {"replicaStatus": {"revision": 0, "engineReady": True, "adapters": []}}


def test_columns_and_scale(make: Callable[..., Server], namespace: Namespace) -> None:
    server = make()
    namespace.wait_phase("support", "Starting", SERVERS)
    path = namespace.path(SERVERS, "support")
    scale = namespace.api.call("GET", f"{path}/scale")
    assert scale["status"]["selector"] == server.status["selector"]
    namespace.api.patch(f"{path}/scale", {"spec": {"replicas": 3}})
    assert len(server.wait_pods(3)) == 3
    with pytest.raises(Refused, match="cannot be changed"):
        namespace.patch_spec("support", SERVERS, model={"uri": "s3://models/other"})
