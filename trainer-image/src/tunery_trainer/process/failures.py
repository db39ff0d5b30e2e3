"""Any exception in, a failure with a reason out, and how it is shown."""

from __future__ import annotations

import re
import sys
import traceback
from typing import Final

from tunery_api.errors import InvalidSpec
from tunery_api.reasons import FailureReason
from tunery_api.failures import Failure
from tunery_api.scrub import MAX_MESSAGE_BYTES, scrub, shorten
from tunery_common.errors import DISK_FULL, TuneryError, first_line
from tunery_trainer.process.device import gpu_reason, out_of_memory
from tunery_trainer.process.hints_here import said_here

_MAX_LINE: Final = 400
"""Bytes of what another's exception says."""

_GPU_WORDS: Final = {
    FailureReason.GPU_OUT_OF_MEMORY: "the GPU ran out of memory",
    FailureReason.GPU_UNAVAILABLE: "the GPU cannot be used",
    FailureReason.GPU_FAULT: "the GPU failed",
}

_UNWRITTEN: Final = re.compile(
    r"\binline_container\.cc\b.*\bunexpected pos\b|PytorchStreamWriter failed writing|basic_ios::clear: iostream error"
    r"|No space left on device|Disk quota exceeded"
)
"""What torch and safetensors say without the kernel's number; torch only that it stands where it should not."""

_HINT_ROOM: Final = 200
"""Bytes of a hint that stay, however long the place is that is named after it."""
_MAX_TRACE: Final = 64 * 1024
"""Bytes of a trace on stderr."""


def explain(error: BaseException) -> TuneryError:
    """Return the failure that `error` means; what is not foreseen is InternalError."""
    if isinstance(error, TuneryError):
        return error
    if isinstance(error, InvalidSpec):
        return TuneryError(FailureReason.INVALID_SPEC, str(error))
    on_gpu = gpu_reason(error)
    if on_gpu is not None:
        return TuneryError(on_gpu, f"{_GPU_WORDS[on_gpu]}: {first_line(error, _MAX_LINE)}")
    if out_of_memory(error):
        return TuneryError(FailureReason.OUT_OF_MEMORY, f"memory ran out: {first_line(error, _MAX_LINE)}")
    if _is_of_a_full_disk(error):
        return TuneryError(FailureReason.DISK_FULL, f"no space left on the disk: {first_line(error, _MAX_LINE)}")
    return TuneryError(FailureReason.INTERNAL_ERROR, f"{type(error).__name__}: {first_line(error, _MAX_LINE)}")


def _is_of_a_full_disk(error: BaseException) -> bool:
    """Tell whether a file could not be written to its end, as the kernel, torch or safetensors say it."""
    if isinstance(error, OSError):
        return error.errno in DISK_FULL
    return _UNWRITTEN.search(str(error)) is not None


def explain_here(error: BaseException) -> TuneryError:
    """Return the failure that `error` means where there is no cluster: its hint is of this machine."""
    failure = explain(error)
    return TuneryError(failure.reason, failure.message, said_here(failure.hint, failure.reason))


def to_failure(error: TuneryError) -> Failure:
    """Return `error` as it stands in a termination message."""
    return Failure(reason=error.reason, message=scrub(error.message), hint=scrub(error.hint) if error.hint else None)


def add_to_hint(error: TuneryError, said: str) -> None:
    """Put a sentence behind a failure's hint, which gives way as far as a message has no room for both."""
    room = max(_HINT_ROOM, MAX_MESSAGE_BYTES - len(said.encode()) - 1)
    error.hint = f"{shorten(error.hint or '', room)} {said}".strip()


def show(failure: TuneryError, cause: BaseException) -> None:
    """Print the failure to stderr: the trace where it helps, then `Reason: message` and the hint as the last lines."""
    if failure.reason is FailureReason.INTERNAL_ERROR:
        print(scrub("".join(traceback.format_exception(cause)), _MAX_TRACE), file=sys.stderr)
    message = " ".join(scrub(failure.message, _MAX_TRACE).split())
    print(f"{failure.reason}: {message}", file=sys.stderr)
    print(" ".join(scrub(failure.hint or "").split()), file=sys.stderr, flush=True)
