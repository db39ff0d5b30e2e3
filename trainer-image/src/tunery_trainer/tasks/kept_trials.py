"""What becomes of a sweep's trials once the best is published and was read back: a few stay, the rest is removed.

Nothing is touched but what lies below the folder of this very sweep's trials and in those of their checkpoints and data
reports; all bear a uid, so that no other object can have written there.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from tunery_api.manifest import MANIFEST_NAME
from tunery_api.names import CHECKPOINTS_PREFIX, REPORTS_PREFIX, folder_in_bucket, trials_uri
from tunery_api.reasons import FailureReason
from tunery_api.runspec import LoRASweepRun, Purpose, RunSpec
from tunery_api.sweepstatus import TrialStatus
from tunery_common.errors import TuneryError
from tunery_common.storage import StorePath
from tunery_common.storage.cleanup import remove_stale_uploads
from tunery_trainer.inputs.workspace import Workspace
from tunery_trainer.reporting.sweep_rows import kept
from tunery_trainer.resuming.checkpoints import remove_checkpoints
from tunery_trainer.tasks.data_report import remove_report

_FIELD: Final = "spec.output.uri"
_PLAIN: Final = re.compile(r"[A-Za-z0-9][-A-Za-z0-9.]*")
_SHOWN: Final = 400
"""Characters of an error that the sweep's status repeats."""
_LONGEST: Final = 1024
"""As RunResult.not_removed has it."""
_AT_A_TIME: Final = 8
"""Objects that are removed side by side: a sweep may leave a thousand."""

_log = logging.getLogger(__name__)


def check_trials_place(run: RunSpec, sweep: LoRASweepRun) -> None:
    """Raise INTERNAL_ERROR unless the place of the trials is that of this sweep alone, beside its output."""
    uid = run.identity.uid
    right = trials_uri(run.output_uri, uid)
    if not _PLAIN.fullmatch(uid) or sweep.trials_uri.rstrip("/") != right:
        message = f"the trials of the sweep with uid {uid!r} lie below {right}, run.json says {sweep.trials_uri}"
        raise TuneryError(FailureReason.INTERNAL_ERROR, message)


def remove_other_trials(work: Workspace, sweep: LoRASweepRun) -> str | None:
    """Remove what the trials have stored, but for the adapters that are kept and those trials' own checkpoints.

    The result is there: whatever the storage answers is a warning, never a failure; returns it, None where all that
    was to go is gone. Raises INTERNAL_ERROR, before anything is removed, if the place is not that of this sweep.
    """
    check_trials_place(work.run, sweep)
    staying = kept(sweep)
    names = ", ".join(row.name for row in staying)
    try:
        place = work.open(Purpose.OUTPUT, sweep.trials_uri, _FIELD)
        folders = [_open(work, row.adapter.uri) for row in staying if row.adapter]
        _remove(place, _not_below(place, folders))
        remove_stale_uploads(place, older_than_seconds=0)
        others = [row for row in sweep.trials if row not in staying]
        for checkpoints in _in_bucket(work, CHECKPOINTS_PREFIX, others):
            remove_checkpoints(checkpoints)
        for reports in _in_bucket(work, REPORTS_PREFIX, others):
            remove_report(reports)
    except TuneryError as error:
        what = "what the other trials stored could not be removed, or not all of it"
        todo = f"remove by hand what lies below {sweep.trials_uri}, but for {names}{_elsewhere(work.run)}"
        _log.warning("%s: %s; %s", what, error.message, todo)
        return f"{what}: {error.message[:_SHOWN]}; {todo}"[:_LONGEST]
    print(f"The adapters of {names} stay; what the other trials have stored was removed", flush=True)
    return None


def _elsewhere(run: RunSpec) -> str:
    """Return where else trials have stored something, for people."""
    if not run.output_uri.startswith("s3://"):
        return ""
    return f", and what {CHECKPOINTS_PREFIX}/ and {REPORTS_PREFIX}/ of that bucket hold of the other trials"


def _open(work: Workspace, uri: str) -> StorePath:
    return work.open(Purpose.OUTPUT, uri, _FIELD)


def _not_below(place: StorePath, folders: Sequence[StorePath]) -> list[str]:
    """Return the keys of all that lies below a place but in none of the folders.

    They are compared as the store itself writes them: two ways to write one URI must not cost an adapter.
    """
    staying = tuple(f"{folder.uri}/" for folder in folders)
    # Checked again: a server that ignores the prefix must not make us remove what is someone else's.
    keys = [entry.key for entry in place.store.list(place.prefix) if entry.key.startswith(f"{place.prefix}/")]
    return [key for key in keys if not place.store.uri(key).startswith(staying)]


def _in_bucket(work: Workspace, prefix: str, rows: Iterable[TrialStatus]) -> Iterator[StorePath]:
    """Yield where the checkpoints, or reports, of each trial lie in the bucket; without a cluster they are not ours."""
    run = work.run
    if not run.output_uri.startswith("s3://"):
        return
    for row in rows:
        if row.uid and _PLAIN.fullmatch(row.uid) and _PLAIN.fullmatch(row.name):
            uri = folder_in_bucket(run.output_uri, prefix, run.identity.namespace, row.name, row.uid)
            yield _open(work, uri)


def _remove(place: StorePath, keys: Sequence[str]) -> None:
    """Remove objects, manifests first: half an adapter is nobody's result. Raises for the first that cannot be."""
    for manifests in (True, False):
        chosen = [key for key in keys if (key.rpartition("/")[2] == MANIFEST_NAME) is manifests]
        pool = ThreadPoolExecutor(_AT_A_TIME)
        try:
            for done in [pool.submit(place.store.delete, key) for key in chosen]:
                done.result()
        finally:
            pool.shutdown(cancel_futures=True)  # after the first that fails no other one is begun
