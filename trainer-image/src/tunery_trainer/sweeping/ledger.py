"""What is known of a sweep without a cluster: one file, which is always whole, and whoever holds its folder."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from pydantic import Field, ValidationError, field_validator

from tunery_api.fields import OpenModel
from tunery_api.lorajob import PreflightPolicy
from tunery_api.reasons import FailureReason
from tunery_api.remedies import retry
from tunery_api.sweepstatus import EndReason, ParameterImportance, TrialInputs, TrialStatus
from tunery_common.errors import TuneryError
from tunery_trainer.process.whole import write_whole

LEDGER_FILE: Final = "sweep.json"
TRIALS_FOLDER: Final = "trials"
"""Beside it: where its trials work, one after the other, and the best is published from."""
_LOCK_FILE: Final = "lock"
_WAIT_SECONDS: Final = 10.0
"""How long what a killed process has left may take to end."""


class _Metadata(OpenModel):
    name: str
    uid: str
    labels: dict[str, str]
    annotations: dict[str, str]


class _TrialSpec(OpenModel):
    preflight: PreflightPolicy


class _UnderWay(OpenModel):
    """What is read of the LoRAJob of a trial that is under way."""

    metadata: _Metadata
    spec: _TrialSpec
    status: dict[str, Any]


class Ledger(OpenModel):
    """A sweep's trials, in the words of its status, and what only a rerun asks for."""

    uid: str
    seconds: float = 0.0
    """How long the sweep ran, all its processes together."""
    end_reason: EndReason | None = None
    forgiven: int = 0
    """What trials below this number failed for was seen by whoever ran it again."""
    importance: list[ParameterImportance] = Field(default_factory=list)
    trial_inputs: TrialInputs | None = None
    """What the first trial that passed its preflight has read: every later one reads the same, or fails."""
    trials: list[TrialStatus] = Field(default_factory=list)
    """Those that have ended."""
    under_way: dict[str, Any] | None = None
    """The LoRAJob of the trial that has not, as the operator would have it in a cluster."""
    under_way_seconds: float = 0.0
    """How long its earlier processes ran."""

    @field_validator("trials")
    @classmethod
    def _known_reasons(cls, rows: list[TrialStatus]) -> list[TrialStatus]:
        for row in rows:
            if row.reason is not None:
                FailureReason(row.reason)
        return rows

    @field_validator("under_way")
    @classmethod
    def _is_a_trial(cls, body: dict[str, Any] | None) -> dict[str, Any] | None:
        if body is not None:
            _UnderWay.model_validate(body)
        return body


def read_ledger(folder: Path, uid: str) -> Ledger:
    """Return what is known of a sweep; raises TuneryError where the file is not one of this sweep."""
    path = folder / LEDGER_FILE
    try:
        ledger = Ledger.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return Ledger(uid=uid)
    except OSError as error:
        raise _not_ours(path, f"it cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise _not_ours(path, f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": ")) from error
    if ledger.uid != uid:
        raise _not_ours(path, f"it is of a sweep with uid {ledger.uid}, this one is {uid}")
    return ledger


def damaged(folder: Path, error: Exception) -> TuneryError:
    """Return what to say where a ledger's trials are not what this program writes."""
    return _not_ours(folder / LEDGER_FILE, f"it is damaged ({type(error).__name__}: {error})")


def _not_ours(path: Path, why: str) -> TuneryError:
    fix = retry(f"Move {path} away to repeat its trials")
    return TuneryError(FailureReason.INVALID_SPEC, f"{path} holds no trials of this sweep: {why}", fix)


def write_ledger(folder: Path, ledger: Ledger) -> None:
    """Write down what is known of a sweep, in place of what was."""
    write_whole(folder / LEDGER_FILE, ledger.model_dump_json(by_alias=True, exclude_none=True, indent=1) + "\n")


@contextmanager
def held(folder: Path) -> Iterator[int]:
    """Hold a sweep's folder, alone, and yield what a process that belongs to it inherits.

    It stays held as long as any of these lives. Raises TuneryError where another run of the sweep has it.
    """
    file = os.open(folder / _LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _lock(file, folder)
        yield file
    finally:
        os.close(file)


def _lock(file: int, folder: Path) -> None:
    ends = time.monotonic() + _WAIT_SECONDS
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.ENOTSUP):
                return  # of a file system that knows no locks
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            if time.monotonic() > ends:
                text = f"another process runs this sweep: it holds {folder / _LOCK_FILE}"
                fix = retry("Wait until that process has ended, or end it")
                raise TuneryError(FailureReason.NAME_CONFLICT, text, fix) from error
            time.sleep(0.1)
        else:
            return
