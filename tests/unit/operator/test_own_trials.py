"""Which LoRAJobs are a sweep's own, where the cluster does not show all of them; and which of them are not at rest."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from tunery_api.kinds import Kind
from tunery_api.sweepstatus import TrialState, TrialStatus
from tunery_operator.client.client import HttpError
from tunery_operator.controllers.context import ReconcileContext
from tunery_operator.controllers.observe import ManagedObject
from tunery_operator.controllers.trials import OwnTrials, active_trial_names, own_trials
from tunery_operator.errors import ApiFailure, StaleObject
from tunery_operator.observed.metadata import parse_owner
from tunery_operator.runtime.object_state import ObjectState
from tunery_search.validation import parse_lorasweep

from kit.operator.objects import lorasweep

Json = dict[str, Any]
SWEEP = lorasweep("s", final={"training": {"epochs": 3}})
SWEEP["metadata"] |= {"namespace": "ns", "uid": "uid", "resourceVersion": "1"}
ROWS = [TrialStatus(number=n, name=f"s-{n:03d}", uid=f"uid-{n}", state=TrialState.RUNNING) for n in range(2)]


def child(number: int, name: str | None = None, **meta: Any) -> Json:
    labels = {
        "app.kubernetes.io/managed-by": "tunery",
        "tunery.dev/sweep": "s",
        "tunery.dev/trial": f"{number:03d}",
    }
    owner = {"apiVersion": "tunery.dev/v1alpha1", "kind": "LoRASweep", "name": "s", "uid": "uid", "controller": True}
    own = {"annotations": {"tunery.dev/origin": "TPE"}, "labels": labels, "ownerReferences": [owner]}
    names = {"name": name or f"s-{number:03d}", "namespace": "ns", "uid": f"uid-{number}"}
    return {
        "metadata": {**names, **own, **meta},
        "spec": {"output": {"uri": f"s3://adapters/s-trials/uid/{number:03d}"}},
        "status": {"phase": "Training"},
    }


def found(*bodies: Json, rows: list[TrialStatus] = ROWS, hidden: str = "", sweep: Json = SWEEP) -> OwnTrials:
    """Return what is found among some LoRAJobs, one of which cannot be read."""
    there = {body["metadata"]["name"]: body for body in bodies}

    def get(_: object, __: str, name: str) -> Json | None:
        if name == hidden:
            raise ApiFailure(500, "the tests refuse it")
        return there.get(name)

    cache = SimpleNamespace(state=lambda key: ObjectState(stale=True), trials=lambda uid: frozenset(there))
    # Nothing may be changed: a client that cannot.
    context = cast(ReconcileContext, SimpleNamespace(client=SimpleNamespace(get=get), cache=cache))
    obj = ManagedObject(parse_owner(Kind.LORASWEEP, sweep), sweep)
    return own_trials(context, obj, parse_lorasweep(sweep), rows)


def test_one_that_cannot_be_read_hides_no_other() -> None:
    own = found(child(0), child(1), child(2), hidden="s-000")
    assert sorted(own.children) == [1, 2]
    assert own.unread == {0: "s-000"}
    assert len(own.rejections) == 1
    assert active_trial_names(own) == ("s-001", "s-002", "s-000")


def test_one_of_another_uid_is_another() -> None:
    assert sorted(found(child(0, uid="other"), child(1)).children) == [1]


def test_one_whose_owner_was_changed_counts() -> None:
    own = found(child(0, ownerReferences=[{"kind": "ConfigMap", "name": "c", "uid": "c"}]), child(1, labels={}))
    assert sorted(own.children) == [0, 1]
    assert own.owner_changed == {0}


def test_one_without_an_owner_stays_so_where_the_sweep_is_deleted_and_kept() -> None:
    """Its finalizer may keep it for long: what is found there is to be suspended."""
    gone = {"deletionTimestamp": "2026-11-28T06:42:32Z", "finalizers": ["example.org/keep"]}
    kept = {**SWEEP, "metadata": {**SWEEP["metadata"], **gone}}
    own = found(child(0, ownerReferences=None), child(1), sweep=kept)
    assert sorted(own.children) == [0, 1]
    assert own.owner_changed == {0}
    assert own.rejections == ()


@pytest.mark.parametrize(
    "forged",
    [
        child(2, labels={"tunery.dev/sweep": "s", "tunery.dev/trial": "002"}),
        child(2, labels={**child(2)["metadata"]["labels"], "tunery.dev/trial": "003"}),
        child(2, annotations={}),
        {**child(2), "spec": {"output": {"uri": "s3://adapters/mine"}}},
        child(3),
        child(4, name="s-017"),
    ],
    ids=["not-managed", "another-number", "without-an-origin", "elsewhere", "behind-a-gap", "far-ahead"],
)
def test_what_the_operator_has_not_made_is_foreign(forged: Json) -> None:
    own = found(child(0), child(1), forged)
    assert sorted(own.children) == [0, 1]
    assert own.foreign == (forged["metadata"]["name"],)


def test_what_was_just_made_is_found_without_a_row_and_the_final_one_last() -> None:
    own = found(child(0), child(1), child(2), child(3, name="s-final"))
    assert {number: body["metadata"]["name"] for number, body in own.children.items()} == {
        0: "s-000",
        1: "s-001",
        2: "s-002",
        3: "s-final",
    }
    assert own.foreign == ()


@pytest.mark.parametrize("now", [None, {"uid": "other"}, {"deletionTimestamp": "2026-11-28T06:42:32Z"}])
def test_what_a_sweep_that_is_deleted_leaves_behind_is_not_taken_back(now: Json | None) -> None:
    """With --cascade=orphan; the look began before that."""
    there = {"s-000": child(0, ownerReferences=None), "s-001": child(1)}
    live = None if now is None else {**SWEEP, "metadata": {**SWEEP["metadata"], **now}}

    def get(call: Any, _: str, name: str) -> Json | None:
        return live if name == "s" else there[name]

    state = ObjectState()
    cache = SimpleNamespace(state=lambda key: state, body=lambda key: None)
    # Nothing may be changed: a client that cannot.
    context = cast(ReconcileContext, SimpleNamespace(client=SimpleNamespace(get=get), cache=cache))
    obj = ManagedObject(parse_owner(Kind.LORASWEEP, SWEEP), SWEEP)
    with pytest.raises(StaleObject):
        own_trials(context, obj, parse_lorasweep(SWEEP), ROWS)
    assert state.stale


@pytest.mark.parametrize("status", [404, 409])
def test_where_a_webhook_says_that_one_is_gone_the_others_are_found_all_the_same(status: int) -> None:
    alone = child(0, ownerReferences=None, resourceVersion="1")
    there = {"s": SWEEP, "s-000": alone, "s-001": child(1)}

    def request(call: Any, *_: Any) -> None:
        raise HttpError(call, status, {"message": "no such trial"})

    client = SimpleNamespace(get=lambda _, __, name: there[name], request=request)
    cache = SimpleNamespace(state=lambda key: ObjectState(stale=True), trials=lambda uid: frozenset())
    context = cast(ReconcileContext, SimpleNamespace(client=client, cache=cache))
    obj = ManagedObject(parse_owner(Kind.LORASWEEP, SWEEP), SWEEP)
    own = own_trials(context, obj, parse_lorasweep(SWEEP), ROWS)
    assert sorted(own.children) == [0, 1]
    assert own.owner_changed == {0}
    assert "no such trial" in str(own.rejections[0])


def test_what_was_told_to_stop_is_not_at_rest_before_it_has_ended() -> None:
    stopping = {**child(0), "spec": {"stop": "enough", "suspend": True}, "status": {"phase": "Stopping"}}
    resting = {**child(1), "status": {"phase": "Suspended"}}
    ended = {**child(2), "status": {"phase": "Stopped"}}
    assert active_trial_names(OwnTrials(children={0: stopping, 1: resting, 2: ended})) == ("s-000",)
