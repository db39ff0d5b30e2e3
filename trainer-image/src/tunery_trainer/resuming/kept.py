"""What becomes of a run's checkpoints once its result is published and was read back: removed, or kept if asked."""

from __future__ import annotations

import logging
import shutil
from typing import Final

from tunery_api.runspec import RunSpec
from tunery_api.status import CheckpointStatus
from tunery_trainer.errors import TrainerError
from tunery_trainer.inputs.workspace import checkpoint_store, work_folder
from tunery_trainer.storage.checkpoints import latest_complete, remove_checkpoints

LOCAL_FOLDER: Final = "checkpoints"
"""Below the work directory: what the loop writes, and a resume downloads."""

_log = logging.getLogger(__name__)


def settle_checkpoints(run: RunSpec) -> CheckpointStatus | None:
    """Remove the checkpoints of a published run, or return the newest one if spec.checkpoint.keepAfterSuccess.

    The result is there: whatever the storage answers is a warning, never a failure.
    """
    if keeps(run):
        return kept_checkpoint(run)
    try:
        place = checkpoint_store(run)
        if place is not None:
            remove_checkpoints(*place)
    except TrainerError as error:
        _log.warning("checkpoints were not removed: %s", error.message)
    for folder in work_folder(run, LOCAL_FOLDER).glob("checkpoint-*"):
        shutil.rmtree(folder, ignore_errors=True)
    return None


def kept_checkpoint(run: RunSpec) -> CheckpointStatus | None:
    """Return the newest complete checkpoint if the job keeps them; None where there is none, or none can be seen."""
    if not keeps(run):
        return None
    try:
        place = checkpoint_store(run)
        newest = latest_complete(*place) if place else None
    except TrainerError as error:
        _log.warning("the kept checkpoints were not looked at: %s", error.message)
        return None
    if place is None or newest is None:
        return None
    return CheckpointStatus(uri=place[0].uri(newest.prefix), step=newest.step)


def keeps(run: RunSpec) -> bool:
    """Tell whether the job keeps its checkpoints after success; a merge has none."""
    return run.lora_job is not None and run.lora_job.checkpoint.keep_after_success
