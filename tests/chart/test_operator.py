"""The operator as the chart configures it: with the chart's environment, certificate and rights, and no others."""

from __future__ import annotations

import base64
import http.client
import os
import socket
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from .installing import TEAM, kubeconfig_of_the_service_account
from .rendering import CHART, NAMESPACE, Rendered
from kit.jobs import Job
from kit.kubectl import Kubectl, wait_for


@dataclass(frozen=True)
class Operator:
    """A running operator: its folder with log and certificate, and where it takes progress."""

    folder: Path
    progress_port: int

    def log(self) -> str:
        """Return what it has said so far."""
        return (self.folder / "log").read_text()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@pytest.fixture(scope="module")
def operator(installed: Kubectl, rendered: Rendered, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    """Run the operator until the module ends; return it once it is ready."""
    running = Operator(tmp_path_factory.mktemp("operator"), free_port())
    secret = installed.get("secret", "tunery-progress-tls", NAMESPACE)
    assert secret is not None
    for name, value in secret["data"].items():
        (running.folder / name).write_bytes(base64.b64decode(value))
    metrics = free_port()
    environment = rendered.env() | {
        "TUNERY_PROGRESS_TLS_DIR": str(running.folder),
        "TUNERY_PROGRESS_PORT": str(running.progress_port),
        "TUNERY_METRICS_PORT": str(metrics),
        "TUNERY_POD_NAME": "tunery-0",
        "KUBECONFIG": str(kubeconfig_of_the_service_account(installed, running.folder)),
        "PATH": os.environ["PATH"],
        "HOME": str(running.folder),
    }
    command = [sys.executable, "-m", "tunery_operator"]
    with (running.folder / "log").open("w") as output:
        process = subprocess.Popen(command, env=environment, cwd=running.folder, stderr=output)
    try:
        wait_for("the operator to be ready", lambda: answers(process, metrics), timeout=60)
        yield running
    finally:
        process.terminate()
        process.wait(timeout=20)


def answers(process: subprocess.Popen[bytes], port: int) -> bool:
    if process.poll() is not None:
        raise AssertionError(f"the operator ended with {process.returncode}")
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def test_a_job_gets_its_preflight(installed: Kubectl, operator: Operator) -> None:
    manifest = yaml.safe_load((CHART.parents[1] / "docs" / "examples" / "lora.yaml").read_text())
    job = Job(installed, manifest, TEAM).apply()
    (preflight,) = wait_for("the preflight Job", lambda: job.jobs("preflight"), timeout=30)
    (pod,) = wait_for("its pod, which restricted Pod Security admits", lambda: job.pods("preflight"), timeout=30)
    (owner,) = preflight["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"], owner["controller"]) == ("LoRAJob", "lora", True)
    assert pod["spec"]["containers"][0]["image"] == "tunery-trainer:0.1.0"
    wait_for("a phase", lambda: job.status.get("phase") in {"Pending", "Preflight"}, timeout=30)
    installed.delete("lorajob", "lora", TEAM)
    assert "forbidden" not in operator.log().lower()


def test_its_events_are_taken(installed: Kubectl, operator: Operator) -> None:
    manifest = yaml.safe_load((CHART.parents[1] / "docs" / "examples" / "qlora.yaml").read_text())
    job = Job(installed, manifest, TEAM).apply()
    wait_for("an event", lambda: {event["reason"] for event in job.events()}, timeout=30)
    installed.delete("lorajob", "qlora", TEAM)
    assert "forbidden" not in operator.log().lower()


def test_pods_can_verify_the_progress_endpoint_and_a_stranger_is_refused(operator: Operator) -> None:
    context = ssl.create_default_context(cafile=str(operator.folder / "ca.crt"))
    # What Python 3.13 asks of a certificate by default.
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    with socket.create_connection(("127.0.0.1", operator.progress_port), timeout=10) as plain:
        connection = http.client.HTTPConnection("tunery.tunery-system.svc")
        connection.sock = context.wrap_socket(plain, server_hostname="tunery.tunery-system.svc")
        connection.request("POST", "/", body="{}", headers={"Authorization": "Bearer not-a-token"})
        assert connection.getresponse().status == 401
        connection.close()
