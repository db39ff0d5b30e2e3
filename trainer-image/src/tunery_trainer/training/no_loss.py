"""Why there is no loss before any step is done: values that are no number, or a precision that is too narrow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tunery_api.manifest import WEIGHTS_FILE as ADAPTER_FILE
from tunery_api.reasons import FailureReason
from tunery_api.remedies import Remedy, recreate, retry
from tunery_api.training import Precision
from tunery_common.errors import TuneryError
from tunery_common.inputs.misfit import DIVERGED, DIVERGED_ELSEWHERE
from tunery_trainer.losses.evaluation import Measured
from tunery_trainer.model.finite import not_finite, not_finite_base
from tunery_trainer.resuming.resume import Resumed
from tunery_trainer.settings.types import RunSettings
from tunery_trainer.training.assignment import Assignment
from tunery_trainer.training.weights import WEIGHTS_FILE

_NARROW_FIRST: Final = (Precision.FLOAT16, Precision.BFLOAT16, Precision.FLOAT32)


def _remedies(field: str, precision: Precision) -> list[Remedy]:
    """Return what to do if a base of finite values computes no loss in a precision that `field` sets."""
    if precision is Precision.FLOAT16:
        wider = f"Set {field} to Float32, or to BFloat16 on a GPU that has it: models made in BFloat16 pass 65,504"
        return [recreate(wider, field)]
    if precision is Precision.BFLOAT16:
        other = "If there is no loss then either, set another model.uri, or omit the rows without a loss"
        return [recreate(f"Set {field} to Float32", field), recreate(other, "model.uri")]
    return [retry("Remove the rows without a loss from the data"), recreate("Set another model.uri", "model.uri")]


def check_start(job: Assignment) -> None:
    """Check that what training begins with beside the base holds numbers; the base is too large to be looked at before
    there is a reason to.

    Raises TuneryError: AdapterCorrupt for the adapter of continueFrom, CheckpointMissing for the checkpoint of
    resumeFrom, LossDiverged for one of this job.
    """
    source = job.plan.basis.start_from
    found = not_finite(source.folder / ADAPTER_FILE) if source and not job.resumed else None
    if found:
        raise TuneryError(
            FailureReason.ADAPTER_CORRUPT,
            f"spec.continueFrom: {found}, so that nothing can be learned from there on",
            DIVERGED_ELSEWHERE if source and source.unverified else DIVERGED,
            recreate("Name another adapter", "continueFrom"),
        )
    if job.resumed:
        _check_checkpoint(job.resumed)


def _check_checkpoint(resumed: Resumed) -> None:
    found = not_finite(resumed.folder / WEIGHTS_FILE)
    if found is None:
        return
    said = f"the checkpoint of step {resumed.step} is of a run that had diverged by then: {found}"
    if resumed.own:
        raise TuneryError(FailureReason.LOSS_DIVERGED, said)
    raise TuneryError(
        FailureReason.CHECKPOINT_MISSING,
        f"spec.resumeFrom: {said}",
        recreate("Set resumeFrom.uri to a checkpoint of an older step, or omit resumeFrom", "resumeFrom"),
    )


@contextmanager
def looking_at_the_base(job: Assignment) -> Iterator[None]:
    """Train in the body; where the loss diverged, look for a cause in the base, which takes a pass over its files.

    A row of its embeddings that holds NaN is met by the first training row with that token, whatever the learning rate.
    Raises TuneryError(ModelUnsupported) then.
    """
    try:
        yield
    except TuneryError as error:
        spoilt = not_finite_base(_base(job)) if error.reason is FailureReason.LOSS_DIVERGED else None
        if spoilt is None:
            raise
        raise spoilt from error


def no_loss(job: Assignment, found: Measured) -> TuneryError:
    """Return the failure that what training starts from has no loss on the held-out rows; reads all of the base.

    The leader of a team does, and the others wait for it: whoever has ended before would end it, too.
    """
    spoilt = not_finite_base(_base(job)) if job.team.leader else None
    job.team.any(False)
    if spoilt:
        return spoilt
    field, precision = _narrowest(job.settings)
    who = "the base with the adapter of spec.continueFrom" if job.plan.basis.start_from else "the base"
    return TuneryError(
        FailureReason.MODEL_UNSUPPORTED,
        f"spec.model.uri: before any step the loss of {who} is not finite on {found.without_loss} of "
        f"{len(job.data.evaluation)} held-out rows, computed in {precision}, and its files hold neither NaN nor "
        "infinity",
        *_remedies(field, precision),
    )


def _base(job: Assignment) -> Path:
    return job.plan.basis.base.folder


def _narrowest(settings: RunSettings) -> tuple[str, Precision]:
    """Return the narrowest type that the model computes in, and the field that says so."""
    told = [("training.precision", settings.training.precision)]
    if settings.quantization:
        told.append(("quantization.computeType", Precision(settings.quantization.compute_type.value)))
    return min(told, key=lambda each: _NARROW_FIRST.index(each[1]))
