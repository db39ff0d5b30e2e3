"""The story of a sweep's end: read back the best adapter, say how it was found, publish it, then remove the others."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from tunery_api.manifest import Lineage, SweepRecord
from tunery_api.reasons import FailureReason
from tunery_api.remedies import Remedy, recreate, retry
from tunery_api.runspec import LoRASweepRun, Purpose, RunResult, RunSpec
from tunery_api.status import Phase
from tunery_api.sweepstatus import TrialAdapter, TrialStatus
from tunery_common.errors import TuneryError
from tunery_common.storage.probe import probe
from tunery_common.storage.published_folder import PublishedManifest, download_published, read_manifest
from tunery_common.storage.publisher import Published, Target, publish, published_before
from tunery_trainer.diagnosis.answers import read_answers
from tunery_trainer.inputs.workspace import Workspace
from tunery_trainer.reporting.curves import FILE_NAME, TITLE
from tunery_trainer.reporting.model_card import CARD_FILE, Shown, model_card
from tunery_trainer.reporting.progress import ProgressReporter
from tunery_trainer.reporting.result import result_of
from tunery_trainer.reporting.sweep_card import SWEEP_FILE, how_it_was_found, sweep_json
from tunery_trainer.reporting.sweep_pictures import draw_sweep
from tunery_trainer.reporting.sweep_rows import ranked
from tunery_trainer.tasks.frame import output_target, with_progress
from tunery_trainer.tasks.kept_trials import check_trials_place, remove_other_trials

_NOT_WHOLE: Final = frozenset({FailureReason.ADAPTER_CORRUPT, FailureReason.ADAPTER_MISSING})
_RESTORE: Final = (
    retry("Restore the named file as the trial published it"),
    retry("Use another trial's adapter by its URI in status.trials, as this attempt removed none"),
)


def run_publish_best(run: RunSpec) -> RunResult:
    """Publish the best trial's adapter as the result of `run`'s sweep, and remove the trials that are not kept.

    A rerun publishes once, unless the sweep has gone on since, and removes what an earlier attempt left. Raises
    TuneryError: AdapterCorrupt and AdapterMissing, where the best adapter is not what its trial has published, and what
    publishing raises; nothing is removed then.
    """
    return with_progress(partial(_run, Workspace(run)))


def _run(work: Workspace, reporter: ProgressReporter) -> RunResult:
    sweep = _sweep_of(work.run)
    target = replace(output_target(work), sweep=_record(work.run, sweep))
    published = published_before(target) or _publish_best(work, sweep, target, reporter)
    left = remove_other_trials(work, sweep)
    return result_of(published).model_copy(update={"not_removed": left})


def _sweep_of(run: RunSpec) -> LoRASweepRun:
    """Return what is known of the sweep; raises INTERNAL_ERROR where that cannot be."""
    sweep = run.lora_sweep
    if sweep is None:
        raise TuneryError(FailureReason.INTERNAL_ERROR, "run.json holds no LoRASweep")
    check_trials_place(run, sweep)
    _best_of(sweep)
    return sweep


def _best_of(sweep: LoRASweepRun) -> tuple[TrialStatus, TrialAdapter]:
    best = next(iter(ranked(sweep)), None)
    if best is None or best.number != sweep.best or best.adapter is None:
        message = f"trial {sweep.best} is not complete, was not measured or has no adapter, and cannot be the best"
        raise TuneryError(FailureReason.INTERNAL_ERROR, message)
    return best, best.adapter


def _publish_best(work: Workspace, sweep: LoRASweepRun, target: Target, reporter: ProgressReporter) -> Published:
    probe(target)
    reporter.phase(Phase.STARTING)
    shutil.rmtree(work.result, ignore_errors=True)  # of an attempt that was cut off
    folder = work.result
    found = _fetch_best(work, sweep, target, folder)
    lineage = found.manifest.lineage.model_copy(update={"sweep": target.sweep})
    _write_how_it_was_found(work.run, sweep, lineage, folder)
    reporter.phase(Phase.UPLOADING)
    return publish(folder, target, lineage)


def _fetch_best(work: Workspace, sweep: LoRASweepRun, target: Target, folder: Path) -> PublishedManifest:
    """Bring the best adapter to the disk, if each file of it is what the trial's row vouches for."""
    best, adapter = _best_of(sweep)
    place = work.open(Purpose.OUTPUT, adapter.uri, "spec.output.uri")
    try:
        return download_published(place, folder, adapter.manifest_sha256)
    except TuneryError as error:
        if error.reason not in _NOT_WHOLE:
            raise
        message = f"the adapter of trial {best.number} ({best.name}), the best, is not whole: {error.message}"
        earlier = _published_earlier(target, error)
        if earlier is None:
            raise error.with_(message=message, remedies=_RESTORE) from error
        text = f"{message}; this sweep published trial {earlier.trial} before, and removed others then"
        raise error.with_(message=text, remedies=[_use_published(earlier.trial, target.uri)]) from error


def _published_earlier(target: Target, error: TuneryError) -> SweepRecord | None:
    """Return what this very sweep published before, if the best is gone since then.

    Without objective.tolerance that cannot be: the best of all stays the best of those that are left.
    """
    try:
        published = read_manifest(target.place).manifest
    except TuneryError:
        return None
    record = published.lineage.sweep
    if error.reason is not FailureReason.ADAPTER_MISSING or published.run.uid != target.run.uid or record is None:
        return None
    return record


def _use_published(trial: int, uri: str) -> Remedy:
    return recreate(
        f"Use the adapter of trial {trial}, which stays published at {uri}; or train the chosen trial's values in a "
        "LoRAJob; or set another objective.tolerance",
        "objective.tolerance",
    )


def _record(run: RunSpec, sweep: LoRASweepRun) -> SweepRecord:
    """Return which trial of which sweep is published."""
    return SweepRecord(
        name=run.identity.name,
        uid=run.identity.uid,
        trial=sweep.best,
        trials=len(sweep.trials),
        seed=sweep.seed,
        sampler=sweep.sampler,
    )


def _write_how_it_was_found(run: RunSpec, sweep: LoRASweepRun, lineage: Lineage, folder: Path) -> None:
    """Write the pictures, sweep.json and the card beside the adapter."""
    pictures = draw_sweep(sweep, folder)
    (folder / SWEEP_FILE).write_text(sweep_json(run, sweep), "utf-8")
    curves = {TITLE: FILE_NAME} if (folder / FILE_NAME).is_file() else {}
    shown = Shown(curves, read_answers(folder), how_it_was_found(sweep, pictures))
    (folder / CARD_FILE).write_text(model_card(run.identity, lineage, run.output_uri, shown=shown), "utf-8")
