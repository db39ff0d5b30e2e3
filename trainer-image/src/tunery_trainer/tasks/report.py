"""The story of a report: say again what this run has published, where the word of the pod that did it was lost."""

from __future__ import annotations

from tunery_api.runspec import RunResult, RunSpec
from tunery_common.storage.publisher import published_by
from tunery_trainer.inputs.workspace import Workspace
from tunery_trainer.reporting.result import result_of
from tunery_trainer.resuming.kept import kept_checkpoint
from tunery_trainer.tasks.frame import output_target
from tunery_trainer.tasks.kept_trials import left_by_other_trials


def run_report(run: RunSpec) -> RunResult:
    """Read back what `run` published, every digest of it; of a sweep also say what its trials have left behind.

    Nothing is written to the bucket. Raises TuneryError: AdapterMissing where nothing of this very run is there,
    AdapterCorrupt where it is not whole, and the reasons of the storage.
    """
    work = Workspace(run)
    result = result_of(published_by(output_target(work)), kept_checkpoint(work))
    if run.lora_sweep is None:
        return result
    # Empty: it was looked for. None is what those say that cannot look, such as an older image.
    return result.model_copy(update={"not_removed": left_by_other_trials(work, run.lora_sweep) or ""})
