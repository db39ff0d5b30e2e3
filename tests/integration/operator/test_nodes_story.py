"""Several nodes on the real Job controller, with our manifests: who is tried again, what counts, and who speaks."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from tunery_api.names import child_name, nodes_service

from kit.operator.api import Json, Refused, eventually
from kit.operator.objects import RESULT, Namespace, lorajob
from kit.operator.poster import Poster
from kit.operator.process import OperatorProcess

INDEX = "batch.kubernetes.io/job-completion-index"
LOST = {"failure": {"reason": "PeerLost", "message": "node 1 is gone"}}
FAULT = {"failure": {"reason": "GPUFault", "message": "an error of its memory"}}
TOO_LARGE = {"failure": {"reason": "GPUOutOfMemory", "message": "12 GiB were asked for"}}


def on_nodes(name: str, nodes: int = 3, **spec: Any) -> Json:
    return lorajob(name, **{"preflight": "Skip", "resources": {"gpus": 0, "nodes": nodes}, **spec})


def waiting(namespace: Namespace, job: str, nodes: int = 3, seconds: float = 20) -> dict[int, str]:
    """Return the pods that wait to be started by their number, once there is one for each node."""

    def check() -> dict[int, str] | None:
        pods = [pod for pod in namespace.pods(job) if pod["status"].get("phase") == "Pending"]
        found = {int(pod["metadata"]["annotations"][INDEX]): pod["metadata"]["name"] for pod in pods}
        return found if len(found) == nodes else None

    return eventually(f"{nodes} pods of {job}", check, seconds)


def start(namespace: Namespace, job: str, nodes: int = 3, seconds: float = 20) -> dict[int, str]:
    pods = waiting(namespace, job, nodes, seconds)
    for pod in pods.values():
        namespace.start_pod(pod)
    return pods


def number_of_pods(namespace: Namespace, name: str, text: str) -> Json:
    def check() -> Json | None:
        status = namespace.status(name)
        return status if status.get("pods") == text else None

    return eventually(f"{name} has {text} pods", check)


def publish(namespace: Namespace, operator: OperatorProcess, progress_tls: Path, name: str) -> dict[int, str]:
    """Start both pods of a job and let the first say that it publishes; return their names."""
    pods = start(namespace, f"{name}-train", 2)
    number_of_pods(namespace, name, "2/2")
    poster = Poster(namespace, operator, progress_tls, pods[0])
    assert poster.post(poster.token(), {"trainerStatus": {"phase": "Uploading"}}) == 200
    namespace.wait_phase(name, "Uploading")
    eventually("the Job may lack one", lambda: allowed(namespace, name) == 2)
    return pods


def allowed(namespace: Namespace, name: str) -> int:
    return int(namespace.job(f"{name}-train")["spec"]["maxFailedIndexes"])


def reasons_of(status: Json) -> list[str | None]:
    return [item.get("reason") for item in status["attemptHistory"]]


def failed(namespace: Namespace, job: str) -> int:
    count: int = namespace.job(job)["status"].get("failed", 0)
    return count


def test_the_service_comes_before_the_pods_that_ask_for_it(namespace: Namespace) -> None:
    namespace.apply(on_nodes("team.a.v1", 2))
    name = child_name("team.a.v1", "train", 2)
    job = namespace.job(name)
    [service] = namespace.api.items(namespace.path("services"))
    made, after = (int(each["metadata"]["resourceVersion"]) for each in (service, job))
    assert made < after
    pods = waiting(namespace, name, 2)
    [body, _] = namespace.pods(name)
    assert body["spec"]["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"].items() <= body["metadata"]["labels"].items()
    assert [each["kind"] for each in service["metadata"]["ownerReferences"]] == ["LoRAJob"]
    hosts = {each["spec"]["hostname"] for each in namespace.pods(name)}
    assert hosts == {f"{name}-0", f"{name}-1"}
    env = {each["name"]: each.get("value") for each in body["spec"]["containers"][0]["env"]}
    assert env["TUNERY_MASTER"] == f"{name}-0.{service['metadata']['name']}"
    namespace.start_pod(pods[0])
    status = number_of_pods(namespace, "team.a.v1", "1/2")
    assert (status["phase"], status["jobName"]) == ("Starting", name)
    namespace.start_pod(pods[1])
    number_of_pods(namespace, "team.a.v1", "2/2")
    namespace.wait_running("team.a.v1")


def test_a_strangers_service_of_that_name_is_told(namespace: Namespace) -> None:
    namespace.apply(on_nodes("c", preflight="Required"))
    uid = eventually("the object", lambda: namespace.get("lorajobs", "c"))["metadata"]["uid"]
    body = {"metadata": {"name": nodes_service(uid)}, "spec": {"ports": [{"port": 80}]}}
    namespace.api.call("POST", namespace.path("services"), body)
    namespace.pass_preflight("c")
    status = namespace.wait_phase("c", "Failed")
    assert status["failure"]["reason"] == "NameConflict"
    assert f"Service {nodes_service(uid)}" in status["failure"]["message"]
    assert namespace.get("jobs", "c-train") is None


def test_the_service_is_there_again_for_the_next_attempt(namespace: Namespace) -> None:
    """Somebody has deleted it: the pods that run have met, and the next ones could not."""
    namespace.apply(on_nodes("v", 2))
    pods = start(namespace, "v-train", 2)
    number_of_pods(namespace, "v", "2/2")
    [service] = namespace.api.items(namespace.path("services"))
    namespace.api.call("DELETE", namespace.path("services", service["metadata"]["name"]))
    namespace.end_pod(pods[1], 75, FAULT)
    namespace.end_pod(pods[0], 76, LOST)

    def another() -> bool:
        made = namespace.api.items(namespace.path("services"))
        return [each["spec"]["selector"] for each in made] == [service["spec"]["selector"]]

    eventually("another Service", another)


@pytest.mark.slow
def test_the_service_is_there_again_for_those_that_run_and_have_not_met(namespace: Namespace) -> None:
    """By a look that comes by itself: nothing happens to the pods, which wait for each other's names."""
    namespace.apply(on_nodes("vv", 2))
    start(namespace, "vv-train", 2)
    assert number_of_pods(namespace, "vv", "2/2")["phase"] == "Starting"
    [service] = namespace.api.items(namespace.path("services"))
    namespace.api.call("DELETE", namespace.path("services", service["metadata"]["name"]))
    eventually("another Service", lambda: namespace.api.items(namespace.path("services")))


def test_the_pod_that_was_deleted_is_named(namespace: Namespace) -> None:
    namespace.apply(on_nodes("del", 2, retries=0))
    deleted, other = start(namespace, "del-train", 2).values()
    number_of_pods(namespace, "del", "2/2")
    # On nodes: what is deleted without one goes at once. The first stores its checkpoint, and ends last.
    for pod in (deleted, other):
        namespace.bind(pod, f"node-of-{pod}")
    namespace.delete_pod(deleted)
    namespace.end_pod(other, 76, LOST)
    eventually("its echo is told", lambda: reasons_of(namespace.status("del")) == [None, "PeerLost"])
    namespace.stop_pod(deleted)
    status = namespace.wait_phase("del", "Failed")
    words = f"pod {deleted} was deleted by another client, and no retry is left"
    assert status["failure"]["message"] == words
    assert reasons_of(status) == ["PodDeleted", "PeerLost"]


def test_what_the_user_must_mend_ends_all_of_them_at_once(namespace: Namespace) -> None:
    namespace.apply(on_nodes("u"))
    pods = start(namespace, "u-train")
    number_of_pods(namespace, "u", "3/3")
    namespace.end_pod(pods[1], 64, TOO_LARGE)
    status = namespace.wait_phase("u", "Failed")
    assert status["failure"]["message"] == f"12 GiB were asked for (pod {pods[1]})"
    assert (status["failure"]["reason"], status["attempts"]) == ("GPUOutOfMemory", 1)
    eventually("the others are gone", lambda: len(namespace.pods("u-train")) == 1)


@pytest.mark.slow
def test_one_that_only_just_begins_as_its_job_ends_is_no_other_attempt(namespace: Namespace) -> None:
    """The first one may hold what the other waits for, and set it free as it ends; nobody has deleted that."""
    namespace.apply(on_nodes("begins", 2))
    first, late = waiting(namespace, "begins-train", 2).values()
    namespace.start_pod(first)
    number_of_pods(namespace, "begins", "1/2")
    namespace.bind(late, f"node-of-{late}")
    namespace.end_pod(first, 64, TOO_LARGE)
    eventually("it is being deleted", lambda: "deletionTimestamp" in namespace.get("pods", late)["metadata"])
    namespace.start_pod(late)
    eventually("both are counted", lambda: len(namespace.status("begins")["attemptHistory"]) == 2)
    assert "is not retried: GPUOutOfMemory" in namespace.condition("begins", "Running")["message"]
    namespace.stop_pod(late)
    status = namespace.wait_phase("begins", "Failed")
    assert status["failure"]["message"] == f"12 GiB were asked for (pod {first})"
    assert (status["attempts"], reasons_of(status)) == (1, ["GPUOutOfMemory", "PeerLost"])


@pytest.mark.parametrize("retries", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_while_the_first_one_publishes_another_ones_end_is_nobodys(
    namespace: Namespace, operator: OperatorProcess, progress_tls: Path, retries: int
) -> None:
    """Training has ended, and the first does the rest alone: neither the operator nor the Job controller ends it."""
    name = f"pub{retries}"
    namespace.apply(on_nodes(name, 2, retries=retries))
    pods = publish(namespace, operator, progress_tls, name)
    namespace.end_pod(pods[1], 137)
    status = number_of_pods(namespace, name, "1/2")
    if retries:
        waiting(namespace, f"{name}-train", 1)
    # So long the Job controller takes to end it where it may not.
    time.sleep(1)
    status = namespace.status(name)
    assert (status["phase"], status.get("failure"), status["attempts"]) == ("Uploading", None, 1)
    assert len(namespace.pods(f"{name}-train")) == 2 + bool(retries)
    namespace.end_pod(pods[0], 0, RESULT)
    status = namespace.wait_phase(name, "Succeeded")
    assert (status["adapter"], status["attempts"]) == (RESULT["adapter"], 1)
    assert reasons_of(status) == ["Succeeded", "NotNeeded"]


@pytest.mark.slow
def test_where_publishing_fails_all_of_them_are_needed_again(
    namespace: Namespace, operator: OperatorProcess, progress_tls: Path
) -> None:
    namespace.apply(on_nodes("bad", 2, retries=1))
    pods = publish(namespace, operator, progress_tls, "bad")
    namespace.end_pod(pods[0], 75, FAULT)
    eventually("that is told", lambda: namespace.condition("bad", "Running")["reason"] == "AttemptFailed")
    eventually("the Job may lack none", lambda: allowed(namespace, "bad") == 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "retries"), [("evicted", 0), ("suspended", 0), pytest.param("evicted", 2, marks=pytest.mark.slow)]
)
def test_where_the_first_one_is_taken_away_after_another_had_ended_all_of_them_begin_anew(
    namespace: Namespace, operator: OperatorProcess, progress_tls: Path, how: str, retries: int
) -> None:
    """Where no retry is left its number has failed for good, and the Job controller makes no pod for it any more."""
    namespace.apply(on_nodes(how, 2, retries=retries))
    pods = publish(namespace, operator, progress_tls, how)
    namespace.end_pod(pods[1], 137)
    number_of_pods(namespace, how, "1/2")
    if not retries:
        eventually("its number has failed", lambda: namespace.job(f"{how}-train")["status"].get("failedIndexes") == "1")
    if how == "evicted":
        namespace.disrupt_pod(pods[0], "EvictionByEvictionAPI")
        namespace.end_pod(pods[0], 143)
    else:
        namespace.bind(pods[0], "one-of-its-own")
        namespace.patch_spec(how, suspend=True)
        namespace.wait_phase(how, "Suspending")
        namespace.stop_pod(pods[0])
        namespace.wait_phase(how, "Suspended")
        namespace.patch_spec(how, suspend=False)
    pods = start(namespace, f"{how}-train", 2)
    status = number_of_pods(namespace, how, "2/2")
    assert (status["attempts"], reasons_of(status)) == (2, [how.capitalize(), "NotNeeded", None, None])
    assert "AttemptFailed" not in namespace.event_reasons(how)
    namespace.end_pod(pods[0], 0, RESULT)
    namespace.wait_phase(how, "Succeeded")


@pytest.mark.slow
def test_where_the_first_one_is_taken_away_after_the_others_had_ended_well_all_of_them_begin_anew(
    namespace: Namespace, operator: OperatorProcess, progress_tls: Path
) -> None:
    """They end as it has published. Were that taken away before the next first one looks, it would wait for nobody."""
    namespace.apply(on_nodes("well", 2, retries=1))
    pods = publish(namespace, operator, progress_tls, "well")
    before = namespace.job("well-train")["metadata"]["uid"]
    namespace.end_pod(pods[1], 0)
    eventually("it has ended well", lambda: namespace.job("well-train")["status"].get("completedIndexes") == "1")
    time.sleep(1)
    assert namespace.job("well-train")["metadata"]["uid"] == before, "the first one publishes still"
    namespace.disrupt_pod(pods[0], "EvictionByEvictionAPI")
    namespace.end_pod(pods[0], 143)
    pods = start(namespace, "well-train", 2)
    status = number_of_pods(namespace, "well", "2/2")
    assert (status["attempts"], reasons_of(status)) == (2, ["Evicted", "Succeeded", None, None])
    namespace.end_pod(pods[0], 0, RESULT)
    namespace.wait_phase("well", "Succeeded")


@pytest.mark.slow
def test_the_first_one_was_deleted_as_it_published_while_no_operator_was_there(
    namespace: Namespace, operator: OperatorProcess, progress_tls: Path
) -> None:
    """Its number has failed for good, and the Job may lack one until the operator says otherwise."""
    namespace.apply(on_nodes("gone", 2, retries=0))
    pods = publish(namespace, operator, progress_tls, "gone")
    namespace.bind(pods[0], "one-of-its-own")
    operator.kill()
    namespace.delete_pod(pods[0])
    namespace.stop_pod(pods[0])
    namespace.end_pod(pods[1], 76, LOST)
    eventually("its number has failed", lambda: namespace.job("gone-train")["status"].get("failedIndexes") == "0")
    operator.start()
    failure = namespace.wait_phase("gone", "Failed")["failure"]
    assert failure["reason"] == "RetriesExhausted"
    assert f"pod {pods[0]} is gone" in failure["message"], "nobody has seen how"


def test_where_they_run_may_change_while_one_of_them_waits_for_a_node(namespace: Namespace) -> None:
    """Nothing trains that would be lost; once all of them run, the Job stays."""
    namespace.apply(on_nodes("h"))
    first = namespace.job("h-train")["metadata"]["uid"]
    namespace.start_pod(waiting(namespace, "h-train")[1])
    number_of_pods(namespace, "h", "1/3")
    namespace.patch_spec("h", scheduling={"nodeSelector": {"pool": "b"}})

    def another() -> Json | None:
        job = namespace.get("jobs", "h-train")
        return job if job is not None and job["metadata"]["uid"] != first else None

    second = eventually("another Job", another)
    assert second["spec"]["template"]["spec"]["nodeSelector"] == {"pool": "b"}
    assert len(namespace.api.items(namespace.path("services"))) == 1, "the Service is the same"
    start(namespace, "h-train")
    number_of_pods(namespace, "h", "3/3")
    namespace.wait_running("h")
    with pytest.raises(Refused, match="while a pod runs"):
        namespace.patch_spec("h", scheduling={"nodeSelector": {"pool": "c"}})
    assert namespace.job("h-train")["metadata"]["uid"] == second["metadata"]["uid"]


@pytest.mark.slow
def test_a_namespace_that_is_deleted_is_not_held_up_by_its_pods(namespace: Namespace) -> None:
    """Kubernetes deletes pods first there, and a Job of several nodes keeps each until it has a successor."""
    namespace.apply(on_nodes("n"))
    for pod in waiting(namespace, "n-train").values():
        namespace.bind(pod, "n1")
    pods = start(namespace, "n-train")
    number_of_pods(namespace, "n", "3/3")
    namespace.api.delete(f"/api/v1/namespaces/{namespace.name}")
    for pod in pods.values():
        namespace.delete_pod(pod)
    for pod in pods.values():
        namespace.stop_pod(pod)
    eventually("no pod is left", lambda: not namespace.api.items(namespace.path("pods")))
    assert namespace.get("jobs", "n-train") is None
    assert namespace.get("lorajobs", "n") is not None, "nobody deletes it here, as the pods are what is waited for"


@pytest.mark.slow
def test_a_pod_that_fails_counts_once_and_all_come_back_after_ten_seconds(namespace: Namespace) -> None:
    """With backoffLimit alone they would wait 40 s, and the Job would be over with the second attempt.

    That the second time two of them fail by themselves is one failure, too.
    """
    namespace.apply(on_nodes("f", retries=2))
    for attempt, most in ((1, 20), (2, 25), (3, 40)):
        pods = start(namespace, "f-train", seconds=most)
        status = number_of_pods(namespace, "f", "3/3")
        assert status["attempts"] == attempt
        namespace.end_pod(pods[1], 75, FAULT)
        if attempt < 3:  # the last failure ends the Job, and Kubernetes may remove the other pods at once
            namespace.end_pod(pods[0], 76, LOST)
            if attempt == 2:
                namespace.end_pod(pods[2], 75, FAULT)
            else:
                namespace.end_pod(pods[2], 76)
            used = f"({attempt} of 2 retries used)"
            text = f"attempt {attempt}, pod {pods[1]}, failed {used}: GPUFault: an error of its memory"
            eventually("its cause is told", lambda text=text: namespace.condition("f", "Running")["message"] == text)
    status = namespace.wait_phase("f", "Failed")
    assert status["failure"]["message"] == f"an error of its memory (pod {pods[1]}, attempt 3)"
    assert (status["failure"]["reason"], status["attempts"]) == ("GPUFault", 3)
    eventually("all of them are ended", lambda: not namespace.api.items(namespace.path("pods")))


@pytest.mark.slow
def test_a_pod_that_is_lost_with_its_node_is_never_counted(namespace: Namespace) -> None:
    namespace.apply(on_nodes("n", retries=0))
    for attempt, most in ((1, 20), (2, 25)):
        pods = start(namespace, "n-train", seconds=most)
        status = number_of_pods(namespace, "n", "3/3")
        assert status["attempts"] == attempt
        namespace.disrupt_pod(pods[1], "DeletionByTaintManager")
        namespace.end_pod(pods[1], 137)
        namespace.end_pod(pods[0], 76, LOST)
        namespace.end_pod(pods[2], 76, LOST)
    pods = start(namespace, "n-train", seconds=40)
    assert number_of_pods(namespace, "n", "3/3")["attempts"] == 3
    assert failed(namespace, "n-train") == 0
    namespace.end_pod(pods[0], 0, RESULT)
    assert namespace.wait_phase("n", "Succeeded")["attempts"] == 3
