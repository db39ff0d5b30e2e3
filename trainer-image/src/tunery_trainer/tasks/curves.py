"""Store the curves of a run that ends without a result, and report their URI."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from tunery_api.redact import redact
from tunery_common.storage.base import check_key
from tunery_trainer.inputs.workspace import Workspace
from tunery_trainer.process.failures import explain
from tunery_trainer.process.signals import StopRequested
from tunery_trainer.reporting.kept_curves import KeptCurves
from tunery_trainer.reporting.progress import ProgressReporter
from tunery_trainer.reporting.trackers import RUNS_FOLDER

_SECONDS: Final = 30.0
"""How long a run that has failed takes for its curves."""
_STOP_SECONDS: Final = 12.0
"""How long one takes that was told to stop: what is left of its time once the last checkpoint is stored."""
_CLOSE_SECONDS: Final = 15.0
"""How long one that has its result waits for what is still being stored: a GPU may be held for it."""

_log = logging.getLogger(__name__)


@contextmanager
def named_curves(work: Workspace, reporter: ProgressReporter) -> Iterator[KeptCurves]:
    """Yield what keeps the curves of the run in the body.

    Who watches is told where the curve lies, for a run that comes to say no last word. Where the body ends without a
    result all are stored, and the failure's facts, or the log, name their URI; after one with a result nothing more
    is stored there, and whoever clears the place finds all. Raises what the body does, as a TuneryError but for a stop.
    """
    curves = KeptCurves(work.reports, work.result, reporter.curve, reporter.curve_points)
    try:
        yield curves
    except StopRequested:
        uri = curves.store_all(reporter.diagnosed()[0] or (), _STOP_SECONDS)
        if uri is not None:
            print(f"Curve      {uri}", flush=True)
        raise
    except Exception as error:
        failure = explain(error)
        uri = curves.store_all(reporter.diagnosed()[0] or (), _SECONDS)
        if uri is not None:
            failure.facts["curve"] = uri
        if failure is error:
            raise
        raise failure from error
    curves.close(_CLOSE_SECONDS)
    reporter.curve_moves()


def fetch_runs(work: Workspace) -> None:
    """Bring the trackers' files of earlier attempts to where they are published; no failure where that cannot be."""
    place = work.reports
    if place is None:
        return
    runs = place.below(RUNS_FOLDER)
    try:
        for entry in runs.store.list(runs.prefix):
            name = check_key(runs.relative(entry), runs.uri)
            runs.store.download(entry.key, work.result / RUNS_FOLDER / name)
    except Exception as error:  # noqa: BLE001 (curves are never a reason to fail)
        _log.warning("the trackers' files of earlier attempts are left out: %s", redact(explain(error).message))
