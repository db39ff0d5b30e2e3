"""`tunery list` and `tunery get` against an API server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from kit.operator.objects import Namespace, adapterserver, lorajob, lorasweep
from tools.cluster.controlplane import ControlPlane

Run = Callable[..., Any]


def trial(name: str) -> dict[str, Any]:
    body = lorajob(name)
    body["metadata"]["labels"] = {"tunery.dev/sweep": "search", "tunery.dev/trial": "004", "team": "support"}
    return body


def test_list_shows_the_kinds_and_hides_trials(team: Namespace, tunery: Run, put_status: Run) -> None:
    for body in (lorajob("support"), trial("search-004"), lorasweep("search"), adapterserver("chat")):
        team.apply(body)
    put_status(
        "support", phase="Training", progress={"percentText": "41%"}, metrics={"loss": "1.25"}, reason="NotReporting"
    )
    put_status(
        "search", "lorasweeps", phase="Searching", countsText="7/20", best={"trial": 4, "name": "x", "value": "1.1"}
    )

    lines = [line.split() for line in tunery("list").out.splitlines()]
    assert lines[0] == ["NAME", "KIND", "PHASE", "PROGRESS", "REASON", "LOSS", "AGE"]
    assert [line[:-1] for line in lines[1:]] == [
        ["support", "LoRAJob", "Training", "41%", "NotReporting", "1.25"],
        ["chat", "AdapterServer", "Pending"],
        ["search", "LoRASweep", "Searching", "7/20", "1.1"],
    ]
    assert "search-004" in tunery("list", "--trials").out
    assert "search-004" in tunery("list", "-l", "tunery.dev/sweep=search").out
    assert "search-004" not in tunery("list", "-l", "team=support").out
    assert "search-004" in tunery("list", "-l", "team=support", "--trials").out


def test_list_of_one_kind_and_of_all_namespaces(team: Namespace, tunery: Run) -> None:
    for body in (lorajob("support"), lorasweep("search")):
        team.apply(body)
    assert "support" not in tunery("list", "--kind", "lsw").out
    mine = [line.split() for line in tunery("list", "-A").out.splitlines() if team.name in line.split()]
    assert [line[:3] for line in mine] == [[team.name, "support", "LoRAJob"], [team.name, "search", "LoRASweep"]]
    items = json.loads(tunery("-o", "json", "list").out)["items"]
    assert [(each["kind"], each["metadata"]["name"]) for each in items] == [
        ("LoRAJob", "support"),
        ("LoRASweep", "search"),
    ]


def test_options_of_all_commands_may_follow_the_command(team: Namespace, tunery: Run) -> None:
    assert tunery("list", "-n", "other").out == "No objects in namespace other\n"
    assert json.loads(tunery("list", "-o", "json", "-n", team.name).out)["items"] == []


def test_list_of_nothing_and_of_an_unknown_kind(team: Namespace, tunery: Run) -> None:
    assert tunery("list").out == f"No objects in namespace {team.name}\n"
    done = tunery("list", "--kind", "lorajop")
    assert (done.code, done.out) == (2, "")
    assert "did you mean lorajob?" in done.err


HINT = ("Train longer. " * 20).rstrip()


def test_get_shows_results_and_what_is_not_as_it_should_be(team: Namespace, tunery: Run, put_status: Run) -> None:
    team.apply(lorajob("support", model={"uri": "hf://Qwen/Qwen3-8B"}))
    condition = {"lastTransitionTime": "2026-12-02T10:00:00Z", "reason": "R"}
    attempt = {"uid": "u", "node": "gpu-1", "startTime": "2026-12-02T10:00:00Z", "endTime": "2026-12-02T10:05:00Z"}
    put_status(
        "support",
        phase="Failed",
        reason="NotImproved",
        progress={"percentText": "100%", "step": 1200, "totalSteps": 1200, "eta": "0s"},
        metrics={
            "loss": "1.25",
            "evalLoss": "2.4",
            "baseEvalLoss": "2.5",
            "improvement": "0.04",
            "improvementError": "0.012",
        },
        resolved={"method": "QLoRA", "rank": 16},
        gpuSeconds=5400,
        failure={"reason": "NotImproved", "message": "the [bold]loss[/bold] \x1b[31mrose", "hint": HINT},
        rejectedAdapter={"uri": "s3://adapters/support-rejected", "manifestSha256": "ab" * 32, "sizeBytes": 12},
        findings=[{"type": "LossRising", "severity": "Warning", "message": "for 20 steps", "step": 9}],
        conditions=[
            condition | {"type": "RankSufficient", "status": "False", "message": "a low rank"},
            condition | {"type": "Validated", "status": "True", "message": "all is fine"},
            condition | {"type": "CheckpointSaved", "status": "False", "reason": "Removed", "message": "gone"},
        ],
        attemptHistory=[
            attempt | {"pod": "a", "reason": "NodeLost", "seconds": 300},
            attempt | {"pod": "b", "exitCode": 65, "reason": "NotImproved"},
        ],
    )
    text = tunery("get", "support").out
    assert text.splitlines()[:2] == ["lorajob/support", "  Phase             Failed, NotImproved"]
    for line in (
        "  Progress          100%, step 1,200 of 1,200",
        "  Held-out loss     2.4, before training 2.5: −4.0 % (± 1.2 %)",
        "  Model             hf://Qwen/Qwen3-8B",
        "  Method            QLoRA, rank 16",
        "  Rejected adapter  s3://adapters/support-rejected",
        "  GPU time          90m",
        "  NotImproved: the [bold]loss[/bold] [31mrose",
        f"  {HINT}",
        "  RankSufficient=False R: a low rank",
        "  warning: LossRising: for 20 steps",
    ):
        assert line in [each.rstrip() for each in text.splitlines()]
    assert "all is fine" not in text
    assert "gone" not in text
    assert "pod a on node gpu-1 ended after 300 s: NodeLost" in text
    body = json.loads(tunery("-o", "json", "get", "lj/support").out)
    assert (body["kind"], body["metadata"]["name"], body["status"]["phase"]) == ("LoRAJob", "support", "Failed")
    assert "managedFields" not in body["metadata"]


@pytest.mark.slow
def test_a_thousand_jobs_are_listed_quickly(team: Namespace, control_plane: ControlPlane) -> None:
    """The promise is 1.5 s in all; beside other work, only the time of the processor is comparable."""
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: full(team, f"job-{number:04}"), range(1000)))
    command = [sys.executable, "-m", "tunery", "--kubeconfig", str(control_plane.kubeconfig), "-n", team.name]
    used, waited = [], []
    for options in (["list"], ["list"], ["list", "-A"]):
        before, begun = os.times(), time.perf_counter()
        done = subprocess.run([*command, *options], capture_output=True, text=True, env=environment(), timeout=60)
        after = os.times()
        waited.append(round(time.perf_counter() - begun, 2))
        used.append(after.children_user + after.children_system - before.children_user - before.children_system)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("\n") >= 1001
    print("seconds", waited, "of the processor", [round(each, 2) for each in used])
    assert max(used) <= 1.2


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}


def full(team: Namespace, name: str) -> None:
    """Create a job whose status is as long as that of a job that trained."""
    team.apply(lorajob(name))
    text = "what happened to this job, in a sentence that is as long as those of the operator are"
    condition = {"status": "True", "reason": "Reason", "message": text, "lastTransitionTime": "2026-12-02T10:00:00Z"}
    status = {
        "phase": "Training",
        "progress": {"percentText": "41%", "step": 41},
        "metrics": {"loss": "1.25"},
        "conditions": [condition | {"type": f"Type{number}"} for number in range(14)],
        "resolved": {"values": [{"name": f"training.n{n}", "value": "1", "source": "Preset"} for n in range(40)]},
    }
    team.api.patch(f"{team.path('lorajobs', name)}/status", {"status": status})
