"""Tell the operator, or the terminal, how far the run is."""

from __future__ import annotations

import logging
import math
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Protocol, TextIO

from tunery_api.findings import CheckStatus, FindingStatus
from tunery_api.measured import MAX_EVALUATIONS, CurvePoint, EvaluationStatus, number_text
from tunery_api.names import PROGRESS_CA_ENV, PROGRESS_EVERY_ENV, PROGRESS_TOKEN_ENV, PROGRESS_URL_ENV
from tunery_api.redact import redact, shorten
from tunery_api.runspec import DOWNLOADING, ProgressMetric, ProgressUpdate, TrainerStatus
from tunery_api.status import CheckpointStatus, Phase
from tunery_common.progress_client import Outage, Pace, ProgressClient, Refused

_CLOSE_SECONDS: Final = 6.0
"""How long the end of a run waits for the last report: one that is under way, or a timeout and one more try."""
_LINE_SECONDS: Final = 10.0
"""Between two lines of one phase in a pod's log, which is kept: hours of training stay readable."""
_MAX_METRICS: Final = 64
_MAX_NUMBER: Final = 32
_LONGEST_ERROR: Final = 1000
"""Bytes of why a checkpoint could not be stored."""

_log = logging.getLogger(__name__)


def say(line: str, out: TextIO | None = None) -> None:
    """Print a line in one piece: `print` writes its end by itself, and the line of another thread comes between."""
    out = out if out is not None else sys.stdout
    out.write(f"{line}\n")
    out.flush()


@dataclass(frozen=True)
class Report:
    """One state of a run, as it is told."""

    status: TrainerStatus
    measured_after: Mapping[str, int]
    """The optimizer step that a metric was measured after, by its name; without those that belong to no step."""


class Sender(Protocol):
    """Where reports go."""

    def send(self, report: Report) -> float | None:
        """Tell one state; return the seconds between two reports that are asked for, if they are."""
        ...


class ProgressReporter:
    """Keeps the newest state and sends it from a thread every few seconds; never blocks and never fails the run.

    It prints lines to `out`, and with the protocol's variables in `environment` it posts to the operator, too. Where
    nothing is new for as long as one of them says, it posts again what it has told: a step may take many minutes.
    """

    def __init__(self, environment: Mapping[str, str] | None = None, out: TextIO | None = None) -> None:
        variables = os.environ if environment is None else environment
        url = variables.get(PROGRESS_URL_ENV, "")
        lines = _Lines(out if out is not None else sys.stdout, _LINE_SECONDS if url else 0.0)
        self._sender: Sender = (
            _Posts(
                ProgressClient(url, variables.get(PROGRESS_CA_ENV, ""), variables.get(PROGRESS_TOKEN_ENV, "")), lines
            )
            if url
            else lines
        )
        self._outage = Outage(url, _log)
        self._pace = Pace() if url else Pace(least=0.0)
        self._every = float(variables.get(PROGRESS_EVERY_ENV) or math.inf) if url else math.inf
        self._told: Report | None = None
        self._condition = threading.Condition()
        self._state: dict[str, Any] = {}
        self._metrics: dict[str, float] = {}
        self._measured_after: dict[str, int] = {}
        self._interrupted: Phase | None = None
        self._changed = self._urgent = self._closing = self._final = False
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)
        self._thread.start()

    def phase(self, phase: Phase) -> None:
        """Enter a phase; told at once. Once there is something to upload, no step is left, whatever was planned."""
        left = {"estimated_remaining_seconds": 0} if phase in (Phase.UPLOADING, Phase.SUCCEEDED) else {}
        self._update({"phase": phase, **left}, {}, urgent=True)

    def device(self, words: str) -> None:
        """Tell what the run computes on; told at once."""
        self._update({"device": words}, {}, urgent=True)

    def downloading(self, percent: int | None) -> None:
        """Tell that what the run needs comes to the disk, and how much of it is there, where that is known.

        Of a run that was at work already that is a phase of its own, until all is there.
        """
        with self._condition:
            begins = "doing" not in self._state
            told = self._state.get("phase")
            if begins and told not in (None, Phase.STARTING):
                self._interrupted = told
            self._forget("percent")
            phase = Phase.DOWNLOADING if self._interrupted else None
            self._update({"doing": DOWNLOADING, "percent": percent, "phase": phase}, {}, urgent=begins)

    def downloaded(self) -> None:
        """Tell that all is there."""
        with self._condition:
            self._forget("doing", "percent")
            if self._interrupted is not None:
                self.phase(self._interrupted)
            self._interrupted = None

    def scored(self, rows: int, total_rows: int) -> None:
        """Tell how many rows of a reference are scored before there are steps to tell of; 0 enters that phase."""
        percent = rows * 100 // total_rows
        self._update({"phase": Phase.EVALUATING, "progress_percentage": percent}, {}, urgent=rows == 0)

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

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Add or replace metrics, measured after optimizer step `step`; values that are not finite are left out."""
        finite = {name: float(value) for name, value in values.items() if math.isfinite(value)}
        with self.at_once():
            if step is not None:
                self._measured_after.update(dict.fromkeys(finite, step))
            self._update({}, finite)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Let what is told meanwhile be told together: a step, and what was measured after it."""
        with self._condition:
            yield

    def evaluations(self, losses: Mapping[int, float]) -> None:
        """Tell every evaluation so far, by its step; told at once."""
        shown = [
            EvaluationStatus(step=step, loss=number_text(loss)) for step, loss in losses.items() if math.isfinite(loss)
        ]
        self._update({"evaluations": shown[-MAX_EVALUATIONS:]}, {}, urgent=True)

    def checkpoint(self, uri: str, step: int) -> None:
        """Tell that a complete checkpoint was stored."""
        with self._condition:
            self._forget("checkpoint_error")
            self._update({"checkpoint": CheckpointStatus(uri=uri, step=step)}, {}, urgent=True)

    def checkpoint_failed(self, message: str) -> None:
        """Tell why a checkpoint could not be stored, until one is."""
        self._update({"checkpoint_error": shorten(redact(message), _LONGEST_ERROR)}, {}, urgent=True)

    def curve(self, uri: str) -> None:
        """Tell where the run's curve lies, once it was stored; at once, when it is first: a kill asks nobody."""
        with self._condition:
            if self._state.get("curve") != uri:
                self._update({"curve": uri}, {}, urgent=True)

    def curve_points(self, points: list[CurvePoint]) -> None:
        """Report the loss curve so far."""
        self._update({"curve_points": points}, {})

    def curve_moves(self) -> None:
        """Name that place no more."""
        with self._condition:
            self._forget("curve")

    def findings(self, found: list[FindingStatus]) -> None:
        """Tell what the run has found out about itself: all that holds now."""
        self._update({"findings": found}, {}, urgent=True)

    def checks(self, done: list[CheckStatus]) -> None:
        """Tell the checklist."""
        self._update({"checks": done}, {})

    def diagnosed(self) -> tuple[list[FindingStatus] | None, list[CheckStatus] | None]:
        """Return the newest findings and the checklist; None each: nothing was said of it."""
        with self._condition:
            return self._state.get("findings"), self._state.get("checks")

    @property
    def evaluated(self) -> list[EvaluationStatus] | None:
        """The newest evaluations, as they were told; None: there was none."""
        with self._condition:
            told: list[EvaluationStatus] | None = self._state.get("evaluations")
            return told

    @property
    def newest_checkpoint(self) -> CheckpointStatus | None:
        """The newest complete one that this attempt stored."""
        with self._condition:
            found: CheckpointStatus | None = self._state.get("checkpoint")
            return found

    def checkpoints_removed(self) -> None:
        """Name no checkpoint any more."""
        with self._condition:
            self._forget("checkpoint", "checkpoint_error")

    def close(self) -> None:
        """Send the newest state once more and stop; takes no longer than a few seconds."""
        with self._condition:
            self._closing = True
            self._condition.notify_all()
        self._thread.join(_CLOSE_SECONDS)

    def _update(self, state: Mapping[str, Any], metrics: Mapping[str, float], *, urgent: bool = False) -> None:
        with self._condition:
            self._state.update({name: value for name, value in state.items() if value is not None})
            self._metrics.update(metrics)
            self._changed = True
            self._urgent = self._urgent or urgent
            self._condition.notify_all()

    def _forget(self, *names: str) -> None:
        """Say nothing of these any more; with the condition held."""
        gone = [self._state.pop(name, None) is not None for name in names]
        self._changed = self._changed or any(gone)

    def _run(self) -> None:
        last = time.monotonic() - self._pace.least
        while (report := self._next(last)) is not None:
            self._send(report)
            last = time.monotonic()

    def _next(self, last: float) -> Report | None:
        """Wait until there is news, or it is time to repeat it, and a report is due, counted from the end of the last.

        None: all is told.
        """
        with self._condition:
            while self._changed or not self._closing:
                delay = self._pace.delay(urgent=self._urgent or self._closing)
                left = last + (delay if self._changed else max(delay, self._every)) - time.monotonic()
                if left <= 0:
                    if self._changed or self._told is None:
                        self._changed = self._urgent = False
                        self._final = self._closing
                        self._told = Report(_status(self._state, self._metrics), dict(self._measured_after))
                    return self._told
                self._condition.wait(left if math.isfinite(left) else None)
            return None

    def _send(self, report: Report) -> None:
        try:
            self._pace.succeeded(self._sender.send(report))
            self._outage.over()
        except Exception as error:  # noqa: BLE001 (telling about progress must never end a run)
            asked = error.retry_after if isinstance(error, Refused) else None
            self._pace.failed(asked)
            with self._condition:
                # The next round tries again. After the last one there is none, unless the server asked for it.
                self._changed = self._changed or not self._final or asked is not None
            self._outage.failed(error)


class _Posts:
    """Posts each report; what is printed does not depend on whether it is taken."""

    def __init__(self, client: ProgressClient, lines: _Lines) -> None:
        self._client = client
        self._lines = lines

    def send(self, report: Report) -> float | None:
        self._lines.send(report)
        update = ProgressUpdate(trainer_status=report.status)
        return self._client.post(update.model_dump_json(by_alias=True, exclude_none=True).encode())


class _Lines:
    """Prints each report that reads otherwise than the one before: a new phase at once, else every so many seconds."""

    def __init__(self, out: TextIO, every: float) -> None:
        self._out = out
        self._every = every
        self._printed = ""
        self._phase: Phase | None = None
        self._last = -math.inf

    def send(self, report: Report) -> None:
        line, now, phase = _line(report), time.monotonic(), report.status.phase
        if line != self._printed and (phase != self._phase or now - self._last >= self._every):
            self._printed, self._phase, self._last = line, phase, now
            say(line, self._out)


def _status(state: Mapping[str, Any], metrics: Mapping[str, float]) -> TrainerStatus:
    newest = list(metrics.items())[-_MAX_METRICS:]
    return TrainerStatus(
        metrics=[ProgressMetric(name=name[:64], value=_number(value) or "0") for name, value in newest],
        last_updated_time=datetime.now(UTC).isoformat(timespec="milliseconds"),
        **state,
    )


def _line(report: Report) -> str:
    status = report.status
    parts = [status.phase or ""]
    if status.total_steps:
        parts.append(f"step {status.step}/{status.total_steps} ({status.progress_percentage} %)")
    elif status.progress_percentage is not None:
        parts.append(f"{status.progress_percentage} %")
    parts += [_told(metric, report.measured_after.get(metric.name), status.step) for metric in status.metrics]
    if status.tokens_per_second is not None:
        parts.append(f"{status.tokens_per_second} tokens/s")
    if status.estimated_remaining_seconds:
        parts.append(f"{time.strftime('%H:%M:%S', time.gmtime(status.estimated_remaining_seconds))} left")
    return "  ".join(part for part in parts if part)


def _told(metric: ProgressMetric, step: int | None, now: int | None) -> str:
    """Return a metric, with its step where that is not the one that the line tells."""
    told = f"{metric.name} {metric.value}"
    return told if step is None or step == now else f"{told} (step {step})"


def _number(value: float | None) -> str | None:
    return number_text(value)[:_MAX_NUMBER] if value is not None and math.isfinite(value) else None


def _whole(value: float | None) -> int | None:
    return max(0, round(value)) if value is not None and math.isfinite(value) else None
