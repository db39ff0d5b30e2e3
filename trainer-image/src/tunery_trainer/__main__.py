"""The program: `python -m tunery_trainer preflight|train|merge|publish|report run.json`, `run`, `check`."""

from __future__ import annotations

import atexit
import faulthandler
import os
import signal
import sys
import threading
from contextlib import suppress
from typing import Final

from tunery_trainer import STOPPED_RUN_ENV

_LAST_SECONDS: Final = 10.0
"""How long threads of libraries have to end, once all is done: one may hang in an upload that was given up."""


def _end(*_: object) -> None:
    with suppress(OSError):  # nobody may read it any more
        os.write(2, b"Told to stop: ending at once; nothing was begun, and nothing is published.\n")
    os._exit(143)  # ExitCode.TERMINATED, which is not imported yet


def _leave(ended: list[int]) -> None:
    """End the process with the code in `ended`, if it came to one: to take the libraries apart takes seconds more."""
    for code in ended:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):  # nobody may read it any more
                stream.flush()
        os._exit(code)


if __name__ == "__main__":
    ended: list[int] = []
    atexit.register(_leave, ended)  # what is registered first is called last: all others have done their part then
    for number in (signal.SIGTERM, signal.SIGINT):  # the imports below take a second, until others take them over
        # What takes the place of a process that was told to stop (cli.py) heeds none until then.
        signal.signal(number, signal.SIG_IGN if STOPPED_RUN_ENV in os.environ else _end)

    from tunery_trainer.process.environment import guard_output
    from tunery_trainer.process.supervise import die_with_parent, supervise, to_supervise

    task = to_supervise(sys.argv[1:])
    if task is not None:
        sys.exit(supervise(task, [sys.executable, "-m", "tunery_trainer", *sys.argv[1:]]))

    from tunery_trainer.cli import main
    from tunery_trainer.process.signals import StopSignal

    die_with_parent()
    faulthandler.enable()
    guard_output()
    code = main(sys.argv[1:])
    StopSignal().disarm()  # what is done is done, however long the end takes
    ended.append(code)
    last = threading.Timer(_LAST_SECONDS, _leave, (ended,))
    last.daemon = True
    last.start()
    sys.exit(code)
