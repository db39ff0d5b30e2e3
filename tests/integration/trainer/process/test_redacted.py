"""No credential reaches stderr, be it by a failure, its trace, or a library's log."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from kit.story import environment

SAY = """
import logging, sys
from pathlib import Path
from tunery_api.redact import register_secret
from tunery_trainer.process.environment import guard_output, prepare_environment
from tunery_trainer.process.failures import explain, show
register_secret("s3cr3t-v4lue")
guard_output()
prepare_environment(Path(sys.argv[1]), 0)
try:
    raise RuntimeError("refused s3cr3t-v4lue at https://me:hunter22@store/x")
except RuntimeError as error:
    logging.getLogger("library").warning("again: %s", error, exc_info=True)
    show(explain(error), error)
"""

OWN_WAYS = """
import logging, sys, threading, warnings
from tunery_api.redact import register_secret
from tunery_trainer.process.environment import guard_output
register_secret("s3cr3t\\nv4lue")
guard_output()
def die():
    raise RuntimeError(b"Bearer s3cr3t\\nv4lue")
thread = threading.Thread(target=die)
thread.start()
thread.join()
print("half \\ud800 of a character")
print("a line with s3cr3t\\nv4lue\\tand a tab")
sys.stderr.writelines(["s3cr3t\\nv4lue", "\\n"])
warnings.warn("s3cr3t\\nv4lue")
library = logging.getLogger("library")
library.addHandler(logging.StreamHandler())
library.error("at %r", "s3cr3t\\nv4lue")
die()
"""


def test_stderr_is_redacted(tmp_path: Path) -> None:
    program = tmp_path / "say.py"
    program.write_text(SAY)
    done = subprocess.run(
        [sys.executable, program, tmp_path / "work"], env=environment(), capture_output=True, text=True, check=True
    )
    assert "s3cr3t" not in done.stderr
    assert "hunter22" not in done.stderr
    assert done.stderr.count("refused [redacted] at https://[redacted]@store/x") == 6, (
        "two of them lines of the program"
    )
    assert done.stderr.splitlines()[-2].startswith("InternalError: RuntimeError: refused [redacted]")


def test_what_libraries_write_in_their_own_ways_is_hidden() -> None:
    done = subprocess.run(
        [sys.executable, "-c", OWN_WAYS], env=environment(), capture_output=True, text=True, check=False
    )
    assert done.stdout == "half \\ud800 of a character\na line with [redacted]\tand a tab\n"
    assert "s3cr3t" not in done.stderr
    assert "v4lue" not in done.stderr
    assert done.stderr.count("RuntimeError: b'Bearer [redacted]'") == 2
    assert "UserWarning: [redacted]" in done.stderr
    assert "at '[redacted]'" in done.stderr
