"""The story of a run that was stopped: what is best in its newest checkpoint becomes the adapter at the output.

It takes neither a GPU nor the base's weights. What was measured stands in the checkpoint; nothing is measured anew.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final, NamedTuple

from tunery_api.manifest import Lineage, StopRecord
from tunery_api.measured import number_text
from tunery_api.reasons import FailureReason
from tunery_api.remedies import recreate
from tunery_api.runspec import RunResult, RunSpec
from tunery_api.status import CheckpointStatus
from tunery_common.errors import TuneryError
from tunery_common.storage.publisher import Published, Target, publish, published_before
from tunery_trainer.inputs.workspace import Workspace, get_model
from tunery_trainer.process.environment import go_offline
from tunery_trainer.reporting.result import result_of
from tunery_trainer.resuming.checkpoints import latest_complete, restore
from tunery_trainer.resuming.draft import Draft, read_draft
from tunery_trainer.resuming.may_resume import base_of, check_base
from tunery_trainer.resuming.memo import read_memo
from tunery_trainer.tasks.card import write_card
from tunery_trainer.tasks.curves import fetch_runs
from tunery_trainer.tasks.data_report import add_report, fetch_report, forget_report, say_where_it_lies
from tunery_trainer.tasks.frame import output_target, probe_places
from tunery_trainer.tasks.rejected import reject, with_verdict

_STATE: Final = frozenset({"optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state.pth"})
"""Files of a checkpoint that only training goes on from."""
_FOLDER: Final = "stopped"
"""Below the work directory."""


class _Kept(NamedTuple):
    """A checkpoint on the local disk, and how it would be published."""

    folder: Path
    draft: Draft


def run_publish(run: RunSpec) -> RunResult:
    """Publish what is best in the newest checkpoint of `run`, or say again what it has published of it.

    Its checkpoints stay: another job may go on from them. The data report goes along. A rerun publishes once; what an
    earlier stop published gives way to a newer checkpoint.
    Raises TuneryError: CheckpointMissing, NotImproved once it is published as rejected, and what a training run raises
    as it publishes.
    """
    work = Workspace(run)
    newest = _newest(work)
    target = output_target(work, newest.step if newest else 0)
    published = published_before(target) or _publish_newest(work, target)
    forget_report(work)
    say_where_it_lies(published)
    return result_of(published, newest)


def _newest(work: Workspace) -> CheckpointStatus | None:
    newest = latest_complete(work.checkpoints) if work.checkpoints else None
    return CheckpointStatus(uri=newest.place.uri, step=newest.step) if newest else None


def _publish_newest(work: Workspace, target: Target) -> Published:
    probe_places(work)
    kept = _restored(work)
    base = get_model(work, weights=False)
    check_base(read_memo(kept.folder).origin, base_of(work.lora_job.model.uri, base), own=True)
    go_offline()
    from tunery_trainer.training.unfinished import save_unfinished

    lineage = with_verdict(_stopped(kept.draft.lineage, work.run), work.lora_job.evaluation.min_improvement)
    rank = save_unfinished(kept.folder, kept.draft, base.folder, work.result)
    lineage = lineage.model_copy(update={"rank": rank})
    state = json.loads((kept.folder / "trainer_state.json").read_text("utf-8"))
    write_card(work, lineage, state["log_history"])
    loss = lineage.metrics.get("evalLoss")
    measured = "not measured" if loss is None else number_text(loss)
    print(f"Publishing the weights of step {lineage.step}, evaluation loss {measured}: {lineage.stopped}", flush=True)
    fetch_report(work)
    if work.lora_job.tracking:
        fetch_runs(work)
    add_report(work, work.result)
    if lineage.rejected:
        raise reject(work, work.result, lineage)
    return publish(work.result, target, lineage)


def _stopped(lineage: Lineage, run: RunSpec) -> Lineage:
    planned = lineage.resolved.steps if lineage.resolved else None
    why = " ".join((run.stop or "it was told to stop").split())
    record = StopRecord(after_step=lineage.steps or 0, of_steps=planned, why=why)
    return lineage.model_copy(update={"stopped": record})


def _restored(work: Workspace) -> _Kept:
    place = work.checkpoints
    restored = restore(place, work.folder(_FOLDER), without=_STATE) if place else None
    if place is None or restored is None:
        where = f" at {place.uri}" if place else ""
        message = f"there is nothing to publish: the run has stored no checkpoint{where}"
        fix = recreate("Store checkpoints more often by checkpoint.everySteps", "checkpoint.everySteps")
        raise TuneryError(FailureReason.CHECKPOINT_MISSING, message, fix)
    return _Kept(restored.folder, read_draft(restored.folder))
