"""What it means when weights do not load: a fault of the model, or of the machine that loads them."""

from __future__ import annotations

import errno
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from safetensors import SafetensorError

from tunery_api.reasons import FailureReason
from tunery_api.remedies import retry
from tunery_common.errors import IN_THE_WAY, TuneryError, first_line
from tunery_trainer.process.device import gpu_reason, out_of_memory

_LOADER: Final = "transformers.modeling_utils"
_OF_THE_MODEL: Final = re.compile(
    r"loading state_dict|ignore_mismatched_sizes|automatic conversion of the weights"  # transformers' report
    r"|size mismatch|shape '.*' is invalid|[Uu]nknown dtype|not implemented for"
)
"""What a RuntimeError of transformers and torch says where the weights are not those of the config, or of a type that
cannot be read. Any other is of the machine."""
_ERRNO: Final = re.compile(r"\(os error (\d+)\)")
"""How safetensors tells what the kernel said."""
_DIFFERS: Final = re.compile(
    r"^(.+?)\s*\|.*MISMATCH.*ckpt: torch\.Size\((.+?)\) vs model:\s*torch\.Size\((.+?)\)", re.MULTILINE
)
"""A line of transformers' report of tensors."""
_SHOWN: Final = 3
_ONE_VERSION: Final = retry("Replace config.json and the files of the weights by those of one version of the model")
"""What is whole, as the headers have told before, and does not belong together."""


@contextmanager
def loading() -> Iterator[None]:
    """Load weights by transformers in the body, and say what went wrong.

    Raises TuneryError: ModelUnsupported where the weights are not those of the config.json or cannot be read as
    safetensors, StorageAccessDenied and StorageUnavailable where the files cannot be read, ModelNotFound where
    something else stands in their place. What is of the GPU, of memory or of threads is raised as it is, and as its own
    kind also where transformers hides it behind a report.
    """
    with _report() as said:
        try:
            yield
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            report = "".join(said)
            hidden = _hidden(report)
            if hidden is not None:
                raise hidden from error
            if gpu_reason(error) is not None or out_of_memory(error):
                raise
            number = _errno(error)
            if number is not None:
                raise _unreadable(number) from error
            if isinstance(error, RuntimeError) and not _OF_THE_MODEL.search(str(error)):
                raise
            raise unusable(_differing(report) or _converted(report) or first_line(error)) from error


def check_complete(missing: set[str] | list[str]) -> None:
    """Raise TuneryError(ModelUnsupported) where weights are missing: transformers would draw them at random."""
    if missing:
        names = sorted(missing)
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        raise unusable(f"the files lack {', '.join(names[:_SHOWN])}{more}, which config.json asks for")


def unusable(cause: str) -> TuneryError:
    """Return the failure for weights that are not those of a model that can be trained."""
    message = f"spec.model.uri: its weights cannot be loaded: {cause}"
    return TuneryError(FailureReason.MODEL_UNSUPPORTED, message, _ONE_VERSION)


@contextmanager
def _report() -> Iterator[list[str]]:
    """Yield what the loader logs: what went wrong with single tensors is told there, and nowhere else."""
    logger, said = logging.getLogger(_LOADER), _Kept()
    before = (logger.level, logger.propagate)
    logger.addHandler(said)
    logger.setLevel(logging.WARNING)
    logger.propagate = False
    try:
        yield said.texts
    finally:
        logger.removeHandler(said)
        logger.setLevel(before[0])
        logger.propagate = before[1]


class _Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def _hidden(report: str) -> BaseException | None:
    """Return what ended the conversion of a tensor, where that says nothing of the model."""
    for line in report.splitlines():
        name, _, said = line.strip().partition(": ")
        if name == MemoryError.__name__:
            return MemoryError(said)
        if name.endswith("Error"):
            error = RuntimeError(said)
            if name.endswith("OutOfMemoryError") or gpu_reason(error) is not None or out_of_memory(error):
                return error
    return None


def _errno(error: BaseException) -> int | None:
    told = _ERRNO.search(str(error))
    return int(told[1]) if told else error.errno if isinstance(error, OSError) else None


def _unreadable(number: int) -> BaseException:
    """Return what it is where the kernel did not let a file be read."""
    said = f"spec.model.uri: its weights cannot be read: {os.strerror(number)}"
    if number == errno.ENOMEM:
        return MemoryError(said)
    if number in IN_THE_WAY:
        fix = "Store the files themselves at their paths, and don't change the model while it is read"
        return TuneryError(FailureReason.MODEL_NOT_FOUND, said, retry(fix))
    denied = number in (errno.EACCES, errno.EPERM)
    return TuneryError(FailureReason.STORAGE_ACCESS_DENIED if denied else FailureReason.STORAGE_UNAVAILABLE, said)


def _differing(report: str) -> str | None:
    """Return which tensors have another shape than the config.json says."""
    found = _DIFFERS.findall(report)
    told = [f"{name} is {there} in the files and {wanted} by config.json" for name, there, wanted in found]
    more = f", and {len(found) - _SHOWN} more differ" if len(found) > _SHOWN else ""
    return "; ".join(told[:_SHOWN]) + more if told else None


def _converted(report: str) -> str | None:
    """Return the first thing that a conversion said."""
    lines = (line.strip() for line in report.splitlines())
    return next((line for line in lines if re.match(r"\w*(Error|Exception): ", line)), None)
