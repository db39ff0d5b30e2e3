"""The checks of `tunery doctor` that need no API server."""

from __future__ import annotations

from typing import Any

import pytest

from tunery.checks import FAILED, PASSED, queue_check

ACTIVE = {"type": "Active", "status": "True", "message": "Can submit new workloads"}
INACTIVE = {"type": "Active", "status": "False", "message": "Can't submit: clusterQueue is inactive"}


@pytest.mark.parametrize(
    ("status", "result", "message"),
    [
        ({"conditions": [ACTIVE], "pendingWorkloads": 2, "admittedWorkloads": 1}, PASSED, "2 pending, 1 admitted"),
        ({"conditions": [ACTIVE]}, PASSED, "0 pending, 0 admitted"),
        ({"conditions": [INACTIVE]}, FAILED, "Can't submit: clusterQueue is inactive"),
        ({}, FAILED, "Kueue has not read it"),
    ],
)
def test_a_local_queue_passes_if_it_is_active(status: dict[str, Any], result: str, message: str) -> None:
    check = queue_check({"metadata": {"name": "team"}, "spec": {"clusterQueue": "gpus"}, "status": status})
    assert check[:3] == ("LocalQueue team", result, message)
    assert (check.remedy == "Ask a cluster admin: kubectl describe clusterqueue gpus") == (result == FAILED)
