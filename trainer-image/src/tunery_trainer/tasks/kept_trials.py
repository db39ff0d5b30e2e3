"""What becomes of a sweep's trials once the best is published and was read back: a few stay, the rest is removed.

Nothing is touched but what lies below the folder of this very sweep's trials and in those of their checkpoints and data
reports; all bear a uid, so that no other object can have written there.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
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
"""Characters of errors that the sweep's status repeats: behind them it says what to do."""
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


@dataclass(frozen=True)
class _Stored:
    """What the trials that are not kept have stored, of one sort."""

    where: str
    """For people, who may have to remove it."""
    remove: Callable[[], None]
    uris: Callable[[], Iterable[str]]
    """Of what is there."""


def remove_other_trials(work: Workspace, sweep: LoRASweepRun) -> str | None:
    """Remove what the trials have stored, but for the adapters that are kept and those trials' own checkpoints.

    The result is there: whatever the storage answers is a warning, never a failure, and keeps nothing of another sort;
    returns it, None where all that was to go is gone. Raises INTERNAL_ERROR, before anything is removed, if the place
    is not that of this sweep.
    """
    check_trials_place(work.run, sweep)
    refused: dict[str, str] = {}
    for stored in _stored_by_others(work, sweep):
        try:
            stored.remove()
        except TuneryError as error:
            refused[stored.where] = error.message
    if refused:
        return _warn("what the other trials stored could not be removed, or not all of it", refused)
    names = ", ".join(row.name for row in kept(sweep))
    print(f"The adapters of {names} stay; what the other trials have stored was removed", flush=True)
    return None


def left_by_other_trials(work: Workspace, sweep: LoRASweepRun) -> str | None:
    """Return what is there of what `remove_other_trials` removes, or cannot be looked for; None: nothing.

    Nothing is removed. Raises INTERNAL_ERROR if the place is not that of this sweep.
    """
    check_trials_place(work.run, sweep)
    found: dict[str, str] = {}
    for stored in _stored_by_others(work, sweep):
        try:
            first = next(iter(stored.uris()), None)
        except TuneryError as error:
            found[stored.where] = error.message
        else:
            if first is not None:
                found[stored.where] = f"{first} is there"
    return _warn("what the other trials stored was not removed, or not all of it", found) if found else None


def _warn(what: str, found: Mapping[str, str]) -> str:
    """Log and return what was found out, by the place that is to be cleared by hand for it."""
    why = "; ".join(message[: _SHOWN // len(found)] for message in found.values())
    said = f"{what}: {why}; remove by hand {'; and '.join(found)}"
    _log.warning("%s", said)
    return said[:_LONGEST]


def _stored_by_others(work: Workspace, sweep: LoRASweepRun) -> list[_Stored]:
    staying = kept(sweep)
    others = [row for row in sweep.trials if row not in staying]
    return [
        _adapters(work, sweep.trials_uri, staying),
        *_in_bucket(work, CHECKPOINTS_PREFIX, others, remove_checkpoints),
        *_in_bucket(work, REPORTS_PREFIX, others, remove_report),
    ]


def _adapters(work: Workspace, uri: str, staying: Sequence[TrialStatus]) -> _Stored:
    """Return all that lies at the trials' own place, beside the adapters that stay."""

    def remove() -> None:
        place = _open(work, uri)
        _remove(place, _not_below(place, folders()))
        remove_stale_uploads(place, older_than_seconds=0)

    def uris() -> list[str]:
        place = _open(work, uri)
        return [place.store.uri(key) for key in _not_below(place, folders())]

    def folders() -> list[StorePath]:
        return [_open(work, row.adapter.uri) for row in staying if row.adapter]

    return _Stored(f"what lies below {uri}, but for {', '.join(row.name for row in staying)}", remove, uris)


def _in_bucket(
    work: Workspace, prefix: str, rows: Iterable[TrialStatus], remove: Callable[[StorePath], None]
) -> Iterator[_Stored]:
    """Yield the checkpoints, or reports, of the trials in the bucket; without a cluster they are not ours."""
    run, named = work.run, [row for row in rows if row.uid and _PLAIN.fullmatch(row.uid) and _PLAIN.fullmatch(row.name)]
    if not run.output_uri.startswith("s3://") or not named:
        return

    def places() -> Iterator[StorePath]:
        for row in named:
            uri = folder_in_bucket(run.output_uri, prefix, run.identity.namespace, row.name, row.uid or "")
            yield _open(work, uri)

    def remove_all() -> None:
        for place in places():
            remove(place)

    def uris() -> Iterator[str]:
        return (place.store.uri(entry.key) for place in places() for entry in place.store.list(place.prefix, most=1))

    folder = folder_in_bucket(run.output_uri, prefix, run.identity.namespace, "", "").rpartition("/")[0]
    yield _Stored(f"the folders of this sweep's other trials in {folder}", remove_all, uris)


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
