"""The operator as a process of its own, to be killed and started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

from controller.api import eventually

from cluster.ports import kept_ports


@dataclass
class OperatorProcess:
    """`python -m tunery_operator` with a kubeconfig; its log lies in `folder`."""

    folder: Path
    kubeconfig: Path
    tls: Path | None = None
    settings: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.ports = kept_ports(self.folder / "ports.json", {"metrics": 0, "progress": 0})

    @property
    def log(self) -> Path:
        """What the process wrote, over all its lives."""
        return self.folder / "operator.log"

    @property
    def pid(self) -> int:
        """The process id of the running operator."""
        assert self.process is not None
        return self.process.pid

    @property
    def metrics_url(self) -> str:
        return f"http://127.0.0.1:{self.ports['metrics']}"

    @property
    def progress_url(self) -> str:
        return f"https://127.0.0.1:{self.ports['progress']}"

    def start(self) -> OperatorProcess:
        """Start it, and return when each watch has listed its objects."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("TUNERY_")}
        environment = kept | {
            "KUBECONFIG": str(self.kubeconfig),
            "TUNERY_TRAINER_IMAGE": "example/trainer:1",
            "TUNERY_METRICS_PORT": str(self.ports["metrics"]),
            **self._progress(),
            **self.settings,
        }
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tunery_operator"], env=environment, stdout=log, stderr=log
            )
        eventually("the operator is ready", self._is_ready, timeout=30)
        return self

    def _progress(self) -> dict[str, str]:
        if self.tls is None:
            return {}
        return {
            "TUNERY_PROGRESS_TLS_DIR": str(self.tls),
            "TUNERY_PROGRESS_URL": self.progress_url,
            "TUNERY_PROGRESS_PORT": str(self.ports["progress"]),
        }

    def _is_ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"the operator ended: {self.log.read_text()[-2000:]}"
        try:
            with urllib.request.urlopen(f"{self.metrics_url}/readyz", timeout=1) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def kill(self) -> None:
        """kill -9."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        return self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> int:
        if self.process is None:
            return 0
        self.process.send_signal(number)
        code = self.process.wait(timeout=20)
        self.process = None
        return code
