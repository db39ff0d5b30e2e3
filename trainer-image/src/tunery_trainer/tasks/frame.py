"""How every task begins and ends: the place of its result, and what is told until it stands there."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Final

from tunery_api.fields import is_same_uri
from tunery_api.reasons import FailureReason
from tunery_api.remedies import recreate, retry
from tunery_api.runspec import Purpose, RunIdentity, RunResult, RunSpec
from tunery_api.status import Phase
from tunery_common.errors import TuneryError
from tunery_common.storage.probe import probe
from tunery_common.storage.publisher import Target
from tunery_trainer.inputs.workspace import Workspace
from tunery_trainer.reporting.progress import ProgressReporter
from tunery_trainer.resuming.checkpoints import probe_checkpoints

_NOBODY: Final = RunIdentity(kind="LoRASweep", namespace="", name="", uid="")
"""Who has published nothing, and writes nothing."""
_FREE_OUTPUT: Final = (
    retry("Remove the existing files"),
    recreate("Set another output.uri of the LoRASweep, or its output.overwrite: true"),
)
"""Without fields: those of a trial are in the template."""


def with_progress(story: Callable[[ProgressReporter], RunResult]) -> RunResult:
    """Return what the story of a task returns; who watches is told how far it is, and that it has succeeded.

    A TuneryError that it raises names the newest checkpoint, so that the failure tells what is kept.
    """
    reporter = ProgressReporter()
    try:
        result = story(reporter)
        reporter.phase(Phase.SUCCEEDED)
    except TuneryError as error:
        findings, checks = reporter.diagnosed()
        kept = {"checkpoint": reporter.newest_checkpoint, "findings": findings, "checks": checks}
        error.reached = (error.reached or RunResult(evaluations=reporter.evaluated)).model_copy(update=kept)
        raise
    finally:
        reporter.close()
    return result


def of_loading(task: str) -> str:
    """Return why nothing is said for a while."""
    return f"{task:<11}Loading torch and PEFT takes a few seconds, more the first time"


def tell_of_loading(task: str) -> None:
    """Say so on stderr, to whoever waits before a terminal."""
    print(of_loading(task), file=sys.stderr, flush=True)


def output_target(work: Workspace, beyond: float = 0) -> Target:
    """Return the place of the result, of a training run, a merge or a sweep; nothing is contacted yet.

    What the run published as it was stopped gives way where that was after fewer steps than `beyond`.
    """
    sweep, merge = work.run.lora_sweep, work.run.adapter_merge
    overwrite = sweep.overwrite if sweep else (merge or work.lora_job).output.overwrite
    return Target(work.output, work.run.identity, overwrite, beyond)


def refuse_own_input(run: RunSpec) -> None:
    """Raise INVALID_SPEC where the result would replace an adapter that it is made from: a second try had none left."""
    if any(is_same_uri(adapter.uri, run.output_uri) for adapter in run.adapters):
        message = f"spec.output.uri: {run.output_uri} is where an adapter lies that this one is made from"
        raise TuneryError(FailureReason.INVALID_SPEC, message)


def probe_places(work: Workspace) -> None:
    """Write and remove a small object where the result and where the checkpoints will lie; raises TuneryError."""
    refuse_own_input(work.run)
    probe(output_target(work))
    place = work.checkpoints
    if place is not None:
        probe_checkpoints(place)


def probe_sweep_output(work: Workspace) -> None:
    """Do the same where the sweep that the run is a trial of will publish its own result; raises TuneryError.

    Whoever published there, the sweep has not: it is at its first trial.
    """
    uri = work.run.also_free
    if uri is None:
        return
    place = work.open(Purpose.OUTPUT, uri, "spec.output.uri of the LoRASweep")
    try:
        probe(Target(place, _NOBODY))
    except TuneryError as error:
        if error.reason is not FailureReason.OUTPUT_EXISTS:
            raise
        said = error.message.removeprefix("spec.output.uri: ")
        message = f"spec.output.uri of the LoRASweep: {said}"
        raise error.with_(message=message, remedies=_FREE_OUTPUT) from error
