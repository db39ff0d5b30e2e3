"""What becomes of a run's checkpoints once its result is published and was read back: removed, or kept if asked."""

from __future__ import annotations

import logging
import shutil
from typing import Final

from tunery_api.runspec import RunSpec
from tunery_api.status import CheckpointStatus
from tunery_common.errors import TuneryError
from tunery_trainer.inputs.workspace import Workspace
from tunery_trainer.resuming.checkpoints import latest_complete, remove_checkpoints

LOCAL_FOLDER: Final = "checkpoints"
"""Below the work directory: what the loop writes, and a resume downloads."""

_log = logging.getLogger(__name__)


def settle_checkpoints(work: Workspace) -> CheckpointStatus | None:
    """Remove the checkpoints of a published run, or return the newest one if spec.checkpoint.keepAfterSuccess.

    The result is there: whatever the storage answers is a warning, never a failure.
    """
    if keeps(work.run):
        return kept_checkpoint(work)
    try:
        place = work.checkpoints
        if place is not None:
            remove_checkpoints(place)
    except TuneryError as error:
        _log.warning("checkpoints were not removed: %s", error.message)
    for folder in work.folder(LOCAL_FOLDER).glob("checkpoint-*"):
        shutil.rmtree(folder, ignore_errors=True)
    return None


def kept_checkpoint(work: Workspace) -> CheckpointStatus | None:
    """Return the newest complete checkpoint if the job keeps them; None where there is none, or none can be seen."""
    if not keeps(work.run):
        return None
    try:
        place = work.checkpoints
        newest = latest_complete(place) if place else None
    except TuneryError as error:
        _log.warning("the kept checkpoints were not looked at: %s", error.message)
        return None
    return CheckpointStatus(uri=newest.place.uri, step=newest.step) if newest else None


def keeps(run: RunSpec) -> bool:
    """Tell whether the job keeps its checkpoints after success; a merge has none."""
    return run.lora_job is not None and run.lora_job.checkpoint.keep_after_success
