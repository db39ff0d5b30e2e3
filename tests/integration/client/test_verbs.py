"""`tunery stop`, `suspend`, `resume`, `retry` and `resubmit` against an API server, and with a running operator."""

from __future__ import annotations

import json
import os
import pty
import select
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from kit.operator.objects import Namespace, adapterserver, batchinference, lorajob, lorasweep
from tools.cluster.controlplane import ControlPlane

Run = Callable[..., Any]


def spec(team: Namespace, name: str, plural: str = "lorajobs") -> dict[str, Any]:
    found = team.get(plural, name)
    assert found is not None
    return dict(found["spec"])


def test_stop_sets_the_reason_and_says_what_is_published(team: Namespace, tunery: Run, put_status: Run) -> None:
    team.apply(lorajob("support"))
    put_status("support", phase="Training", checkpoint={"uri": "s3://b/c", "step": 200})
    done = tunery("stop", "support", "--reason", "low enough")
    assert done.out == (
        "lorajob/support will be stopped; the best weights of its latest checkpoint will be published. "
        f"To follow it: tunery watch lorajob/support -n {team.name}\n"
    )
    assert spec(team, "support")["stop"] == "low enough"
    assert "onStop" not in spec(team, "support")
    assert tunery("stop", "support").out == "lorajob/support is stopped already: low enough\n"


def test_stop_and_discard(team: Namespace, tunery: Run, put_status: Run) -> None:
    team.apply(lorajob("support"))
    put_status("support", phase="Training", checkpoint={"uri": "s3://b/c", "step": 200})
    assert "nothing will be published" in tunery("stop", "support", "--discard").out
    assert spec(team, "support")["onStop"] == "Discard"


@pytest.mark.parametrize(("answer", "code", "stop"), [(b"n\n", 1, None), (b"\x03", 130, None), (b"y\n", 0, "enough")])
def test_a_terminal_asks_before_nothing_is_published(
    team: Namespace, control_plane: ControlPlane, answer: bytes, code: int, stop: str | None
) -> None:
    team.apply(lorajob("support"))
    program = [sys.executable, "-m", "tunery", "--kubeconfig", str(control_plane.kubeconfig), "-n", team.name]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    child, terminal = pty.fork()
    if child == 0:
        os.execve(program[0], [*program, "stop", "support", "--reason", "enough"], environment)
    shown = b""
    # A terminal whose program has ended answers with an error.
    with suppress(OSError):
        while len(shown) < 10_000:
            is_quiet = not select.select([terminal], [], [], 2)[0]
            shown += b"" if is_quiet else os.read(terminal, 4096)
            # Python may miss a Ctrl-C between the prompt and its first read: a person would press it again.
            if b"[y/N]: " in shown and (is_quiet or shown.endswith(b"[y/N]: ")):
                os.write(terminal, answer)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == code, shown
    assert b"no checkpoint is reported yet, so nothing may be published. Stop it for good? [y/N]: " in shown
    assert spec(team, "support").get("stop") == stop


def test_stop_of_a_failed_job_needs_a_retry(team: Namespace, tunery: Run, put_status: Run) -> None:
    team.apply(lorajob("support"))
    put_status("support", phase="Failed", checkpoint={"uri": "s3://b/c", "step": 200})
    assert f"will be published: tunery retry lorajob/support -n {team.name}" in tunery("stop", "support").out
    assert "stop" in spec(team, "support")


def test_stop_of_a_sweep_creates_no_more_trials(team: Namespace, tunery: Run, put_status: Run) -> None:
    team.apply(lorasweep("search"))
    assert tunery("stop", "search").code == 1
    put_status("search", "lorasweeps", phase="Searching", counts={"created": 3})
    assert "no more trials" in tunery("stop", "lsw/search").out
    assert spec(team, "search", "lorasweeps")["maxTrials"] == 1


@pytest.mark.parametrize(
    ("body", "remedy"),
    [
        (adapterserver("chat"), "kubectl scale adapterserver/chat --replicas=0"),
        (batchinference("chat"), "tunery suspend"),
    ],
)
def test_other_kinds_end_otherwise(team: Namespace, tunery: Run, body: Any, remedy: str) -> None:
    team.apply(body)
    done = tunery("stop", "chat")
    assert (done.code, done.out) == (2, "")
    assert remedy in done.err


def test_suspend_and_resume(team: Namespace, tunery: Run, put_status: Run) -> None:
    team.apply(lorajob("support"))
    put_status("support", phase="Training")
    assert tunery("resume", "support").out == "lorajob/support is not suspended, phase Training\n"
    assert "will be suspended. To resume it: tunery resume lorajob/support" in tunery("suspend", "support").out
    assert spec(team, "support")["suspend"] is True
    assert "is suspended already" in tunery("suspend", "support").out
    body = json.loads(tunery("-o", "json", "resume", "support").out)
    assert body["spec"]["suspend"] is False


@pytest.mark.parametrize("phase", ["Succeeded", "Stopped"])
def test_what_has_finished_is_resubmitted_only(team: Namespace, tunery: Run, put_status: Run, phase: str) -> None:
    team.apply(lorajob("support"))
    put_status("support", phase=phase)
    for verb in ("stop", "suspend", "retry"):
        done = tunery(verb, "support")
        assert (done.code, done.out) == (1, "")
        assert f"phase is {phase}" in done.err or f"phase {phase}" in done.err
    assert "tunery resubmit lorajob/support" in tunery("retry", "support").err


def test_a_failed_job_is_retried_by_the_operator(served: Namespace, tunery: Run) -> None:
    served.apply(lorajob("t", preflight="Skip", retries=0))
    assert "has not failed" in tunery("retry", "t").err
    failure = {"failure": {"reason": "DatasetInvalid", "message": "line 7 has no answer"}}
    served.end_pod(served.run_pod("t-train"), 64, failure)
    status = served.wait_phase("t", "Failed")

    shown = tunery("get", "t").out
    assert "Failed, DatasetInvalid" in shown
    assert status["failure"]["hint"] in shown

    assert "will be retried" in tunery("retry", "t").out
    served.finish("t")
    served.wait_phase("t", "Succeeded")
    shown = tunery("get", "t").out
    assert "s3://adapters/x" in shown
    assert "1.4, before training 2.5" in shown


def test_resubmit_copies_the_spec_with_other_settings(team: Namespace, tunery: Run, put_status: Run) -> None:
    body = lorajob("support", suspend=True, stop="enough", training={"epochs": 1, "learningRate": 1e-4})
    body["metadata"]["labels"] = {"team": "support", "tunery.dev/sweep": "s"}
    team.apply(body)
    put_status("support", phase="Stopped")
    done = tunery("resubmit", "support", "--set", "training.epochs=3", "--set", "training.learningRate=2e-4")
    assert done.out.startswith("lorajob/support-2 is created and publishes at s3://adapters/support-2. ")
    copy = team.get("lorajobs", "support-2")
    assert copy is not None
    assert copy["metadata"]["labels"] == {"team": "support"}
    assert copy["spec"]["training"] == {"epochs": 3, "learningRate": 2e-4}
    assert copy["spec"]["output"] == {"uri": "s3://adapters/support-2", "secretRef": {"name": "s3"}}
    assert not {"stop", "suspend"} & copy["spec"].keys()
    assert "lorajob/support-3 is created" in tunery("resubmit", "support").out


def test_resubmit_copies_a_sweep(team: Namespace, tunery: Run) -> None:
    team.apply(lorasweep("search"))
    assert "lorasweep/more is created" in tunery("resubmit", "search", "--set", "maxTrials=9", "--name", "more").out
    assert spec(team, "more", "lorasweeps") == spec(team, "search", "lorasweeps") | {
        "maxTrials": 9,
        "output": {"uri": "s3://adapters/more", "secretRef": {"name": "s3"}},
    }


def test_resubmit_rejects_what_is_invalid_before_it_sends(team: Namespace, tunery: Run) -> None:
    team.apply(lorajob("support"))
    done = tunery("resubmit", "support", "--set", "training.epoch=3")
    assert (done.code, done.out) == (2, "")
    assert "did you mean epochs?" in done.err
    taken = tunery("resubmit", "support", "--name", "support")
    assert taken.code == 1
    assert "AlreadyExists" in taken.err
    assert len(team.api.items(team.path("lorajobs"))) == 1


def test_a_misspelt_name_gets_a_near_one(team: Namespace, tunery: Run) -> None:
    team.apply(lorajob("support"))
    done = tunery("suspend", "suport")
    assert (done.code, done.out) == (1, "")
    assert "did you mean support?" in done.err
