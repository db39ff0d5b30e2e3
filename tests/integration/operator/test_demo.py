"""What the demos print of a job that waits, is joined, or is left by Ctrl-C, beside a real operator and scheduler."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from typing import Any

import pytest

from tunery_api.kubectl_yaml import documents_of

from kit.jobs import Job
from kit.kubectl import Kubectl
from kit.operator.objects import RESULT, Namespace, adapterserver, lorajob
from kit.projects import ROOT
from tools.demo import __main__ as first
from tools.demo import serving
from tools.demo.jobs import begin, follow
from tools.demo.telling import NAMESPACE, Hold, Interrupted

FOLLOW = """
import json, os, sys
from tools.demo.jobs import follow
from tools.demo.telling import ended
from kit.jobs import Job
from kit.kubectl import Kubectl
sys.exit(ended(lambda: follow(Job(Kubectl(os.environ), json.loads(sys.argv[1]), sys.argv[2]))))
"""


def waiting_job(kubectl: Kubectl, namespace: Namespace, name: str, **spec: Any) -> Job:
    """Return a job, applied as the demo does it, that the scheduler has found no node for: there is none."""
    job = Job(kubectl, lorajob(name, **spec), namespace.name)
    begin(job)
    job.wait_failure("Unschedulable", 60)
    return job


@pytest.mark.slow
def test_what_holds_a_job_is_told_once_under_the_table_and_in_the_last_lines_at_a_timeout(
    api_server: Kubectl, namespace: Namespace, capsys: pytest.CaptureFixture[str]
) -> None:
    job = waiting_job(api_server, namespace, "full")
    with pytest.raises(TimeoutError) as caught:
        follow(job, seconds=4)
    failure = job.failure
    told = capsys.readouterr().out.splitlines()
    assert told[-2:] == [f"  waiting: Unschedulable: {failure['message']}", f"    {failure['hint']}"]
    *_, why, last = str(caught.value).splitlines()
    assert "it goes on, and the same command looks on again" in last
    assert why == f"waiting: Unschedulable: {failure['message']} {failure['hint']}"


def test_servers_that_keep_the_demos_node_busy_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    class Servers:
        def list(self, kind: str, namespace: str) -> list[dict[str, Any]]:
            assert (kind, namespace) == ("adapterservers", NAMESPACE)
            return [{"metadata": {"name": name}} for name in ("demo", "own")]

    full = {"failure": {"reason": "Unschedulable", "message": "0/1 nodes", "hint": "Free one."}}
    Hold().tell(full, Servers(), "own")  # type: ignore[arg-type]  # all that is asked of kubectl
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "AdapterServer" in line]
    assert line.strip() == (
        "AdapterServer demo keeps a part of the node: kubectl -n tunery-demo delete adapterserver demo makes room"
    )


def test_what_holds_an_object_is_told_again_only_where_it_changes(capsys: pytest.CaptureFixture[str]) -> None:
    hold = Hold()
    full = {"failure": {"reason": "Unschedulable", "message": "0/1 nodes [/x]", "hint": "Free one."}}
    condition = {"type": "Preflight", "status": "Unknown", "reason": "WaitingForPredecessor", "message": "waits for p"}
    for status in ({}, full, full, {"conditions": [condition]}, {"conditions": [condition]}, {}, {}):
        hold.tell(status)
    assert capsys.readouterr().out.splitlines() == [
        "  waiting: Unschedulable: 0/1 nodes [/x]",
        "    Free one.",
        "  waiting: WaitingForPredecessor: waits for p",
        "  no longer waiting",
    ]


@pytest.mark.slow
def test_what_holds_a_server_is_told_under_its_table_and_in_the_last_lines(
    api_server: Kubectl, namespace: Namespace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    namespace.apply(adapterserver("full"))
    Job(api_server, adapterserver("full"), namespace.name).wait_failure("Unschedulable", 60)
    monkeypatch.setattr(serving, "NAMESPACE", namespace.name)
    monkeypatch.setattr(serving, "START_SECONDS", 3)
    with pytest.raises(TimeoutError) as caught:
        serving._follow_server(api_server, "full", set(), "tunery-server:any")
    assert capsys.readouterr().out.count("  waiting: Unschedulable: ") == 1
    *_, why, last = str(caught.value).splitlines()
    assert why.startswith("waiting: Unschedulable: ")
    assert last.endswith("; it goes on")


def test_kubectl_finds_what_the_demo_has_applied_unchanged(api_server: Kubectl, namespace: Namespace) -> None:
    (manifest,) = documents_of(first.MANIFEST.read_text())
    begin(Job(api_server, manifest, namespace.name))
    told = api_server.run("apply", "-n", namespace.name, "-f", str(first.MANIFEST))
    assert told.strip().endswith("unchanged")


@pytest.mark.slow
def test_a_job_that_still_waits_is_joined_by_the_next_demo_and_one_of_another_spec_is_said_to_be_replaced(
    api_server: Kubectl, namespace: Namespace, capsys: pytest.CaptureFixture[str]
) -> None:
    job = waiting_job(api_server, namespace, "again")
    uid = job.uid
    capsys.readouterr()
    begin(job)
    assert job.uid == uid
    assert (
        "LoRAJob again of an earlier run is still at work with the same spec: it is joined" in capsys.readouterr().out
    )
    other = Job(api_server, lorajob("again", training={"maxSteps": 3}), namespace.name)
    begin(other)
    assert other.uid != uid
    assert "LoRAJob again of an earlier run (Preflight) is deleted" in capsys.readouterr().out


@pytest.mark.slow
def test_a_job_that_has_ended_is_replaced_and_its_end_is_told(
    api_server: Kubectl, namespace: Namespace, capsys: pytest.CaptureFixture[str]
) -> None:
    job = Job(api_server, lorajob("done", preflight="Skip"), namespace.name)
    begin(job)
    namespace.end_pod(namespace.run_pod("done-train"), message=RESULT)
    job.wait_phase("Succeeded")
    uid = job.uid
    api_server.run("label", "lorajob", "done", "-n", namespace.name, "served-by=demo")
    begin(job)
    assert job.uid != uid
    labels = (api_server.get("lorajob", "done", namespace.name) or {})["metadata"]["labels"]
    assert labels["served-by"] == "demo", "or a server that serves it would lose it"
    assert "LoRAJob done of an earlier run (Succeeded) is deleted" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_ctrl_c_says_in_a_line_what_goes_on_and_how_to_stop_it(
    number: signal.Signals, api_server: Kubectl, namespace: Namespace
) -> None:
    job = waiting_job(api_server, namespace, "left")
    command = [sys.executable, "-uc", FOLLOW, json.dumps(job.manifest), namespace.name]
    process = subprocess.Popen(
        command,
        cwd=ROOT / "tests",
        env=api_server.environment | {"CLUSTER": "local"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    while "waiting: Unschedulable" not in process.stdout.readline():
        assert process.poll() is None
    os.killpg(process.pid, number)  # as a terminal and timeout do it: kubectl gets it, too
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "")
    assert out.splitlines()[-1].startswith("Interrupted: lorajob/left and the local cluster go on; to stop it: ")
    assert job.uid, "it continues"


def test_what_ctrl_c_says_names_every_object_that_goes_on_and_nothing_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CLUSTER", "existing")
    objects = ("adapterserver/demo", "lorajob/parcels")
    delete = f"kubectl delete -n {NAMESPACE} adapterserver/demo lorajob/parcels"
    assert str(Interrupted(*objects)) == f"Interrupted: {' and '.join(objects)} go on; to stop them: {delete}"
    assert str(Interrupted()) == "Interrupted: no job of the demo runs"
    monkeypatch.delenv("CLUSTER")
    assert str(Interrupted()) == "Interrupted: the local cluster goes on; make cluster-down stops it all"


class Ended(Job):
    """A job that has succeeded, as the first demo sees it at its end."""

    @property
    def status(self) -> dict[str, Any]:
        loss = {"baseEvalLoss": "3.5", "evalLoss": "1.25", "improvement": "0.643", "improvementError": "0.02"}
        return {"adapter": {"uri": "s3://adapters/quickstart"}, "metrics": loss}


@pytest.mark.parametrize("cluster", ["local", "existing"])
def test_the_demo_ends_with_what_it_has_made_and_names_the_other_demos(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, cluster: str
) -> None:
    monkeypatch.setenv("CLUSTER", cluster)
    told = [{"question": "Are you a robot?", "base": "No.", "tuned": "I am the parcel desk."}]
    first._farewell(Ended(Kubectl({}), lorajob("quickstart"), NAMESPACE), told, 61.4)
    lines = capsys.readouterr().out.splitlines()
    assert "  fine-tuned   I am the parcel desk." in lines
    assert "evaluation loss  3.500 → 1.250  −64.3 % (± 2.0 %) on held-out rows" in lines
    assert "time             61 s, after the environment was ready" in lines
    tried = lines[lines.index("Try next:") + 1 :]
    assert [line.split("#")[0].strip() for line in tried if line.startswith("  make ")] == [
        "make demo-serving",
        "make demo-sweep",
        *["make cluster-down"] * (cluster == "local"),
    ]
    assert any(f"kubectl describe lorajob quickstart -n {NAMESPACE}" in line for line in tried)
    assert [line for line in tried if "cluster-env" in line and cluster == "existing"] == []


def test_what_is_tried_next_can_be_typed_again_and_beside_the_commands_of_the_pages(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A port-forward ends with its replica, and one of the pages may be there already."""
    serving._farewell("demo", "parcels")
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    [forward] = [line for line in lines if "port-forward" in line]
    assert forward.startswith("kill $FORWARD 2>/dev/null; kubectl ")
    [port] = re.findall(r" (\d+):8000 ", forward)
    assert f" {port}" not in (ROOT / "docs" / "serving.md").read_text()
    asked = [line for line in lines if line.startswith("curl ")]
    assert len(asked) == 2
    assert all(f"http://127.0.0.1:{port}/v1/" in line for line in asked)
    body = json.loads(asked[1].partition(" -d '")[2].rstrip("'"))
    assert body["temperature"] == 0
    assert body["max_tokens"] > 0


def test_what_the_demos_name_at_their_end_exists(capsys: pytest.CaptureFixture[str]) -> None:
    first._farewell(Ended(Kubectl({}), lorajob("quickstart"), NAMESPACE), [], 1)
    serving._farewell("demo", "parcels")
    text = capsys.readouterr().out
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"make (?:-s )?([a-z-]+)", text)) - targets == set()
    files = re.findall(r"docs/[\w./-]+\.(?:md|yaml)", text)
    assert len(files) >= 2
    assert [name for name in files if not (ROOT / name).is_file()] == []
