"""The program: `python -m tunery_trainer preflight|train|merge|publish|report run.json`, `run`, `check`."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys

if __name__ == "__main__":
    for number in (signal.SIGTERM, signal.SIGINT):  # the imports below take a second, until others take them over
        signal.signal(number, lambda *_: os._exit(143))

    from tunery_trainer.process.environment import guard_output
    from tunery_trainer.process.supervise import die_with_parent, supervise, to_supervise

    task = to_supervise(sys.argv[1:])
    if task is not None:
        sys.exit(supervise(task, [sys.executable, "-m", "tunery_trainer", *sys.argv[1:]]))

    from tunery_trainer.cli import main

    die_with_parent()
    faulthandler.enable()
    guard_output()
    sys.exit(main(sys.argv[1:]))
