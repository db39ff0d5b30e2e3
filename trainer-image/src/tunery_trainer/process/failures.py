"""Any exception in, a failure with a reason out, and how it is shown."""

from __future__ import annotations

import sys
import traceback
from typing import Final

from tunery_api.errors import InvalidSpec
from tunery_api.reasons import FailureReason
from tunery_api.runspec import Failure
from tunery_api.scrub import scrub
from tunery_trainer.errors import DISK_FULL, TrainerError, first_line
from tunery_trainer.process.device import gpu_reason, out_of_memory
from tunery_trainer.process.hints_here import said_here

_MAX_LINE: Final = 400
"""Bytes of what another's exception says."""

_GPU_WORDS: Final = {
    FailureReason.GPU_OUT_OF_MEMORY: "the GPU ran out of memory",
    FailureReason.GPU_UNAVAILABLE: "the GPU cannot be used",
    FailureReason.GPU_FAULT: "the GPU failed",
}

_MAX_TRACE: Final = 64 * 1024
"""Bytes of a trace on stderr."""


def explain(error: BaseException) -> TrainerError:
    """Return the failure that `error` means; what is not foreseen is InternalError."""
    if isinstance(error, TrainerError):
        return error
    if isinstance(error, InvalidSpec):
        return TrainerError(FailureReason.INVALID_SPEC, str(error))
    on_gpu = gpu_reason(error)
    if on_gpu is not None:
        return TrainerError(on_gpu, f"{_GPU_WORDS[on_gpu]}: {first_line(error, _MAX_LINE)}")
    if out_of_memory(error):
        return TrainerError(FailureReason.OUT_OF_MEMORY, f"memory ran out: {first_line(error, _MAX_LINE)}")
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return TrainerError(FailureReason.DISK_FULL, f"no space left on the disk: {first_line(error, _MAX_LINE)}")
    return TrainerError(FailureReason.INTERNAL_ERROR, f"{type(error).__name__}: {first_line(error, _MAX_LINE)}")


def explain_here(error: BaseException) -> TrainerError:
    """Return the failure that `error` means where there is no cluster: its hint is of this machine."""
    failure = explain(error)
    return TrainerError(failure.reason, failure.message, said_here(failure.hint, failure.reason))


def to_failure(error: TrainerError) -> Failure:
    """Return `error` as it stands in a termination message."""
    return Failure(reason=error.reason, message=scrub(error.message), hint=scrub(error.hint) if error.hint else None)


def show(failure: TrainerError, cause: BaseException) -> None:
    """Print the failure to stderr: the trace where it helps, then `Reason: message` and the hint as the last lines."""
    if failure.reason is FailureReason.INTERNAL_ERROR:
        print(scrub("".join(traceback.format_exception(cause)), _MAX_TRACE), file=sys.stderr)
    message = " ".join(scrub(failure.message, _MAX_TRACE).split())
    print(f"{failure.reason}: {message}", file=sys.stderr)
    print(" ".join(scrub(failure.hint or "").split()), file=sys.stderr, flush=True)
