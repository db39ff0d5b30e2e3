"""A sweep whose operator is killed again and again: no trial is made twice, and no final row ever changes."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from kit.operator.api import Api, Json
from kit.operator.kubelet import GROUP
from kit.operator.objects import Namespace, lorasweep
from kit.operator.players import Kubelets, Witness
from kit.operator.process import OperatorProcess
from kit.operator.stage import make_namespace
from kit.operator.sweeps import Trials

KILLS = 10
FINAL = {"Complete", "Pruned", "Infeasible", "Failed", "Deleted"}


def without_place(row: Json) -> Json:
    """Return a row as it never changes once it is final: of those that are not kept the adapter goes at the end."""
    return {name: value for name, value in row.items() if name != "adapter"}


class Watcher(threading.Thread):
    """Reads a sweep's rows again and again, and keeps each final one as it was seen first."""

    def __init__(self, namespace: Namespace) -> None:
        super().__init__(daemon=True)
        self._namespace = namespace
        self.over = threading.Event()
        self.rows: dict[int, Json] = {}
        self.changed: list[tuple[Json, Json]] = []

    def run(self) -> None:
        while not self.over.wait(0.1):
            for row in self._namespace.status("s", "lorasweeps").get("trials") or ():
                if row["state"] in FINAL:
                    first = self.rows.setdefault(row["number"], without_place(row))
                    if first != without_place(row):
                        self.changed.append((first, row))


@pytest.fixture
def witness(api: Api) -> Iterator[Witness]:
    """Sees every LoRAJob that is ever made."""
    witness = Witness(api, f"{GROUP}/lorajobs")
    witness.start()
    time.sleep(0.5)
    yield witness
    witness.stop()


@pytest.mark.slow
def test_killed_ten_times_it_makes_each_trial_once(
    api: Api, own_operator: Callable[..., OperatorProcess], witness: Witness
) -> None:
    namespace, chance = make_namespace(api), random.Random(14)
    players, watcher = Kubelets(api, Trials().end), Watcher(namespace)
    operator = own_operator()
    players.start()
    operator.start()
    # Some values are invalid together: such a trial is a row alone.
    both = [{"path": path, "choices": ["true", "false"]} for path in ("training.packing", "training.groupByLength")]
    rate = {"path": "training.learningRate", "range": {"min": 1e-5, "max": 1e-1, "log": True}}
    drawn = {"sampler": {"type": "Random"}, "pruner": {"type": "None"}}
    namespace.apply(lorasweep("s", maxTrials=16, parallelTrials=2, parameters=[rate, *both], **drawn))
    watcher.start()
    for _ in range(KILLS):
        time.sleep(chance.uniform(0.2, 1.5))
        operator.kill()
        last = namespace.status("s", "lorasweeps")
        operator.start(wait=False)
    assert last.get("phase") not in ("Succeeded", "Failed"), f"the last kill came after the end: {last}"
    status = namespace.wait_phase("s", "Succeeded", "lorasweeps", timeout=90)
    watcher.over.set()
    players.stop()
    assert [row["number"] for row in status["trials"]] == list(range(16))
    assert {row["state"] for row in status["trials"]} == {"Complete", "Infeasible"}
    assert not watcher.changed
    assert {row["number"]: without_place(row) for row in status["trials"]}.items() >= watcher.rows.items()
    made = {name: count for name, count in witness.made(namespace.name).items() if name.startswith("s-")}
    assert made == {row["name"]: 1 for row in status["trials"] if row["state"] == "Complete"}
