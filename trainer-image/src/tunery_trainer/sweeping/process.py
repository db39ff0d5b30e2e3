"""One trial as a process of its own: what kills it, as too little memory does, does not take the sweep along."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from tunery_trainer.process.supervise import dying_with
from tunery_trainer.process.trial_words import SWEEP_ENV, TRIAL_ENV

PROGRAM: Final = (sys.executable, "-m", "tunery_trainer")


class Files(NamedTuple):
    """What lies beside sweep.json of one trial."""

    manifest: Path
    words: Path
    """What it tells the sweep."""
    log: Path

    @classmethod
    def of(cls, folder: Path, number: int) -> Files:
        """Return those of a trial."""
        return cls(*(folder / f"{number:03d}.{ending}" for ending in ("yaml", "json", "log")))


class TrialProcess:
    """`python -m tunery_trainer run` for a trial. It ends with this process, however that ends."""

    def __init__(self, files: Files, work_dir: Path, sweep: str, lock: int) -> None:
        """Start it for the sweep of that name; `lock` is held as long as it lives."""
        files.words.unlink(missing_ok=True)
        self.told = False
        """Whether it was told to end."""
        with files.log.open("ab") as log:
            # A session of its own: a terminal's Ctrl-C reaches it once, by us.
            self._process = subprocess.Popen(
                [*PROGRAM, "run", str(files.manifest), "--work-dir", str(work_dir)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, TRIAL_ENV: str(files.words), SWEEP_ENV: sweep},
                start_new_session=True,
                pass_fds=(lock,),
                preexec_fn=partial(dying_with, os.getpid()),  # noqa: PLW1509 (one call of the kernel, of no lock)
            )

    def __enter__(self) -> TrialProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()  # nothing where it has ended
        self._process.wait()

    def wait(self, seconds: float) -> int | None:
        """Return its exit code as subprocess has it; None where it has not ended within so many seconds."""
        with suppress(subprocess.TimeoutExpired):
            return self._process.wait(seconds)
        return None

    def stop(self) -> None:
        """Tell it to end in its usual way, once: a second time would end it at once."""
        if not self.told:
            self.told = True
            self._process.send_signal(signal.SIGTERM)
