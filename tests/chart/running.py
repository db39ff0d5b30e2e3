"""The operator as a process, with the chart's environment, certificate and rights, and no others."""

from __future__ import annotations

import base64
import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .installing import kubeconfig_of_the_service_account
from .rendering import NAMESPACE, Rendered
from kit.kubectl import Kubectl, wait_for


@dataclass(frozen=True)
class Operator:
    """A running operator: its folder with log and certificate, and where it takes progress."""

    folder: Path
    progress_port: int

    def log(self) -> str:
        """Return what it has said so far."""
        return (self.folder / "log").read_text()


@contextmanager
def running_operator(installed: Kubectl, rendered: Rendered, folder: Path) -> Iterator[Operator]:
    """Run the operator of a chart that is installed; yield it once it is ready."""
    running, metrics = Operator(folder, free_port()), free_port()
    secret = installed.get("secret", "tunery-progress-tls", NAMESPACE)
    assert secret is not None
    for name, value in secret["data"].items():
        (folder / name).write_bytes(base64.b64decode(value))
    environment = rendered.env() | {
        "TUNERY_PROGRESS_TLS_DIR": str(folder),
        "TUNERY_PROGRESS_PORT": str(running.progress_port),
        "TUNERY_METRICS_PORT": str(metrics),
        "TUNERY_POD_NAME": "tunery-0",
        "KUBECONFIG": str(kubeconfig_of_the_service_account(installed, folder)),
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
    }
    command = [sys.executable, "-m", "tunery_operator"]
    with (folder / "log").open("w") as output:
        process = subprocess.Popen(command, env=environment, cwd=folder, stderr=output)
    try:
        wait_for("the operator to be ready", lambda: _is_ready(process, metrics, running), timeout=60)
        yield running
    finally:
        process.terminate()
        process.wait(timeout=20)


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _is_ready(process: subprocess.Popen[bytes], port: int, running: Operator) -> bool:
    if process.poll() is not None:
        raise AssertionError(f"the operator ended with {process.returncode}: {running.log()}")
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
