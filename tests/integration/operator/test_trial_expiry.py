"""How long the trials of a sweep live on once they have ended: none goes before its sweep has told what it came to."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import cast

import pytest

from tunery_api.kinds import Kind
from tunery_operator.controllers.context import ReconcileContext
from tunery_operator.controllers.inputs import is_awaited
from tunery_operator.controllers.observe import ManagedObject
from tunery_operator.observed.metadata import parse_owner
from tunery_operator.runtime.cache import Cache
from unit.operator.test_own_trials import SWEEP, child

from kit.operator.api import Api, Json, eventually
from kit.operator.objects import Namespace, lorasweep
from kit.operator.players import Kubelets
from kit.operator.process import OperatorProcess
from kit.operator.stage import make_namespace
from kit.operator.sweeps import Trials

SWEEPS = "lorasweeps"
REST: Json = {"pruner": {"type": "None"}, "ttlSecondsAfterFinished": 3600}


def row(state: str, uid: str = "uid-0") -> Json:
    return {"number": 0, "name": "s-000", "uid": uid, "state": state}


@pytest.mark.parametrize(
    ("rows", "trial", "awaited"),
    [
        ([], child(0), True),
        ([row("Running")], child(0), True),
        ([row("Complete")], child(0), False),
        ([row("Running")], child(0, ownerReferences=None), True),
        ([row("Complete")], child(0, ownerReferences=None), False),
        ([row("Running", uid="other")], child(0, ownerReferences=None), False),
        ([], child(0, name="copy"), False),
        ([], child(0, ownerReferences=[{**child(0)["metadata"]["ownerReferences"][0], "uid": "earlier"}]), False),
    ],
    ids=["no-row-yet", "runs", "told", "astray", "astray-told", "another", "a-copy", "of-an-earlier-sweep"],
)
def test_a_trial_is_awaited_until_its_row_is_final(rows: list[Json], trial: Json, awaited: bool) -> None:
    body = {**SWEEP, "status": {"trials": rows}}
    cache = Cache()
    cache.put_object(Kind.LORASWEEP, body)
    obj = ManagedObject(parse_owner(Kind.LORAJOB, trial), trial)
    assert is_awaited(cast(ReconcileContext, SimpleNamespace(cache=cache)), obj) is awaited


@pytest.fixture
def trials(api: Api) -> Iterator[Trials]:
    trials = Trials()
    players = Kubelets(api, trials.end)
    players.start()
    yield trials
    players.stop()


@pytest.fixture
def operator(own_operator: Callable[..., OperatorProcess]) -> OperatorProcess:
    """Of a platform on which what has ended goes at once."""
    return own_operator(defaultTtlSecondsAfterFinished=0).start()


def states(namespace: Namespace) -> list[str]:
    rows = namespace.status("s", SWEEPS).get("trials") or []
    return [row["state"] for row in rows]


@pytest.mark.slow
def test_trials_live_as_long_as_their_sweep_whatever_the_default(
    api: Api, operator: OperatorProcess, trials: Trials
) -> None:
    namespace = make_namespace(api)
    namespace.apply(lorasweep("s", maxTrials=12, parallelTrials=4, **REST))
    namespace.wait_phase("s", "Succeeded", SWEEPS, timeout=90)
    assert states(namespace) == ["Complete"] * 12
    assert len(api.items(namespace.path("lorajobs"))) == 12
    namespace.patch_spec("s", SWEEPS, ttlSecondsAfterFinished=0)
    eventually("they go with it", lambda: not api.items(namespace.path("lorajobs")))


@pytest.mark.slow
def test_an_outage_that_is_longer_than_their_time_to_live_costs_no_trial(
    api: Api, operator: OperatorProcess, trials: Trials
) -> None:
    namespace = make_namespace(api)
    trials.held.add("*")
    namespace.apply(lorasweep("s", maxTrials=4, parallelTrials=4, **REST))
    eventually("all run", lambda: states(namespace) == ["Running"] * 4)
    operator.kill()
    trials.held.clear()
    time.sleep(3)
    operator.start()
    namespace.wait_phase("s", "Succeeded", SWEEPS, timeout=90)
    assert states(namespace) == ["Complete"] * 4
    assert len(api.items(namespace.path("lorajobs"))) == 4
