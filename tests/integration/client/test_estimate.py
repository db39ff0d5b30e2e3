"""`tunery estimate` with a running operator: the copy gives the estimate, and nothing of it remains."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tunery.manifest import to_yaml

from kit.operator.api import Json, eventually
from kit.operator.objects import REPORT, Namespace, lorajob, lorasweep

Run = Callable[..., Any]
FULL: Json = {
    **REPORT,
    "memory": {"estimateBytes": 5 * 2**30, "availableBytes": 24 * 2**30, "suggestedBatchSize": 8},
    "estimate": {"steps": 120, "tokens": 1_200_000},
    "dataset": {"rows": 90, "invalidRows": 2, "report": "s3://adapters/r"},
}
REFUSED: Json = {
    "failure": {"reason": "DatasetInvalid", "message": "2 of 9 rows are invalid"},
    "dataset": {"rows": 7, "invalidRows": 2},
}


@pytest.fixture
def manifest(tmp_path: Path) -> str:
    path = tmp_path / "job.yaml"
    path.write_text(to_yaml(lorajob("support", suspend=True)))
    return str(path)


def copy_in(team: Namespace) -> str:
    """Return the name of the copy once it is there."""

    def found() -> str:
        names = [job["metadata"]["name"] for job in team.api.items(team.path("lorajobs"))]
        return next((name for name in names if name.startswith("estimate-support-")), "")

    return eventually("the copy", found)


@pytest.fixture
def end_preflight(served: Namespace) -> Iterator[Callable[..., Any]]:
    """End the preflight of the copy with a report, in another thread."""
    with ThreadPoolExecutor() as pool:

        def end(report: Json, code: int = 0) -> None:
            served.end_pod(served.run_pod(f"{copy_in(served)}-preflight"), code, report)

        yield lambda report, code=0: pool.submit(end, report, code)


def remains(team: Namespace) -> list[str]:
    return [job["metadata"]["name"] for job in team.api.items(team.path("lorajobs"))]


def test_the_estimate_is_shown_and_the_copy_deleted(
    as_tenant: Run, served: Namespace, end_preflight: Run, manifest: str
) -> None:
    ending = end_preflight(FULL)
    done = as_tenant("estimate", "-f", manifest)
    ending.result()
    assert done.code == 0, done.err
    assert done.out.splitlines() == [
        "Method   QLoRA",
        "Memory   5.0 GiB of 24.0 GiB; the largest batch size that fits is 8",
        "Disk     70.0 GiB",
        "Rows     90, and 2 invalid ones",
        "Steps    120",
        "Tokens   1,200,000",
        "Time     unknown: no job of this base model, method and devices has finished here",
    ]
    assert "Preflight" in done.err, "while it waits, stderr says for what"
    eventually("nothing remains", lambda: not remains(served))


def test_json_is_one_document(tunery: Run, end_preflight: Run, manifest: str) -> None:
    ending = end_preflight(FULL)
    found = json.loads(tunery("-o", "json", "estimate", "-f", manifest).out)
    ending.result()
    assert (found["object"], found["method"], found["time"]) == ("lorajob/support", "QLoRA", [])
    assert found["memory"] == FULL["memory"]
    assert found["estimate"] == FULL["estimate"]


def test_a_preflight_that_fails_is_reported_and_the_copy_deleted(
    tunery: Run, served: Namespace, end_preflight: Run, manifest: str
) -> None:
    ending = end_preflight(REFUSED, 64)
    done = tunery("estimate", "-f", manifest)
    ending.result()
    assert done.code == 1
    assert "DatasetInvalid: 2 of 9 rows are invalid" in done.err
    assert "kubectl annotate" not in done.err, "the copy can't be retried"
    assert "Rows     7, and 2 invalid ones" in done.out
    eventually("nothing remains", lambda: not remains(served))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_nothing_behind(
    served: Namespace, control_plane: Any, manifest: str, number: signal.Signals
) -> None:
    command = [sys.executable, "-m", "tunery", "--kubeconfig", str(control_plane.kubeconfig), "-n", served.name]
    with subprocess.Popen([*command, "estimate", "-f", manifest], stderr=subprocess.PIPE, env=os.environ) as process:
        copy_in(served)
        process.send_signal(number)
        _, error = process.communicate(timeout=30)
    assert process.returncode == 130, error
    assert b"Traceback" not in error
    eventually("nothing remains", lambda: not remains(served))


def test_a_user_who_may_not_delete_gets_no_copy(
    tenant_kubeconfig: Path, team: Namespace, manifest: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from tunery.cli import run

    assert run(["--kubeconfig", str(tenant_kubeconfig), "-n", team.name, "estimate", "-f", manifest]) == 1
    assert "you may not delete LoRAJobs" in capsys.readouterr().err
    assert not remains(team)


@pytest.mark.parametrize(
    ("documents", "error"),
    [
        ([lorajob("a"), lorajob("b")], "has 2 LoRAJobs"),
        ([lorasweep("s")], "has 0 LoRAJobs"),
        ([lorajob("a") | {"kind": "LoraJob"}], "did you mean LoRAJob?"),
    ],
)
def test_only_one_job_is_estimated(tunery: Run, tmp_path: Path, documents: list[Json], error: str) -> None:
    path = tmp_path / "jobs.yaml"
    path.write_text("---\n".join(map(to_yaml, documents)))
    done = tunery("estimate", "-f", str(path))
    assert (done.code, error in done.err) == (2, True), done.err
