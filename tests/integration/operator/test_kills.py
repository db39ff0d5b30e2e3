"""The operator is killed before and after each write of each story: no Job is made twice, and each story ends well."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from kit.operator.adversity import MADE, Adversity, adversity, begin, wait_end
from kit.operator.api import Api, Json, eventually
from kit.operator.killing import Case, Run, Write, assert_struck, finish, killed_at, writes_of
from kit.operator.objects import REPORT, Namespace, lorajob
from kit.operator.players import ends_well
from kit.operator.stage import Stage, make_namespace
from tools.cluster.controlplane import ControlPlane

EVERY = os.environ.get("TUNERY_TEST_EVERY_FAULT") == "1"
STORY_SECONDS = 400.0
"""For all stories that run side by side; each kill costs a start of the operator."""
AT_ONCE = 40
"""Stories side by side, each with its kill."""
QUEUE = {"kueue.x-k8s.io/queue-name": "team"}


# The stories; what their pods do is said by the pods' names, in `_end`.


def from_apply_to_success(namespace: Namespace) -> None:
    begin(namespace)
    wait_end(namespace, STORY_SECONDS)
    assert namespace.status("a")["phase"] == "Succeeded"
    assert namespace.status("a")["attempts"] == 1
    assert namespace.status("m", "adaptermerges")["phase"] == "Succeeded"


def suspended_and_resumed(namespace: Namespace) -> None:
    namespace.apply(lorajob("wait", preflight="Skip"))
    eventually("it runs", lambda: namespace.condition("wait", "Running").get("status") == "True", STORY_SECONDS)
    namespace.patch_spec("wait", suspend=True)
    namespace.wait_phase("wait", "Suspended", timeout=STORY_SECONDS)
    namespace.annotate("wait", go="on")
    namespace.patch_spec("wait", suspend=False)
    assert namespace.wait_phase("wait", "Succeeded", timeout=STORY_SECONDS)["attempts"] == 2


def suspended_in_a_queue(namespace: Namespace) -> None:
    body = lorajob("wait", preflight="Skip")
    body["metadata"]["labels"] = QUEUE
    namespace.apply(body)
    # No Kueue runs here: the Job is admitted at once. While it is suspended, it goes.
    eventually("it runs", lambda: namespace.condition("wait", "Running").get("status") == "True", STORY_SECONDS)
    namespace.patch_spec("wait", suspend=True)
    namespace.wait_phase("wait", "Suspended", timeout=STORY_SECONDS)
    namespace.annotate("wait", go="on")
    namespace.patch_spec("wait", suspend=False)
    namespace.wait_phase("wait", "Succeeded", timeout=STORY_SECONDS)


def failed_and_tried_again(namespace: Namespace) -> None:
    namespace.apply(lorajob("fail", preflight="Skip", retries=0))
    namespace.wait_phase("fail", "Failed", timeout=STORY_SECONDS)
    namespace.annotate("fail", go="on", retry="1")
    status = namespace.wait_phase("fail", "Succeeded", timeout=STORY_SECONDS)
    assert status["attempts"] == 2


def stopped_and_published(namespace: Namespace) -> None:
    namespace.apply(lorajob("wait", preflight="Skip"))
    eventually("it runs", lambda: namespace.condition("wait", "Running").get("status") == "True", STORY_SECONDS)
    namespace.patch_spec("wait", stop="enough")
    eventually("its Job is gone", lambda: namespace.get("jobs", "wait-train") is None, STORY_SECONDS)
    namespace.annotate("wait", go="on")
    assert namespace.wait_phase("wait", "Succeeded", timeout=STORY_SECONDS)["attempts"] == 1


def expired(namespace: Namespace) -> None:
    namespace.apply(lorajob("ttl", preflight="Skip", ttlSecondsAfterFinished=1))
    eventually("it is gone", lambda: namespace.get("lorajobs", "ttl") is None, STORY_SECONDS)


STORIES: list[tuple[Callable[[Namespace], None], dict[str, int]]] = [
    (from_apply_to_success, MADE),
    (suspended_and_resumed, {"wait-train": 1}),
    (suspended_in_a_queue, {"wait-train": 2}),
    (failed_and_tried_again, {"fail-train": 2}),
    (stopped_and_published, {"wait-train": 1, "wait-publish": 1}),
    (expired, {"ttl-train": 1}),
]


@pytest.fixture
def world(
    stage: Stage, api: Api, control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Adversity]:
    stage.clear()
    folder = tmp_path_factory.mktemp("kills")

    def end(pod: Json) -> tuple[int, object] | None:
        return _end(api, pod)

    with adversity(api, stage.make, control_plane.authority, stage.kubeconfig, folder, make_namespace, end) as world:
        yield world


def _end(api: Api, pod: Json) -> tuple[int, object] | None:
    """Return how a pod ends: `wait` and `fail` end well only once their object says `tunery.dev/go`."""
    owner = pod["metadata"]["labels"]["tunery.dev/owner"]
    if owner not in ("wait", "fail"):
        return ends_well(pod)
    body = api.get(Namespace(api, pod["metadata"]["namespace"]).path("lorajobs", owner)) or {"metadata": {}}
    if "tunery.dev/go" in body["metadata"].get("annotations", {}):
        return ends_well(pod)
    return (1, REPORT) if owner == "fail" else None


@pytest.mark.slow
def test_killed_at_each_write_nothing_happens_twice_and_nothing_is_lost(world: Adversity) -> None:
    runs = [Run(story, made, world.namespace()) for story, made in STORIES]
    finish(world, runs)
    killed = [
        killed_at(world, run, case) for run in runs for case in _chosen(run.story, writes_of(world, run.namespace))
    ]
    for first in range(0, len(killed), AT_ONCE):
        finish(world, killed[first : first + AT_ONCE])
    assert_struck(killed)
    world.assert_sound()
    world.assert_quiet([run.namespace for run in killed])


def _chosen(story: Callable[[Namespace], None], writes: list[tuple[Write, int]]) -> list[Case]:
    """Return the writes to kill at, each with whether before or after it.

    Unless every case is asked for: of the statuses of the first story one moment each, of the other stories what the
    first does not have.
    """
    both = [(write, nth, before) for write, nth in writes for before in (True, False)]
    if EVERY:
        return both
    statuses = [case for case in both if case[0][1].endswith("/status") and case[2] is (case[1] % 2 == 0)]
    others = [case for case in both if not case[0][1].endswith("/status")]
    if story is from_apply_to_success:
        return statuses + others
    return [case for case in others if case[0][0] != "create" or case[1] > 1]
