"""The checks of `tunery doctor` that need no API server."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
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


def test_the_marks_differ_in_an_encoding_without_them(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONIOENCODING": "cp1252", "KUBECONFIG": str(tmp_path / "none")}
    done = subprocess.run([sys.executable, "-m", "tunery", "doctor"], capture_output=True, env=environment)
    assert done.returncode == 1, done.stderr
    assert done.stdout.startswith(b"FAILED API server: no cluster is configured")
