"""Every call of a LoRAJob's and a merge's life meets every fault: one train Job ever, the right end, nothing shown."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from kit.operator.adversity import MADE, Adversity, adversity, begin, phases, verdict, wait_end, with_secret
from kit.operator.api import Api
from kit.operator.faults import ERRORS, REQUEST_FAULTS, Answer, Fault, Hang, Rule
from kit.operator.objects import Namespace, lorajob
from kit.operator.stage import Stage, make_namespace
from tools.cluster.controlplane import ControlPlane

EVERY = os.environ.get("TUNERY_TEST_EVERY_FAULT") == "1"
"""Each fault at each single call; else each fault once at each kind of call that decides something."""
DECISIVE = frozenset({("create", "jobs"), ("patch", "lorajobs/status"), ("patch", "adaptermerges/status")})
AT_ONCE = 40
END_SECONDS = 120.0
"""For the cases of one batch."""
MAX_WRONG = 10
LASTING_SECONDS = 8.0
MAX_TRIES = 12
"""Calls that one object may make in LASTING_SECONDS of one and the same refusal: a back-off that begins at half a
second makes five."""
_EVENTS = "events"

Kinds = Counter[tuple[str, str]]
Tried = tuple["Case", Namespace, Rule]


@pytest.fixture(scope="module")
def world(
    stage: Stage, api: Api, control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Adversity]:
    stage.clear()
    folder = tmp_path_factory.mktemp("faults")
    with adversity(api, stage.make, control_plane.authority, stage.kubeconfig, folder, make_namespace) as world:
        yield world


@dataclass(frozen=True)
class Case:
    """One fault at one call."""

    fault: Fault
    verb: str
    resource: str
    nth: int

    @property
    def may_fail(self) -> bool:
        """Tell whether the object may end as Failed: the API server says that what was built is not valid."""
        return self.verb == "create" and isinstance(self.fault, Answer) and self.fault.status == 422


def record(world: Adversity) -> Kinds:
    """Return the calls of a run without faults, by kind."""
    namespace = world.namespace()
    begin(namespace)
    wait_end(namespace, 60)
    assert phases(namespace) == ("Succeeded", "Succeeded"), verdict(namespace)
    assert world.jobs.made(namespace.name) == MADE
    time.sleep(1)
    return Counter(exchange.call.kind for exchange in world.proxy.calls(namespace.name))


def cases(kinds: Kinds) -> list[Case]:
    """Return what is to be tried; of calls that nothing hangs on, each only meets a third of the faults."""
    found = []
    for number, ((verb, resource), count) in enumerate(sorted(kinds.items())):
        decisive = EVERY or (verb, resource) in DECISIVE
        for index, fault in enumerate(REQUEST_FAULTS if decisive else REQUEST_FAULTS[number % 3 :: 3]):
            nths = range(1, count + 1) if EVERY else [index % count + 1]
            found += [Case(with_secret(fault), verb, resource, nth) for nth in nths]
    return found


@pytest.mark.slow
def test_each_fault_at_each_call_is_survived(world: Adversity) -> None:
    kinds = record(world)
    assert kinds.keys() >= DECISIVE
    tried = _try(world, cases(kinds))
    # What is told in few patches on a busy machine has no sixth one: such a fault strikes the first.
    tried += _try(world, [replace(case, nth=1) for case in _missed(tried)])
    assert not _missed(tried)
    world.assert_sound()
    world.assert_quiet([namespace for _, namespace, _ in tried])


def _try(world: Adversity, todo: list[Case]) -> list[Tried]:
    """Begin each case and see it to its end, AT_ONCE at a time; fail with what is wrong."""
    tried: list[Tried] = []
    wrong: list[str] = []
    while todo and len(wrong) < MAX_WRONG:
        batch, todo = todo[:AT_ONCE], todo[AT_ONCE:]
        begun = [(case, *_start(world, case)) for case in batch]
        end = time.monotonic() + END_SECONDS
        wrong += [found for case, namespace, _ in begun if (found := _problem(world, case, namespace, end))]
        tried += begun
    assert not wrong, "\n".join(wrong)
    return tried


def _start(world: Adversity, case: Case) -> tuple[Namespace, Rule]:
    namespace = world.namespace()
    rule = world.proxy.add(case.fault, case.verb, case.resource, namespace=namespace.name, nth=case.nth)
    begin(namespace)
    return namespace, rule


def _problem(world: Adversity, case: Case, namespace: Namespace, end: float) -> str:
    """Return what is wrong with a case that must come to its end by a monotonic time, empty where nothing is."""
    try:
        wait_end(namespace, end - time.monotonic())
    except AssertionError as error:
        return f"{case}: {error}: {verdict(namespace)}"
    found, made = phases(namespace), world.jobs.made(namespace.name)
    if any(count != 1 for count in made.values()):
        return f"{case}: Jobs were made more than once: {made}"
    if found != ("Succeeded", "Succeeded") and not case.may_fail:
        return f"{case}: {found}: {verdict(namespace)}"
    return ""


def _missed(tried: list[Tried]) -> list[Case]:
    """Return a case of each kind of call that a fault never met; a single one of many reads may not have come."""
    met = {(case.verb, case.resource, case.fault) for case, _, rule in tried if rule.struck}
    missed = {(case.verb, case.resource, case.fault): case for case, _, _ in tried if case.verb != "get"}
    return [case for what, case in missed.items() if what not in met and case.resource != _EVENTS]


@pytest.mark.slow
@pytest.mark.parametrize(("verb", "resource"), [("create", "jobs"), ("patch", "lorajobs/status")])
def test_a_refusal_that_lasts_makes_no_busy_loop_and_passes(world: Adversity, verb: str, resource: str) -> None:
    lasting = [error for error in ERRORS if error.status not in (404, 409, 410, 413, 422)]
    rules = []
    for fault in lasting:
        namespace = world.namespace()
        rule = world.proxy.add(with_secret(fault), verb, resource, namespace=namespace.name, times=None)
        rules.append((namespace, rule))
        namespace.apply(lorajob("a", preflight="Skip"))
    time.sleep(LASTING_SECONDS)
    tries = {rule.fault: rule.struck for _, rule in rules}
    assert min(tries.values()) >= 1
    assert max(tries.values()) <= MAX_TRIES, tries
    if verb == "create":
        for namespace, rule in rules:
            status = namespace.status("a")
            assert status.get("failure", {}).get("reason") in ("CreateRefused", "ClusterUnavailable"), (rule, status)
            assert status["phase"] != "Failed"
    for _, rule in rules:
        rule.lift()
    for namespace, _ in rules:
        status = namespace.wait_phase("a", "Succeeded")
        assert "failure" not in status
        assert world.jobs.made(namespace.name) == {"a-train": 1}
    world.assert_sound()


def test_a_wrong_404_leaves_nobody_waiting_for_ever(world: Adversity) -> None:
    namespace = world.namespace()
    rule = world.proxy.add(Answer(404), "get", "lorajobs", namespace=namespace.name)
    begin(namespace)
    wait_end(namespace, 60)
    assert rule.struck == 1
    assert phases(namespace) == ("Succeeded", "Succeeded"), verdict(namespace)
    world.assert_sound()


@pytest.mark.slow
def test_in_a_burst_jobs_are_made_before_they_are_told_of(world: Adversity) -> None:
    namespace = world.namespace()
    names = [f"b{index:02d}" for index in range(40)]
    world.operator.kill()
    for name in names:
        namespace.apply(lorajob(name, preflight="Skip"))
    world.operator.start()
    for name in names:
        namespace.wait_phase(name, "Succeeded", timeout=90)
    assert world.jobs.made(namespace.name) == {f"{name}-train": 1 for name in names}
    kinds = [exchange.call.kind for exchange in world.proxy.calls(namespace.name)]
    jobs = [index for index, kind in enumerate(kinds) if kind == ("create", "jobs")]
    told_before = kinds[: jobs[-1]].count(("patch", "lorajobs/status"))
    assert told_before <= len(names) // 2
    world.assert_sound()


@pytest.mark.slow
def test_calls_that_hang_end_by_themselves_and_hold_nobody_up(world: Adversity) -> None:
    hanging = []
    for verb, resource in (("create", "jobs"), ("patch", "lorajobs/status")):
        namespace = world.namespace()
        world.proxy.add(Hang(), verb, resource, namespace=namespace.name)
        namespace.apply(lorajob("a", preflight="Skip"))
        hanging.append(namespace)
    other = world.namespace()
    other.apply(lorajob("a", preflight="Skip"))
    other.wait_phase("a", "Succeeded")
    for namespace in hanging:
        namespace.wait_phase("a", "Succeeded", timeout=90)
        assert world.jobs.made(namespace.name) == {"a-train": 1}
    world.assert_sound()
