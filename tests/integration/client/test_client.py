"""The Python client against a real API server."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

import tunery
from tunery import Client, NotFound, Stopped, TimedOut, TuneryError, UsageError
from tunery.errors import Conflict, InvalidManifest

from kit.operator.objects import Namespace, adapterserver, lorajob
from tools.cluster.controlplane import ControlPlane

OPTIONS = {"model": "s3://models/tiny", "data": "s3://data/d.jsonl", "output": "s3://a/x", "secret": "s3", "gpus": 0}


@pytest.fixture
def client(control_plane: ControlPlane, team: Namespace) -> Client:
    """The client in the namespace of the test."""
    return Client(kubeconfig=str(control_plane.kubeconfig), namespace=team.name)


def test_submit_by_options(client: Client, team: Namespace) -> None:
    job = client.submit(**OPTIONS, name="a", settings={"training.epochs": 3, "lora.targetModules": ["q_proj"]})
    found = team.get("lorajobs", "a")
    assert found is not None
    assert found["spec"]["training"]["epochs"] == 3
    assert found["spec"]["lora"]["targetModules"] == ["q_proj"]
    assert found["spec"]["output"] == {"uri": "s3://a/x", "secretRef": {"name": "s3"}}
    assert (job.name, job.kind, job.phase) == ("a", "LoRAJob", "Pending")
    assert repr(job) == "<Job lorajob/a Pending>"
    assert [each.name for each in client.list()] == ["a"]
    with pytest.raises(Conflict):
        client.submit(**OPTIONS, name="a")


def test_submit_a_manifest(client: Client, tmp_path: Path) -> None:
    assert client.submit(lorajob("a")).name == "a"
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(lorajob("b")))
    assert client.submit(path, settings={"training.epochs": 2}).spec["training"]["epochs"] == 2
    assert client.get("lorajob/b").name == "b"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "model and data must be given"),
        ({"model": "hf://a/b"}, "data must be given"),
        ({**OPTIONS, "epochs": 3}, "submit has no option epochs"),
    ],
)
def test_wrong_options(client: Client, options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        client.submit(**options)


def test_an_invalid_manifest_names_every_error_and_sends_nothing(client: Client) -> None:
    with pytest.raises(InvalidManifest) as caught:
        client.submit(lorajob("a", training={"epochs": -1}, method="Lora"))
    assert "spec.training.epochs" in caught.value.message
    assert "spec.method" in caught.value.message
    assert client.list() == []


def test_wait_and_failure(client: Client, put_status: Callable[..., None]) -> None:
    job = client.submit(lorajob("a"))
    failure = {"reason": "DiskFull", "message": "no room", "hint": "Raise it."}
    threading.Timer(0.5, lambda: put_status("a", phase="Failed", failure=failure)).start()
    with pytest.raises(TuneryError, match="no room") as caught:
        job.wait("30s").raise_for_failure()
    assert (caught.value.reason, caught.value.message, caught.value.remedy) == ("DiskFull", "no room", "Raise it.")
    job.retry()
    assert job.raise_for_failure() is job
    put_status("a", phase="Stopped", failure=None)
    with pytest.raises(Stopped):
        job.wait(30).raise_for_failure()


def test_wait_ends_in_time_and_the_object_continues(client: Client) -> None:
    began = time.monotonic()
    with pytest.raises(TimedOut):
        client.submit(lorajob("a")).wait("1s")
    assert time.monotonic() - began < 4
    assert client.get("a").phase == "Pending"


def test_watch_prints_lines_outside_of_terminals(
    client: Client, put_status: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    job = client.submit(lorajob("a"))
    put_status("a", phase="Succeeded", adapter={"uri": "s3://a/x", "manifestSha256": "ab" * 32, "sizeBytes": 1})
    assert job.watch() is job
    assert "adapter: s3://a/x" in capsys.readouterr().out


def test_watch_prints_what_the_encoding_of_stdout_has(
    client: Client, put_status: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = client.submit(lorajob("a"))
    put_status("a", phase="Succeeded", metrics={"evalLoss": "1.4", "baseEvalLoss": "2.5"})
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding="cp1252", write_through=True))
    job.watch()
    assert b"held-out loss: 2.5 -> 1.4, -44.0 %" in out.getvalue()


def test_the_curve(client: Client, put_status: Callable[..., None]) -> None:
    job = client.submit(lorajob("a"))
    assert job.curve == []
    put_status("a", curve={"points": [{"step": 1, "loss": "2.5"}, {"step": 2, "loss": "2", "evalLoss": "2.25"}]})
    assert job.curve == [{"step": 1, "loss": 2.5}, {"step": 2, "loss": 2.0, "evalLoss": 2.25}]


def test_the_verbs(client: Client, team: Namespace) -> None:
    job = client.submit(lorajob("a")).suspend()
    assert job.spec["suspend"] is True
    assert job.resume().spec["suspend"] is False
    assert job.stop("enough").spec["stop"] == "enough"
    with pytest.raises(UsageError, match="has not failed"):
        job.retry()
    server = client.submit(adapterserver("s"))
    for refused in (server.suspend, server.stop, server.wait):
        with pytest.raises(UsageError):
            refused()


def test_another_object_of_the_name_is_not_changed(client: Client, team: Namespace) -> None:
    job = client.submit(lorajob("a"))
    team.delete("lorajobs", "a")
    client.submit(lorajob("a"))
    for call in (job.suspend, job.refresh):
        with pytest.raises(TuneryError, match="another one of its name"):
            call()
    assert not client.get("a").spec.get("suspend")
    with pytest.raises(NotFound):
        client.get("b")


def test_the_package_imports_no_kubernetes_before_it_is_used() -> None:
    code = "import sys, tunery; print('kubernetes' in sys.modules, dir(tunery)); tunery.Client; print(tunery.nothing)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.startswith("False")
    assert "'Client'" in done.stdout
    assert "module 'tunery' has no attribute 'nothing'" in done.stderr
    assert set(tunery.__all__) <= set(dir(tunery))
