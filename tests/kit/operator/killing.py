"""Stories that run side by side while the operator is killed at their writes, and started again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from kit.operator.adversity import Adversity
from kit.operator.faults import Kill, Rule
from kit.operator.objects import Namespace

Write = tuple[str, str]
"""A kind of write: its verb and its resource."""
Case = tuple[Write, int, bool]
"""Which write of a kind the operator is killed at, and whether before it."""


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


def writes_of(world: Adversity, namespace: Namespace) -> list[tuple[Write, int]]:
    """Return each write of a story: its kind, and which of that kind it was."""
    seen: dict[Write, int] = {}
    found = []
    for exchange in world.proxy.writes(namespace.name):
        seen[exchange.call.kind] = seen.get(exchange.call.kind, 0) + 1
        found.append((exchange.call.kind, seen[exchange.call.kind]))
    return found


def killed_at(world: Adversity, run: Run, case: Case) -> Run:
    """Return the same story in a namespace of its own, with the operator killed at one write."""
    (verb, resource), nth, before = case
    namespace = world.namespace()
    rule = world.proxy.add(Kill(before), verb, resource, namespace=namespace.name, nth=nth)
    return Run(run.story, run.made, namespace, [rule])


def assert_struck(killed: Sequence[Run]) -> None:
    """Fail where a kind of kill has never come about."""
    rules = [run.rules[0] for run in killed]
    kinds = {(rule.verb, rule.resource, rule.fault) for rule in rules}
    assert {(rule.verb, rule.resource, rule.fault) for rule in rules if rule.struck} == kinds
    # The last of several status writes may not come: after a start, two become one.
    assert sum(rule.struck for rule in rules) >= 0.6 * len(rules)


def finish(world: Adversity, runs: list[Run]) -> None:
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
