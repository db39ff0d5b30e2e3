"""Programs that run to their end, with their output in the error when they fail."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tools.cluster.daemon import ENDS_WITH_PARENT


class CommandFailed(Exception):
    """A program ended with an error; the message holds the end of its output."""


def run(
    command: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: str | None = None,
    timeout: float = 600,
) -> str:
    """Run a program and return its standard output; `env` is added to this process's environment.

    The program ends when this process does.
    """
    words = [str(word) for word in command]
    if shutil.which(words[0]) is None:
        raise CommandFailed(f"{words[0]}: not found on this machine")
    try:
        done = subprocess.run(
            [*ENDS_WITH_PARENT, *words],
            env={**os.environ, **(env or {})},
            cwd=cwd,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise CommandFailed(f"{' '.join(words)}: not done after {timeout:.0f} s") from error
    if done.returncode:
        output = (done.stdout + done.stderr)[-4000:]
        raise CommandFailed(f"{' '.join(words)}: exit status {done.returncode}\n{output}")
    return done.stdout


def succeeds(command: Sequence[str | Path], *, timeout: float = 60) -> bool:
    """Tell whether a program ends without an error."""
    try:
        run(command, timeout=timeout)
    except CommandFailed:
        return False
    return True
