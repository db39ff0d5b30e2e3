"""The operator as a process of its own, to be killed and started again."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from kit.fork_server import Process
from kit.operator.api import eventually
from kit.operator.settings import values
from tools.cluster.daemon import ENDS_WITH_PARENT
from tools.cluster.ports import kept_ports

_BAD_LINE = re.compile(r"^(?:\S+ (?:ERROR|CRITICAL) |Traceback \(most recent call last\)).*", re.MULTILINE)


@dataclass
class OperatorProcess:
    """`python -m tunery_operator` with a kubeconfig; its log lies in `folder`.

    Two with different folders and one Lease in their settings are two replicas of one operator.
    """

    folder: Path
    kubeconfig: Path
    tls: Path | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    """Sections of the chart's values."""
    environment: dict[str, str] = field(default_factory=dict)
    python: Path = Path(sys.executable)
    process: Process | subprocess.Popen[bytes] | None = None
    popen: Callable[..., Process | subprocess.Popen[bytes]] = subprocess.Popen
    """Or that of a fork server, which has the operator's imports done."""

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

    def start(self, *, wait: bool = True) -> OperatorProcess:
        """Start it, and return when each watch has listed its objects; `wait=False`: at once.

        It ends with the thread that starts it.
        """
        config = self.folder / "config.yaml"
        config.write_text(yaml.safe_dump(values(**self._config())))
        with self.log.open("ab") as log:
            self.process = self.popen(
                [*ENDS_WITH_PARENT, str(self.python), "-m", "tunery_operator", f"--config={config}"],
                env={**os.environ, "KUBECONFIG": str(self.kubeconfig), **self.environment},
                stdout=log,
                stderr=log,
            )
        if wait:
            eventually("the operator is ready", self.is_ready)
        return self

    def _config(self) -> dict[str, Any]:
        progress = {"port": self.ports["progress"]}
        served = {} if self.tls is None else {"tlsDir": str(self.tls), "url": self.progress_url}
        return self.settings | {
            "metrics": {"port": self.ports["metrics"]},
            "progress": progress | served | self.settings.get("progress", {}),
        }

    def is_ready(self) -> bool:
        """Tell whether /readyz says so; fails where the process has ended."""
        self.assert_alive()
        return self.probe("readyz") == 200

    def probe(self, name: str) -> int:
        """Return the HTTP status of /readyz or /healthz; 0 where nothing answers."""
        return self._fetch(name)[0]

    def metrics(self) -> str:
        """Return what Prometheus would read."""
        return self._fetch("metrics")[1]

    def metric(self, sample: str) -> float | None:
        """Return the value of a sample such as `tunery_queue_depth`, or None where there is none."""
        lines = (line.rpartition(" ") for line in self.metrics().splitlines())
        return next((float(value) for name, _, value in lines if name == sample), None)

    def _fetch(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"{self.metrics_url}/{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def assert_alive(self) -> None:
        """Fail where the process has ended by itself."""
        assert self.process is not None
        assert self.process.poll() is None, f"the operator ended: {self.log.read_text()[-2000:]}"

    def assert_clean_log(self) -> None:
        """Fail where the log has a line of level ERROR or a traceback."""
        text = self.log.read_text()
        found = _BAD_LINE.search(text)
        assert found is None, text[found.start() : found.start() + 3000]

    def kill(self) -> None:
        """kill -9."""
        self._end(signal.SIGKILL)

    def kill_now(self) -> None:
        """kill -9 from any thread, at once; `start` may follow after `reap`."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)

    def pause(self) -> None:
        """Let it stand still, as on a node that is overloaded or cut off."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on after `pause`."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        return self._end(signal.SIGTERM)

    def reap(self) -> bool:
        """Tell whether the process has ended, and let `start` begin a new one then."""
        if self.process is not None and self.process.poll() is not None:
            self.process = None
        return self.process is None

    def _end(self, number: signal.Signals) -> int:
        if self.process is None:
            return 0
        self.process.send_signal(number)
        code = self.process.wait(timeout=20)
        self.process = None
        return code
