"""The curves of a run while nothing of it is published: stored with each checkpoint, and all of them as it fails.

They go where the data report lies. One background thread stores them; training never waits for it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tunery_api.findings import FindingStatus
from tunery_api.measured import CurvePoint
from tunery_common.errors import first_line
from tunery_common.storage import StorePath
from tunery_trainer.reporting.curve_file import CURVE_FILE, CurveSummary, curve_lines
from tunery_trainer.reporting.curves import FILE_NAME, draw_curves
from tunery_trainer.reporting.trackers import RUNS_FOLDER

_log = logging.getLogger(__name__)


class KeptCurves:
    """Holds what a run has logged, and stores it at `place`; None: nowhere.

    `folder` is where the run writes what it will publish: the files of its trackers lie below it. `heard` is told where
    the curve lies each time that it was stored, from the background thread.
    """

    def __init__(
        self,
        place: StorePath | None,
        folder: Path,
        heard: Callable[[str], None] | None = None,
        on_points: Callable[[list[CurvePoint]], None] = lambda points: None,
    ) -> None:
        """`on_points` gets the loss curve, thinned out, whenever an entry was logged."""
        self._place = place
        self._folder = folder
        self._heard = heard
        self._on_points = on_points
        self._base_loss: float | None = None
        self._history: Sequence[Mapping[str, Any]] = ()
        self._summary, self._summarized = CurveSummary(), 0
        self._condition = threading.Condition()
        self._job: Callable[[], None] | None = None
        self._busy = False
        self._closed = self._given_up = False
        self._stored = False
        self._thread: threading.Thread | None = None

    def begin(self, base_loss: float) -> None:
        """Take the loss on the held-out rows before training."""
        self._base_loss = base_loss

    def log(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Take the Trainer's log, of the attempts before this one, too; it may go on to grow."""
        self._history = history
        if self._summarized > len(history):
            self._summary, self._summarized = CurveSummary(), 0
        if self._summarized == 0 and self._base_loss is not None:
            self._summary.add({"step": 0, "eval_loss": self._base_loss})
        for entry in history[self._summarized :]:
            self._summary.add(entry)
        self._summarized = len(history)
        self._on_points(self._summary.points())

    def store(self) -> None:
        """Store the curve as it is now, in the background; one that still waits gives way."""
        history = list(self._history)
        self._do(lambda: self._put(history))

    def store_all(self, findings: Sequence[FindingStatus], seconds: float) -> str | None:
        """Store the curve, its picture and the trackers' files, and return where the curve lies.

        Of a run that ends here; after so many seconds whatever is still under way is given up. None where nothing is
        stored: there is no place, no step was logged, or the log says why not.
        """
        history = list(self._history)
        if self._place is None or not any("loss" in entry for entry in history):
            return None
        self._stored = False
        self._do(lambda: self._put(history))
        deadline = time.monotonic() + seconds
        self._wait(deadline)
        if not self._stored:
            return None
        self._do(lambda: self._put_files(history, findings))
        self._wait(deadline)
        return self._place.below(CURVE_FILE).uri

    def close(self, seconds: float) -> bool:
        """Take nothing more, wait until what was taken is stored, and return whether it was in so many seconds.

        For whoever removes then what lies there. What takes longer is given up: the log names it, and where it is
        stored later all the same, it is removed for as long as the process lives.
        """
        with self._condition:
            self._closed = True
            done = self._condition.wait_for(lambda: self._job is None and not self._busy, seconds)
            self._job, self._given_up = None, not done
        if not done and self._place is not None:
            uri = self._place.below(CURVE_FILE).uri
            _log.warning("%s is still being stored after %g s; it may be left there", uri, seconds)
        return done

    def _put(self, history: Sequence[Mapping[str, Any]]) -> None:
        lines = "".join(f"{line}\n" for line in curve_lines(history, self._base_loss)).encode()
        if self._place is None or not lines:
            return
        self._place.store.put_bytes(self._place.key(CURVE_FILE), lines)
        with self._condition:
            self._stored = not self._given_up
            if self._stored and self._heard is not None:
                self._heard(self._place.below(CURVE_FILE).uri)
        if not self._stored:
            self._place.store.delete(self._place.key(CURVE_FILE))

    def _put_files(self, history: Sequence[Mapping[str, Any]], findings: Sequence[FindingStatus]) -> None:
        if self._place is None:
            return
        for path in sorted(path for path in (self._folder / RUNS_FOLDER).rglob("*") if path.is_file()):
            self._place.store.upload_file(path, self._place.key(path.relative_to(self._folder).as_posix()))
        # Last: to draw takes memory, and seconds where the processor is shared.
        self._folder.mkdir(parents=True, exist_ok=True)
        draw_curves(history, self._base_loss, self._folder / FILE_NAME, findings)
        self._place.store.upload_file(self._folder / FILE_NAME, self._place.key(FILE_NAME))

    def _do(self, job: Callable[[], None]) -> None:
        if self._place is None:
            return
        with self._condition:
            if self._closed:
                return
            self._job = job
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="curves", daemon=True)
                self._thread.start()
            self._condition.notify_all()

    def _wait(self, deadline: float) -> None:
        """Wait until all is done."""
        with self._condition:
            self._condition.wait_for(
                lambda: self._job is None and not self._busy, max(0.0, deadline - time.monotonic())
            )

    def _run(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._job is not None)
                job, self._job, self._busy = self._job, None, True
            try:
                if job is not None:
                    job()
            except Exception as error:  # noqa: BLE001 (a curve is never a reason to fail)
                _log.warning("the curves are not stored: %s", first_line(error))
            with self._condition:
                self._busy = False
                self._condition.notify_all()


def remove_curves(place: StorePath, *, tracked: bool) -> None:
    """Remove what a run has stored there, if it has; raises TuneryError where it cannot be.

    Nothing is listed of one that had no trackers, whose key need not have that right.
    """
    for name in (CURVE_FILE, FILE_NAME):
        place.store.delete(place.key(name))
    runs = place.below(RUNS_FOLDER)
    for entry in place.store.list(runs.prefix) if tracked else ():
        # Checked again: a server that ignores the prefix must not make us remove what is someone else's.
        if entry.key.startswith(f"{runs.prefix}/"):
            place.store.delete(entry.key)
