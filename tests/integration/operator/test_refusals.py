"""What the API server refuses, how often it is asked again, and when a quarrel is given up."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from tunery_api.kinds import Kind
from tunery_operator.client import apply
from tunery_operator.client.client import HttpError, KubeClient
from tunery_operator.client.permissions import JOBS, LORAJOBS
from tunery_operator.controllers.context import CONFLICT_PAUSE, Backoff, ConflictBackoff
from tunery_operator.controllers.observe import ManagedObject
from tunery_operator.controllers.rejections import ambiguous_rejection, field_of, rejection_of
from tunery_operator.errors import ApiFailure, FieldContested, Rejected, StaleObject
from tunery_operator.observed.metadata import Key, Owner, settings_digest
from tunery_operator.planning.platform_values import platform_values
from tunery_operator.runtime.workqueue import MAX_BACKOFF

from kit.operator.settings import settings


@pytest.mark.parametrize(
    ("status", "message", "reason"),
    [
        (403, 'jobs.batch "x" is forbidden: exceeded quota: q, requested: count/jobs.batch=1', "QuotaExceeded"),
        (403, 'admission webhook "p" denied the request: no', "CreateRefused"),
        (413, "request entity too large", "CreateRefused"),
        (422, "denied by policy", "CreateRefused"),
        (429, "too many requests", "ClusterUnavailable"),
        (500, "failed calling webhook", "ClusterUnavailable"),
        (503, "no endpoints", "ClusterUnavailable"),
    ],
)
def test_each_answer_has_its_reason_and_the_servers_words(status: int, message: str, reason: str) -> None:
    found = rejection_of(HttpError(JOBS.create, status, {"message": message}))
    assert found.reason == reason
    assert message in found.message


def test_a_refused_change_says_that_it_is_one() -> None:
    told = rejection_of(HttpError(JOBS.patch, 403, {"message": 'jobs.batch "x" is forbidden'}))
    assert told.reason == "CreateRefused"
    assert told.message == 'a change of an existing object was rejected: patch jobs: 403 jobs.batch "x" is forbidden'
    assert "change" not in rejection_of(HttpError(JOBS.create, 403, {"message": "no"})).message
    assert "change" not in rejection_of(HttpError(JOBS.patch, 503, {"message": "no"})).message


SELF: Any = {
    "scheduling": {
        "nodeSelector": {"zone": "a"},
        "tolerations": [{"key": "own", "operator": "Exists"}, {"operator": "Exists", "key": "own"}],
    },
    "resources": {"gpuResource": "example.com/gpu"},
    "engine": {"image": "an engine"},
}
POD = "spec.template.spec"


SETTINGS = settings(
    trainer={"tolerations": [{"key": "all"}], "priorityClassName": "no-name"},
    preflight={"tolerations": [{"key": "all"}]},
)


@pytest.mark.parametrize(
    ("spec", "fields", "field"),
    [
        (SELF, [f"{POD}.tolerations[0].effect"], "spec.scheduling"),
        # Each of them is there once: the second one is the platform's.
        (SELF, [f"{POD}.tolerations[1].effect"], None),
        ({}, [f"{POD}.tolerations[0].effect"], None),
        ({"suspend": True}, [f"{POD}.tolerations"], None),
        (SELF, [f"{POD}.tolerations[1].effect", f"{POD}.tolerations[0]"], "spec.scheduling"),
        ({"template": {"scheduling": SELF["scheduling"]}}, [f"{POD}.tolerations[0].effect"], "spec.scheduling"),
        (SELF, [f"{POD}.nodeSelector", '"zone"'], "spec.scheduling"),
        (SELF, [f"{POD}.nodeSelector", '"pool"'], None),
        ({"scheduling": {"affinity": {"nodeAffinity": {}}}}, [f"{POD}.affinity.nodeAffinity"], "spec.scheduling"),
        (SELF, [f"{POD}.priorityClassName", '"No Name"'], None),
        (SELF, ["spec.template.labels", '"long"'], None),
        (SELF, ["metadata.labels", '"a queue"'], None),
        (SELF, ["spec.template.annotations", '"a b"'], None),
        (SELF, ["spec.template.annotations", "Too long"], "spec"),
        (SELF, [f"{POD}.containers[0].resources.limits[example.com/gpu]"], "spec"),
        (SELF, [f"{POD}.containers[0].resources.limits[memory]", '"-1"'], None),
        (SELF, [f"{POD}.containers[0].image", '"an engine"'], "spec"),
        (SELF, [f"{POD}.containers[0].env[3].name", '"="'], None),
        (SELF, [f"{POD}.volumes[2].emptyDir.sizeLimit", '"-1"'], None),
        (SELF, ["spec.training.learningRate"], "spec"),
    ],
)
def test_a_field_that_the_object_did_not_say_is_the_platforms(
    spec: dict[str, Any], fields: list[str], field: str | None
) -> None:
    named = tuple(name for name in fields if "." in name)
    error = Rejected(f'Job.batch "a" is invalid: {": Invalid value: ".join(fields)}', named)
    obj = ManagedObject(Owner(Key(Kind.LORAJOB, "n", "a"), "uid", 1, {}), {"spec": spec})
    assert field_of(obj, error) == field
    found = ambiguous_rejection(obj, platform_values(Kind.LORAJOB, spec, SETTINGS, 0), error)
    assert (found.reason, found.message) == ("CreateRefused", str(error))
    values = found.facts.get("chartValues", "").split(", ")
    assert ({"trainer.tolerations", "trainer.priorityClassName", "preflight.tolerations"} <= set(values)) is (
        field is None
    )
    assert bool(found.remedies) is (field is None)


def test_no_answer_is_an_unavailable_cluster() -> None:
    assert rejection_of(ApiFailure(0, "create jobs: timed out")).reason == "ClusterUnavailable"


@pytest.mark.parametrize("status", [404, 409])
@pytest.mark.parametrize(
    ("read", "live", "raised"),
    [
        ({"uid": "u", "resourceVersion": "1"}, {"uid": "u", "resourceVersion": "1"}, HttpError),
        ({"uid": "u"}, {"uid": "u", "resourceVersion": "2"}, HttpError),
        ({"uid": "u", "resourceVersion": "1"}, {"uid": "u", "resourceVersion": "2"}, StaleObject),
        ({"uid": "u"}, {"uid": "other", "resourceVersion": "1"}, StaleObject),
        ({"uid": "u"}, None, StaleObject),
    ],
    ids=["as-it-was", "whatever-it-is", "changed", "another", "gone"],
)
def test_a_webhook_that_says_that_a_child_is_gone_or_has_changed_only_refuses_it(
    status: int, read: dict[str, str], live: dict[str, str] | None, raised: type[Exception]
) -> None:
    def request(call: Any, *_: Any) -> None:
        raise HttpError(call, status, {"message": "no"})

    there = None if live is None else {"metadata": live}
    client = cast(KubeClient, SimpleNamespace(request=request, get=lambda *_: there))
    found = {"metadata": {"namespace": "ns", "name": "s-000", **read}}
    with pytest.raises(raised):
        apply.patch_child(client, LORAJOBS, found, {"spec": {"suspend": True}})


def test_retries_get_rarer_and_never_rarer_than_half_a_minute() -> None:
    retries, key = Backoff(), Key(Kind.LORAJOB, "n", "a")
    waits = [retries.next(key) for _ in range(12)]
    assert waits[0] <= 1
    assert max(waits) <= MAX_BACKOFF
    assert min(waits[-4:]) >= 0.5 * MAX_BACKOFF
    retries.reset(key)
    assert retries.next(key) <= 1


def test_a_change_that_is_undone_three_times_is_left_alone_for_a_while() -> None:
    clock = [1000.0]
    quarrels = ConflictBackoff(lambda: clock[0])
    for _ in range(4):
        with quarrels.change("job", "spec.suspend"):
            pass
        clock[0] += 1
    with pytest.raises(FieldContested) as contested, quarrels.change("job", "spec.suspend"):
        pass
    assert contested.value.retry_after == CONFLICT_PAUSE
    with quarrels.change("another", "spec.suspend"):
        pass
    clock[0] += CONFLICT_PAUSE / 2
    with pytest.raises(FieldContested), quarrels.change("job", "spec.suspend"):
        pass
    clock[0] += CONFLICT_PAUSE
    with quarrels.change("job", "spec.suspend"):
        pass


def test_changes_that_are_far_apart_are_no_quarrel() -> None:
    clock = [0.0]
    quarrels = ConflictBackoff(lambda: clock[0])
    for _ in range(20):
        with quarrels.change("job", "spec.suspend"):
            pass
        clock[0] += 20


@pytest.mark.parametrize(
    "change", [{"retries": 5}, {"scheduling": {"priorityClassName": "high"}}, {"resources": {"memory": "2Gi"}}]
)
def test_what_may_change_at_rest_changes_the_digest(change: dict[str, object]) -> None:
    assert settings_digest(change) != settings_digest({})


def test_what_is_followed_while_a_pod_runs_does_not() -> None:
    assert settings_digest({"suspend": True, "resources": {"cpu": "2"}}) == settings_digest({"resources": {}})


def test_where_kueue_is_to_place_several_nodes_a_waiting_job_follows_that() -> None:
    """It waits in a queue, where it follows no other annotation: for a level that there is not, for ever."""
    near, spec = {"kueue.x-k8s.io/podset-required-topology": "cloud/rack"}, {"resources": {"nodes": 2}}
    assert settings_digest(spec, near) != settings_digest(spec)
    assert settings_digest(spec, near) != settings_digest(spec, {next(iter(near)): "cloud/block"})
    assert settings_digest(spec, {"team": "a"}) == settings_digest(spec) == settings_digest({})
    assert settings_digest({}, near) == settings_digest({}), "one pod is near to itself"
