"""The operator is killed before and after each write of each story: no Job is made twice, and each story ends well."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from controller.adversity import MADE, Adversity, adversity, begin, wait_end
from controller.api import Api, Json, eventually
from controller.conftest import Stage, make_namespace
from controller.faults import Kill, Rule
from controller.objects import REPORT, Namespace, lorajob
from controller.players import ends_well

from cluster.controlplane import ControlPlane

EVERY = os.environ.get("TUNERY_TEST_EVERY_FAULT") == "1"
STORY_SECONDS = 400.0
"""For all stories that run side by side; each kill costs a start of the operator."""
AT_ONCE = 40
"""Stories side by side, each with its kill."""
QUEUE = {"kueue.x-k8s.io/queue-name": "team"}
Write = tuple[str, str]


@dataclass
class Run:
    """One story in one namespace, with what it should leave."""

    story: Callable[[Namespace], None]
    made: dict[str, int]
    namespace: Namespace
    rules: list[Rule] = field(default_factory=list)
    error: BaseException | None = None

    def start(self) -> threading.Thread:
        thread = threading.Thread(target=self._run, daemon=True)
        thread.start()
        return thread

    def _run(self) -> None:
        try:
            self.story(self.namespace)
        except BaseException as error:  # noqa: BLE001 - it is raised by the test
            self.error = error


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


def expired(namespace: Namespace) -> None:
    namespace.apply(lorajob("ttl", preflight="Skip", ttlSecondsAfterFinished=1))
    eventually("it is gone", lambda: namespace.get("lorajobs", "ttl") is None, STORY_SECONDS)


STORIES: list[tuple[Callable[[Namespace], None], dict[str, int]]] = [
    (from_apply_to_success, MADE),
    (suspended_and_resumed, {"wait-train": 1}),
    (suspended_in_a_queue, {"wait-train": 2}),
    (failed_and_tried_again, {"fail-train": 2}),
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


def test_killed_at_each_write_nothing_happens_twice_and_nothing_is_lost(world: Adversity) -> None:
    runs = [Run(story, made, world.namespace()) for story, made in STORIES]
    _finish(world, runs)
    killed = [
        Run(run.story, run.made, world.namespace(), [_kill(before, write, nth)])
        for run in runs
        for write, nth, before in _chosen(run.story, _writes(world, run.namespace))
    ]
    for run in killed:
        rule = run.rules[0]
        rule.namespace = run.namespace.name
        run.rules = [world.proxy.add(rule.fault, rule.verb, rule.resource, namespace=rule.namespace, nth=rule.nth)]
    for first in range(0, len(killed), AT_ONCE):
        _finish(world, killed[first : first + AT_ONCE])
    rules = [run.rules[0] for run in killed]
    kinds = {(rule.verb, rule.resource, rule.fault) for rule in rules}
    assert {(rule.verb, rule.resource, rule.fault) for rule in rules if rule.struck} == kinds
    # The last of several status writes may not come: after a start, two become one.
    assert sum(rule.struck for rule in rules) >= 0.6 * len(rules)
    world.assert_sound()
    world.assert_quiet([run.namespace for run in killed])


def _kill(before: bool, write: Write, nth: int) -> Rule:
    return Rule(Kill(before), *write, nth=nth)


def _chosen(story: Callable[[Namespace], None], writes: list[tuple[Write, int]]) -> list[tuple[Write, int, bool]]:
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


def _writes(world: Adversity, namespace: Namespace) -> list[tuple[Write, int]]:
    """Return each write of a story: its kind, and which of that kind it was."""
    seen: dict[Write, int] = {}
    found = []
    for exchange in world.proxy.writes(namespace.name):
        seen[exchange.call.kind] = seen.get(exchange.call.kind, 0) + 1
        found.append((exchange.call.kind, seen[exchange.call.kind]))
    return found


def _finish(world: Adversity, runs: list[Run]) -> None:
    """Run stories side by side to their end; whenever the operator was killed it starts again."""
    threads = [run.start() for run in runs]
    while any(thread.is_alive() for thread in threads):
        if world.operator.reap():
            # The next kill may come before it is ready.
            world.operator.start(wait=False)
        threads[0].join(0.1)
        threads = [thread for thread in threads if thread.is_alive()]
    if world.operator.reap():  # at a write after the last story's end, such as an event
        world.operator.start()
    wrong = [f"{run.story.__name__} with {run.rules}: {str(run.error)[:300]}" for run in runs if run.error is not None]
    assert not wrong, "\n".join(wrong[:5])
    for run in runs:
        made = world.jobs.made(run.namespace.name)
        assert made == run.made, (run.story.__name__, run.rules, made)
