"""What a sweep's end does to its trials where the cluster fails at some of its calls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tunery_api.kinds import Kind
from tunery_operator.controllers.context import ReconcileContext
from tunery_operator.controllers.observe import ManagedObject
from tunery_operator.controllers.trials import mark_removed_trials
from tunery_operator.errors import ApiFailure
from tunery_operator.observed.metadata import parse_owner

from kit.operator.objects import lorasweep
from kit.operator.statuskit import NOW

Json = dict[str, Any]
ADAPTER = {"uri": "s3://adapters/s-trials/uid/000", "manifestSha256": "ab" * 32}
NAMES = [f"s-{number:03d}" for number in range(6)]


class Cluster:
    """Trials that have ended; `fails` says by name and number of the call which calls come to nothing."""

    def __init__(self, fails: Callable[[str, int], int | None]) -> None:
        self.told: set[str] = set()
        self.said = ""
        self.calls = Counter[str]()
        self._fails = fails

    def _answer(self, name: str) -> None:
        self.calls[name] += 1
        status = self._fails(name, self.calls[name])
        if status is not None:
            raise ApiFailure(status, "the tests refuse it")

    def get(self, _: object, namespace: str, name: str) -> Json:
        """Return a trial that nobody controls any more."""
        self._answer(name)
        meta = {"name": name, "namespace": namespace, "uid": f"uid-{name}", "resourceVersion": "1"}
        status = {"phase": "Succeeded"} if name in self.told else {"phase": "Succeeded", "adapter": ADAPTER}
        return {"metadata": meta, "spec": {}, "status": status}

    def request(self, _: object, namespace: str, name: str, body: Json, __: object) -> Json:
        """Take a status."""
        assert body["status"]["adapter"] is None
        self._answer(name)
        (self.said,) = (each["message"] for each in body["status"]["conditions"])
        self.told.add(name)
        return self.get(_, namespace, name)


def publish_with(cluster: Cluster, *conditions: Json) -> None:
    body = lorasweep("s")
    body["metadata"] |= {"namespace": "ns", "uid": "uid", "resourceVersion": "1"}
    rows = [{"name": name, "uid": f"uid-{name}", "state": "Complete"} for name in NAMES]
    cache = SimpleNamespace(defer_keys=lambda keys: None, put_object=lambda kind, body: set())
    context = cast(ReconcileContext, SimpleNamespace(client=cluster, cache=cache, now=lambda: NOW))
    obj = ManagedObject(parse_owner(Kind.LORASWEEP, body), body)
    mark_removed_trials(context, obj, {"phase": "Succeeded", "trials": rows, "conditions": conditions})


@pytest.mark.parametrize(
    ("conditions", "end"),
    [
        ([], "(spec.keepAdapters)"),
        (
            [{"type": "TrialsRemoved", "status": "False", "reason": "TrialsLeft"}],
            "could not be removed, or not all of them",
        ),
        ([{"type": "TrialsRemoved", "status": "Unknown", "reason": "RemovalUnknown"}], "were removed is not known"),
    ],
    ids=["removed", "left", "unknown"],
)
def test_trials_are_told_whether_all_was_removed(conditions: list[Json], end: str) -> None:
    cluster = Cluster(lambda name, call: None)
    publish_with(cluster, *conditions)
    assert cluster.told == set(NAMES)
    assert cluster.said.endswith(end)


def test_a_call_that_fails_keeps_no_other_trial_from_being_told_and_is_tried_again() -> None:
    cluster = Cluster(lambda name, call: 500 if (name, call) in {("s-001", 1), ("s-004", 2)} else None)
    publish_with(cluster)
    assert cluster.told == set(NAMES)
    assert cluster.calls["s-000"] == 3, "who was told is not asked again"


def test_where_one_fails_again_and_again_the_others_are_told_and_it_is_left_for_later() -> None:
    cluster = Cluster(lambda name, call: 503 if name == "s-000" else None)
    with pytest.raises(ApiFailure):
        publish_with(cluster)
    assert cluster.told == set(NAMES[1:])
    assert cluster.calls["s-000"] == 2


def test_what_is_refused_for_good_holds_no_end_up() -> None:
    cluster = Cluster(lambda name, call: 403 if name == "s-000" else None)
    publish_with(cluster)
    assert cluster.told == set(NAMES[1:])
