"""Tell the operator, and the pod's log, how far the batch is."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Final

from tunery_api.names import PROGRESS_CA_ENV, PROGRESS_TOKEN_ENV, PROGRESS_URL_ENV
from tunery_api.redact import redact
from tunery_api.runspec import AnswersReport, ProgressUpdate, TrainerStatus
from tunery_api.status import Phase
from tunery_common.progress_client import Outage, Pace, ProgressClient, Refused

LOG_SECONDS: Final = 15.0
_WINDOW_SECONDS: Final = 300.0
"""The speed is that of the last minutes."""
_CLOSE_SECONDS: Final = 6.0
_LONGEST_WORDS: Final = 400

_log = logging.getLogger(__name__)


class Progress:
    """Posts every few seconds from a thread of its own; never blocks and never fails the batch."""

    def __init__(self, log_seconds: float = LOG_SECONDS) -> None:
        url = os.environ.get(PROGRESS_URL_ENV, "")
        token, authority = os.environ.get(PROGRESS_TOKEN_ENV, ""), os.environ.get(PROGRESS_CA_ENV, "")
        self._client = ProgressClient(url, authority, token) if url else None
        self._outage = Outage(url, _log)
        self._pace = Pace()
        self._log_seconds = log_seconds
        self._phase = Phase.STARTING
        self._doing: str | None = None
        self._counted: Callable[[], AnswersReport] | None = None
        self._samples: deque[tuple[float, int, int]] = deque()
        self._condition = threading.Condition()
        self._urgent = self._closing = False
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)
        self._thread.start()

    def phase(self, phase: Phase) -> None:
        """Enter a phase; told at once."""
        with self._condition:
            self._phase, self._doing, self._urgent = phase, None, True
            self._condition.notify_all()
        _log.info("%s", phase)

    def doing(self, words: str | None) -> None:
        """Say what is done or waited for within the phase, as the end of a sentence about the pod; told at once.

        None: nothing that the phase does not say.
        """
        with self._condition:
            self._doing, self._urgent = redact(words, _LONGEST_WORDS) if words is not None else None, True
            self._condition.notify_all()
        _log.info("this pod %s", self._doing if words is not None else "waits for nothing any more")

    def count(self, counted: Callable[[], AnswersReport]) -> None:
        """Tell from now on what `counted` returns; it is called from a thread."""
        with self._condition:
            self._counted = counted

    def report(self) -> AnswersReport | None:
        """Return the newest numbers; None where nothing is counted yet."""
        return self._counted() if self._counted is not None else None

    def close(self) -> None:
        """Tell the newest state once more and stop."""
        with self._condition:
            self._closing = True
            self._condition.notify_all()
        self._thread.join(_CLOSE_SECONDS)

    def _run(self) -> None:
        logged = time.monotonic()
        while True:
            closing = self._until_due()
            status = self._status()
            self._post(status)
            if status.phase is Phase.ANSWERING and (time.monotonic() - logged >= self._log_seconds or closing):
                logged = time.monotonic()
                _log.info("%s", line(status))
            if closing:
                return

    def _until_due(self) -> bool:
        """Wait until a report is due, a new phase soon; return whether it is the last one."""
        with self._condition:
            least = self._pace.least if self._client else 0.0
            self._condition.wait_for(lambda: self._closing, least)
            self._condition.wait_for(lambda: self._closing or self._urgent, self._pace.delay(urgent=False) - least)
            self._urgent = False
            return self._closing

    def _post(self, status: TrainerStatus) -> None:
        if self._client is None:
            return
        try:
            update = ProgressUpdate(trainer_status=status)
            self._pace.succeeded(self._client.post(update.model_dump_json(by_alias=True, exclude_none=True).encode()))
            self._outage.over()
        except Exception as error:  # noqa: BLE001 (telling about progress must never end a batch)
            self._pace.failed(error.retry_after if isinstance(error, Refused) else None)
            self._outage.failed(error)

    def _status(self) -> TrainerStatus:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        counted = None
        with suppress(RuntimeError):  # it changed meanwhile: the next report tells it
            counted = self.report()
        if counted is None:
            return TrainerStatus(phase=self._phase, doing=self._doing, last_updated_time=now)
        done = counted.answered + counted.errors
        speed, tokens = self._speed(done, counted.prompt_tokens + counted.completion_tokens)
        left = counted.lines - done
        eta = round(left / speed) if speed else None
        return TrainerStatus(
            phase=self._phase,
            doing=self._doing,
            last_updated_time=now,
            progress_percentage=done * 100 // counted.lines if counted.lines else 0,
            step=done,
            total_steps=counted.lines,
            estimated_remaining_seconds=0 if not left else eta,
            tokens_per_second=f"{tokens:.6g}" if tokens else None,
            answers=counted,
        )

    def _speed(self, done: int, tokens: int) -> tuple[float, float]:
        """Return lines and tokens a second, of the last minutes."""
        now = time.monotonic()
        if self._samples and (done < self._samples[-1][1] or tokens < self._samples[-1][2]):
            # Lines of a part that was lost are asked again.
            self._samples.clear()
        self._samples.append((now, done, tokens))
        while len(self._samples) > 2 and now - self._samples[0][0] > _WINDOW_SECONDS:
            self._samples.popleft()
        began, done_then, tokens_then = self._samples[0]
        seconds = now - began
        return ((done - done_then) / seconds, (tokens - tokens_then) / seconds) if seconds > 0 else (0.0, 0.0)


def line(status: TrainerStatus) -> str:
    """Return how far it is, for the log."""
    errors = status.answers.errors if status.answers else 0
    parts = [f"{status.step:,} of {status.total_steps:,} lines ({status.progress_percentage} %)", f"{errors:,} errors"]
    if status.tokens_per_second is not None:
        parts.append(f"{status.tokens_per_second} tokens/s")
    if status.estimated_remaining_seconds:
        hours, rest = divmod(status.estimated_remaining_seconds, 3600)
        parts.append(f"{hours}:{rest // 60:02}:{rest % 60:02} left")
    return ", ".join(parts)
