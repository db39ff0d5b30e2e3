"""Turn any exception into a failure with a reason, and show it with what to do about it."""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Mapping
from typing import Final

from tunery_api.errors import InvalidSpec
from tunery_api.failures import FailureStatus, Subject, render_hint
from tunery_api.names import CA_BUNDLE_ENV
from tunery_api.reasons import FailureReason
from tunery_api.redact import redact
from tunery_api.remedies import WITHOUT_GPU, Remedy, recreate, remedies_for, retry
from tunery_api.runspec import RunSpec
from tunery_common.errors import DISK_FULL, TuneryError, first_line
from tunery_trainer.process.device import gpu_reason, out_of_memory

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

_MAX_TRACE: Final = 64 * 1024
"""Bytes of a trace on stderr."""

_R = FailureReason
LOCAL_REMEDIES: Final[Mapping[FailureReason, tuple[Remedy, ...]]] = {
    _R.SECRET_NOT_FOUND: (
        retry("Set the named variables in the environment; a store outside AWS also needs AWS_ENDPOINT_URL"),
    ),
    _R.MODEL_GATED: (
        retry("Accept the model's terms on its hub page, and set HF_TOKEN of that account in the environment"),
    ),
    _R.STORAGE_ACCESS_DENIED: (
        retry("Grant this user read and write access; for S3 or a hub, correct the keys in the environment"),
    ),
    _R.STORAGE_NOT_FOUND: (
        retry("Create the named location; for S3, also check AWS_ENDPOINT_URL in the environment"),
        recreate("Name another location"),
    ),
    _R.STORAGE_UNAVAILABLE: (retry("Check that the storage is up and reachable from this machine"),),
    _R.GPU_UNAVAILABLE: (retry("Check the GPU of this machine, its driver, and CUDA"), WITHOUT_GPU),
    _R.GPU_FAULT: (retry("Check the GPU of this machine"),),
    _R.OUT_OF_MEMORY: (
        retry("End other processes that use the memory of this machine"),
        recreate(
            "Lower training.maxLength or training.batchSize, or use method: QLoRA",
            "training.maxLength",
            "training.batchSize",
            "method",
        ),
    ),
    _R.KILLED: (retry("Check what ends processes on this machine"),),
    _R.PEER_LOST: (retry("Check the output of the named process"),),
    _R.DISK_FULL: (retry("Free disk space, or name a folder on another disk with --work-dir"),),
    _R.MOUNT_FAILED: (retry(f"Set {CA_BUNDLE_ENV} to a file with certificates in PEM"),),
    _R.INTERNAL_ERROR: (retry("Report this as a bug in Tunery, with the output"),),
}
"""The usual remedies of a run without a cluster, where they differ from those in a cluster."""


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


def subject_of(run: RunSpec) -> Subject | None:
    """Return the object that a run belongs to; None: a run without a cluster."""
    identity = run.identity
    return None if run.local else Subject(identity.kind, identity.name, identity.namespace, identity.sweep)


def localize(error: TuneryError) -> TuneryError:
    """Return `error` as a run without a cluster shows it: with LOCAL_REMEDIES in place of the usual ones."""
    usual = tuple(error.remedies) == remedies_for(error.reason)
    return error.with_(remedies=LOCAL_REMEDIES.get(error.reason) if usual else None)


def hint_of(error: TuneryError, subject: Subject | None) -> str:
    """Return what to do about `error`, in one line; `subject` as for `render_hint`."""
    shown = localize(error) if subject is None else error
    return " ".join(render_hint(shown.failure, subject).split())


def failure_status(error: TuneryError, subject: Subject | None) -> FailureStatus:
    """Return `error` with its hint, for a document; `subject` as for `render_hint`."""
    return FailureStatus(reason=error.reason, message=redact(error.message), hint=hint_of(error, subject))


def show(failure: TuneryError, cause: BaseException, subject: Subject | None = None) -> None:
    """Print the failure to stderr: the trace if it helps, then `Reason: message` and the hint as the last lines."""
    if failure.reason is FailureReason.INTERNAL_ERROR:
        print(redact("".join(traceback.format_exception(cause)), _MAX_TRACE), file=sys.stderr)
    message = " ".join(redact(failure.message, _MAX_TRACE).split())
    print(f"{failure.reason}: {message}", file=sys.stderr)
    print(hint_of(failure, subject), file=sys.stderr, flush=True)
