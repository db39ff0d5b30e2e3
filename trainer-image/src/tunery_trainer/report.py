"""Tell the operator, or the terminal, how far the run is; and write the termination message at its end."""

from __future__ import annotations

import json
import logging
import math
import os
import ssl
import sys
import threading
import time
import urllib.request
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TextIO
from urllib.parse import urlsplit

from tunery_api.names import TERMINATION_LIMIT, TERMINATION_PATH
from tunery_api.runspec import PreflightReport, ProgressMetric, ProgressUpdate, RunResult, TrainerStatus
from tunery_api.scrub import scrub
from tunery_api.status import CheckpointStatus, Phase

SERVER_URL_ENV: Final = "KUBEFLOW_TRAINER_SERVER_URL"
CA_CERT_ENV: Final = "KUBEFLOW_TRAINER_SERVER_CA_CERT"
TOKEN_ENV: Final = "KUBEFLOW_TRAINER_SERVER_TOKEN"
"""The protocol's three variables: a URL, and the paths of two files."""
TERMINATION_PATH_ENV: Final = "TUNERY_TERMINATION_PATH"

_INTERVAL_SECONDS: Final = 3.0
_TIMEOUT_SECONDS: Final = 5.0
_CLOSE_SECONDS: Final = 8.0
_MAX_METRICS: Final = 64
_MAX_NUMBER: Final = 32

_DROPPED_FIRST: Final = (
    ("dataset", "firstInvalid"),
    ("resolved", "values"),
    ("resolved", "targetModules"),
    ("inputs",),
    ("memory",),
    ("failure", "hint"),
    ("dataset",),
    ("resolved",),
    ("metrics",),
    ("verification",),
)
"""What a termination message loses, in this order, until it fits; failure, adapter and checkpoint stay."""

_log = logging.getLogger(__name__)


class ProgressReporter:
    """Keeps the newest state and sends it from a thread every few seconds; never blocks and never fails the run.

    With the protocol's variables in `environment` it posts to the operator, without them it prints lines to `out`.
    """

    def __init__(self, environment: Mapping[str, str] | None = None, out: TextIO | None = None) -> None:
        variables = os.environ if environment is None else environment
        self._url = variables.get(SERVER_URL_ENV, "")
        self._ca_path = variables.get(CA_CERT_ENV, "")
        self._token_path = variables.get(TOKEN_ENV, "")
        self._out = out if out is not None else sys.stdout
        self._lock = threading.Lock()
        self._state: dict[str, Any] = {}
        self._metrics: dict[str, float] = {}
        self._changed = False
        self._wake = threading.Event()
        self._closing = False
        self._printed = ""
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)
        self._thread.start()

    def phase(self, phase: Phase) -> None:
        """Enter a phase; told at once."""
        self._update({"phase": phase}, {})
        self._wake.set()

    def step(
        self,
        step: int,
        total_steps: int,
        *,
        epoch: float | None = None,
        eta_seconds: float | None = None,
        tokens_per_second: float | None = None,
    ) -> None:
        """Tell how many of `total_steps` optimizer steps are done; 100 % is reached at the last only."""
        percent = min(100, step * 100 // total_steps) if total_steps > 0 else 0
        self._update(
            {
                "step": step,
                "total_steps": total_steps,
                "progress_percentage": percent,
                "estimated_remaining_seconds": _whole(eta_seconds),
                "epoch": _number(epoch),
                "tokens_per_second": _number(tokens_per_second),
            },
            {},
        )

    def metrics(self, values: Mapping[str, float]) -> None:
        """Add or replace metrics; values that are not finite are left out."""
        self._update({}, {name: float(value) for name, value in values.items() if math.isfinite(value)})

    def checkpoint(self, uri: str, step: int) -> None:
        """Tell that a complete checkpoint was stored."""
        self._update({"checkpoint": CheckpointStatus(uri=uri, step=step)}, {})
        self._wake.set()

    def close(self) -> None:
        """Send the newest state once more and stop; takes no longer than a few seconds."""
        self._closing = True
        self._wake.set()
        self._thread.join(_CLOSE_SECONDS)

    def _update(self, state: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        with self._lock:
            self._state.update({name: value for name, value in state.items() if value is not None})
            self._metrics.update(metrics)
            self._changed = True

    def _run(self) -> None:
        while True:
            self._wake.wait(_INTERVAL_SECONDS)
            self._wake.clear()
            closing = self._closing
            try:
                self._send_newest()
            except Exception as error:  # noqa: BLE001 (telling about progress must never end a run)
                _log.debug("progress was not reported: %s", scrub(str(error)))
            if closing:
                return

    def _send_newest(self) -> None:
        with self._lock:
            if not self._changed:
                return
            self._changed = False
            status = _status(self._state, self._metrics)
        if self._url:
            self._post(status)
        else:
            self._print(status)

    def _post(self, status: TrainerStatus) -> None:
        body = ProgressUpdate(trainer_status=status).model_dump_json(by_alias=True, exclude_none=True).encode()
        # Read anew each time: the kubelet rotates projected tokens and certificates are renewed.
        token = Path(self._token_path).read_text(encoding="utf-8").strip() if self._token_path else ""
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
        if urlsplit(self._url).scheme != "https":
            del headers["Authorization"]  # a token is never sent in the clear
        request = urllib.request.Request(self._url, data=body, headers=headers, method="POST")  # noqa: S310
        context = ssl.create_default_context(cafile=self._ca_path or None)
        # The operator is in the cluster: a proxy that the pod is told to use must not come between.
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )
        try:
            with opener.open(request, timeout=_TIMEOUT_SECONDS):
                return
        except OSError:
            with self._lock:
                self._changed = True  # the next round tries again
            raise

    def _print(self, status: TrainerStatus) -> None:
        line = _line(status)
        if line != self._printed:
            self._printed = line
            print(line, file=self._out, flush=True)


def write_termination(message: PreflightReport | RunResult, path: Path | None = None) -> None:
    """Write the container's termination message: JSON of at most 4,096 bytes, without credentials.

    The path is `path`, else TUNERY_TERMINATION_PATH, else /dev/termination-log; without one (on a laptop) nothing is
    written.
    """
    target = path or Path(os.environ.get(TERMINATION_PATH_ENV) or TERMINATION_PATH)
    if path is None and TERMINATION_PATH_ENV not in os.environ and not target.exists():
        return
    target.write_bytes(termination_bytes(message))


def termination_bytes(message: PreflightReport | RunResult) -> bytes:
    """Return the message as JSON, scrubbed; optional parts are dropped in a fixed order until it fits."""
    document = _scrubbed(message.model_dump(mode="json", by_alias=True, exclude_none=True))
    for path in _DROPPED_FIRST:
        data = _encode(document)
        if len(data) <= TERMINATION_LIMIT:
            return data
        _drop(document, path)
    return _encode(document)


def _status(state: Mapping[str, Any], metrics: Mapping[str, float]) -> TrainerStatus:
    newest = list(metrics.items())[-_MAX_METRICS:]
    return TrainerStatus(
        metrics=[ProgressMetric(name=name[:64], value=_number(value) or "0") for name, value in newest],
        last_updated_time=datetime.now(UTC).isoformat(timespec="milliseconds"),
        **state,
    )


def _line(status: TrainerStatus) -> str:
    parts = [status.phase or ""]
    if status.total_steps:
        parts.append(f"step {status.step}/{status.total_steps} ({status.progress_percentage} %)")
    parts += [f"{metric.name} {metric.value}" for metric in status.metrics]
    if status.tokens_per_second is not None:
        parts.append(f"{status.tokens_per_second} tokens/s")
    if status.estimated_remaining_seconds:
        parts.append(f"{time.strftime('%H:%M:%S', time.gmtime(status.estimated_remaining_seconds))} left")
    return "  ".join(part for part in parts if part)


def _number(value: float | None) -> str | None:
    return f"{value:.6g}"[:_MAX_NUMBER] if value is not None and math.isfinite(value) else None


def _whole(value: float | None) -> int | None:
    return max(0, round(value)) if value is not None and math.isfinite(value) else None


def _encode(document: dict[str, Any]) -> bytes:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


def _scrubbed(value: Any) -> Any:
    if isinstance(value, str):
        return scrub(value)
    if isinstance(value, dict):
        return {key: _scrubbed(item) for key, item in value.items()}
    return [_scrubbed(item) for item in value] if isinstance(value, list) else value


def _drop(document: dict[str, Any], path: tuple[str, ...]) -> None:
    *parents, last = path
    for name in parents:
        document = document.get(name, {})
    document.pop(last, None)
