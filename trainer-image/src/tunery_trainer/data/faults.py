"""Provide the failures of whole files, each with its place and its remedy."""

from __future__ import annotations

import errno
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from tunery_api.reasons import FailureReason
from tunery_api.remedies import Remedy, retry
from tunery_common.errors import IN_THE_WAY, TuneryError

AGAIN: Final = "Upload the file again"

_OF_THE_MACHINE: Final = (errno.ENOMEM, errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE)
"""What an OSError says that is no fault of the file: told elsewhere as what it is."""


def damaged(where: str, why: str, fix: str = AGAIN, *others: Remedy) -> TuneryError:
    """Return the failure of a file that has an unknown number of rows; `fix` is the text of the first remedy."""
    first = retry(f"{fix} (maxInvalidRows doesn't apply)")
    return TuneryError(FailureReason.DATASET_INVALID, f"{where}: {why}", first, *others)


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Read a file or a folder of the data set, `name` below its root, in the body.

    Raises TuneryError where the kernel refuses: DatasetNotFound where something else stands in its place,
    StorageAccessDenied, and StorageUnavailable where trying again may help.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or error.errno in _OF_THE_MACHINE:
            raise
        raise _refused(name, error.errno) from error


def _refused(name: str, number: int) -> TuneryError:
    message = f"spec.dataset.uri: {name}: cannot be read: {os.strerror(number)}"
    if number in (errno.ENOENT, *IN_THE_WAY):
        fix = "Store the file itself at that path, and don't change the data set while it is read"
        return TuneryError(FailureReason.DATASET_NOT_FOUND, message, retry(fix))
    if number in (errno.EACCES, errno.EPERM):
        fix = f"Let every user read it, as `chmod -R a+rX {shlex.quote(name)}` does, or remove it if it is no data"
        return TuneryError(FailureReason.STORAGE_ACCESS_DENIED, message, retry(fix))
    fix = "Check the disk or the PersistentVolumeClaim that holds it"
    return TuneryError(FailureReason.STORAGE_UNAVAILABLE, message, retry(fix))
