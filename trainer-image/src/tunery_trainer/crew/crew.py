"""The other processes of a pod that trains on several devices: started, heard, and ended with this one.

They are children of the process that tells the story, one for each further device, and end with it whatever ends it. A
process that ends before its time is the cause of what all others say next, that somebody is gone: this one is told.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self

from pydantic import ValidationError

from tunery_api.failures import Failure
from tunery_api.reasons import ExitCode, FailureReason
from tunery_common.errors import TuneryError
from tunery_trainer.crew.causes import Causes, PeerLost
from tunery_trainer.process.place import Place
from tunery_trainer.process.supervise import CHILD, SIGNALLED

ASSIGNMENT: Final = "assignment.pickle"
FAILURE: Final = "failure.json"
"""What a process says of its own end, in its folder."""


@dataclass(frozen=True)
class Member:
    """One of the other processes."""

    rank: int
    folder: Path
    process: subprocess.Popen[bytes]


class Crew:
    """The other processes of this pod; none where there is one device.

    A context: at its end they are ended, too.
    """

    def __init__(self, place: Place, folder: Path, causes: Causes) -> None:
        """`folder` is for what is handed to them."""
        self.place = place
        self.causes = causes
        self._folder = folder
        self._members: list[Member] = []
        self._ending = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending = True
        self.causes.settle()
        for member in self._members:
            member.process.kill()
        for member in self._members:
            member.process.wait()

    def start(self, assignment: Any) -> None:
        """Start the other processes of this pod on `assignment`, which can be pickled."""
        if self.place.devices == 1:
            return
        self.place = self.place.begun()
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / ASSIGNMENT
        path.write_bytes(pickle.dumps(assignment))
        for device in range(1, self.place.devices):
            self._start(path, device)

    def _start(self, assignment: Path, device: int) -> None:
        place = self.place.of(device)
        folder = self._folder / f"rank-{place.rank}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FAILURE).unlink(missing_ok=True)
        process = subprocess.Popen(
            [sys.executable, "-m", "tunery_trainer", "follow", str(assignment), str(folder)],
            stdout=subprocess.DEVNULL,  # what all of them do this one tells
            stderr=subprocess.PIPE,
            env={**os.environ, **place.environment(), CHILD: str(os.getpid())},
            start_new_session=True,  # a terminal's Ctrl-C is heard by this one, which tells the others in time
        )
        member = Member(place.rank, folder, process)
        self._members.append(member)
        threading.Thread(target=_pass_on, args=(member,), name=f"rank-{place.rank}-log", daemon=True).start()
        threading.Thread(target=self._wait, args=(member,), name=f"rank-{place.rank}", daemon=True).start()

    def _wait(self, member: Member) -> None:
        """Wait for the end of a process; one before its time ends this one, too."""
        code = member.process.wait()
        if self._ending or code == ExitCode.OK:
            return
        found, echo = read_failure(member.folder, code)
        error = found.about(f"process {member.rank} of {self.place.world}")
        if error.reason is FailureReason.PEER_LOST:
            error = PeerLost(error.message, *error.remedies, counts=True)
        if not echo:
            self.causes.known(error)
        self.causes.lost(error, echo=echo)


def read_failure(folder: Path, code: int) -> tuple[TuneryError, bool]:
    """Return why a process has ended with `code`, and whether it only says that another one is gone."""
    try:
        failure = Failure.model_validate_json((folder / FAILURE).read_bytes())
    except (OSError, ValidationError):
        return _without_words(code), False
    error = TuneryError(FailureReason(failure.reason), failure.message, *failure.remedies)
    error.facts = dict(failure.facts)
    return error, code == ExitCode.PEER_LOST


def _without_words(code: int) -> TuneryError:
    if code == ExitCode.TERMINATED:
        text = "somebody told the process to end (SIGTERM), and none of the others"
        return TuneryError(FailureReason.PEER_LOST, text)
    if code in (-signal.SIGKILL, SIGNALLED + signal.SIGKILL):
        text = "the process was killed (SIGKILL), as the kernel does it where memory runs out"
        return TuneryError(FailureReason.OUT_OF_MEMORY, text)
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    return TuneryError(FailureReason.INTERNAL_ERROR, f"native code failed: the process {how}")


def _pass_on(member: Member) -> None:
    stream: IO[bytes] | None = member.process.stderr
    for line in stream or ():
        sys.stderr.write(f"[process {member.rank}] {line.decode(errors='replace')}")
