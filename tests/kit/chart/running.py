"""The operator as a process, with the chart's settings, certificate and rights, and no others."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import yaml

from kit.accounts import kubeconfig_of
from kit.chart.rendering import NAMESPACE, Rendered
from kit.kubectl import Kubectl, wait_for
from tools.cluster.daemon import ENDS_WITH_PARENT
from tools.cluster.ports import free_ports


@dataclass(frozen=True)
class Operator:
    """A running operator: its folder with log and certificate, and where it listens."""

    folder: Path
    process: subprocess.Popen[bytes]
    progress_port: int
    metrics_port: int

    def log(self) -> str:
        """Return what it has said so far."""
        return (self.folder / "log").read_text()

    def answer(self, path: str) -> str | None:
        """Return what its HTTP port answers, or None where it does not, or not with 200."""
        if self.process.poll() is not None:
            raise AssertionError(f"the operator ended with {self.process.returncode}: {self.log()}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}{path}", timeout=2) as answer:
                text: str = answer.read().decode()
        except OSError:
            return None
        return text

    def leads(self) -> bool:
        """Tell whether this replica is the one that acts."""
        return "\ntunery_leader 1.0\n" in (self.answer("/metrics") or "")


class Release(NamedTuple):
    """An installation of the chart: what all its objects begin with, and where it is."""

    name: str = "tunery"
    namespace: str = NAMESPACE

    @property
    def certificate(self) -> str:
        """The name of the Secret of its certificate."""
        return f"{self.name}-progress-certificate"

    @property
    def job(self) -> str:
        """What the name of the Job that makes its certificate begins with."""
        return f"{self.name}-certificate-"


OURS = Release()
CERTIFICATE = OURS.certificate


def make_certificate(kubectl: Kubectl, folder: Path, release: Release = OURS) -> str:
    """Do what the pod of the chart's Job does, under its account; return what it said. There is no node here."""
    namespace, name = release.namespace, release.job
    found = (job for job in kubectl.list("jobs", namespace) if job["metadata"]["name"].startswith(name))
    (job,) = (job for job in found if "deletionTimestamp" not in job["metadata"])
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    account = kubeconfig_of(kubectl, namespace, pod["serviceAccountName"], folder)
    python, *words = container["command"]
    assert python == "python"
    environment = {"KUBECONFIG": str(account), "PATH": os.environ["PATH"], "HOME": str(folder)}
    command = [sys.executable, *words, *container["args"]]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


@contextmanager
def running_operator(
    installed: Kubectl, rendered: Rendered, folder: Path, pod: str = "tunery-0", release: Release = OURS
) -> Iterator[Operator]:
    """Run a replica of the operator of a chart that is installed; yield it once it is ready."""
    make_certificate(installed, folder, release)
    secret = installed.get("secret", release.certificate, release.namespace)
    assert secret is not None
    for name, value in secret["data"].items():
        (folder / name).write_bytes(base64.b64decode(value))
    ports = free_ports({"progress": 0, "metrics": 0})
    progress, metrics = ports["progress"], ports["metrics"]
    config = rendered.config()
    config["progress"] |= {"tlsDir": str(folder), "port": progress}
    config["metrics"] |= {"port": metrics}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    environment = {
        "POD_NAME": pod,
        "KUBECONFIG": str(kubeconfig_of(installed, release.namespace, release.name, folder)),
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
    }
    command = [*ENDS_WITH_PARENT, sys.executable, "-m", "tunery_operator", f"--config={folder / 'config.yaml'}"]
    with (folder / "log").open("w") as output:
        process = subprocess.Popen(command, env=environment, cwd=folder, stderr=output)
    running = Operator(folder, process, progress, metrics)
    try:
        wait_for("the operator to be ready", lambda: running.answer("/readyz"), timeout=60)
        yield running
    finally:
        process.terminate()
        process.wait(timeout=20)
