"""A LoRASweep from its first trial to the published best, on a real API server and Job controller."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from controller.api import Api, Json, eventually
from controller.objects import Namespace, lorasweep
from controller.players import Kubelets
from controller.process import OperatorProcess
from controller.sweeps import loss_of, trial_ends


@pytest.fixture
def kubelets(api: Api) -> Iterator[Kubelets]:
    """Nodes on which every trial ends well."""
    players = Kubelets(api, trial_ends)
    players.start()
    yield players
    players.stop()


def ended(namespace: Namespace, name: str, phase: str = "Succeeded", timeout: float = 90) -> Json:
    """Return the status of a sweep once it has ended."""

    def check() -> Json | None:
        status = (namespace.get("lorasweeps", name) or {}).get("status") or {}
        assert status.get("phase") in (None, phase) or status["phase"] not in ("Succeeded", "Failed"), status
        return status if status.get("phase") == phase else None

    return eventually(f"{name} is {phase}", check, timeout)


def test_the_best_of_twelve_trials_is_published(
    namespace: Namespace, operator: OperatorProcess, kubelets: Kubelets
) -> None:
    namespace.apply(lorasweep("support", maxTrials=12, parallelTrials=3, pruner={"type": "None"}))
    status = ended(namespace, "support")
    rows = status["trials"]
    assert [row["number"] for row in rows] == list(range(12))
    assert {row["state"] for row in rows} == {"Complete"}
    for row in rows:
        rate = float(row["parameters"]["training.learningRate"])
        assert float(row["value"]) == pytest.approx(loss_of(rate), rel=1e-5)
    best = min(rows, key=lambda row: float(row["value"]))
    assert (status["best"]["trial"], status["best"]["name"]) == (best["number"], f"support-{best['number']:03d}")
    assert status["endReason"] == "MaxTrials"
    assert status["adapter"]["uri"] == "s3://adapters/support"
    assert status["countsText"] == "12/12"
