"""`make try`: the demo's LoRAJob on this machine, without a cluster.

Check the machine, install the trainer into try/.venv, and start tools.demo.local_job there. Until then only the
standard library is available.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final

from tools.cluster import disk
from tools.cluster.paths import cache_dir

ROOT: Final = Path(__file__).resolve().parents[3]
FOLDER: Final = ROOT / "try"
"""The environment, the manifest, and the folders in place of the buckets."""
VENV: Final = FOLDER / ".venv"
INTERRUPTED: Final = 130
"""The exit code of a program that SIGINT ended."""
SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
_PYTHONS: Final = ((3, 11), (3, 13))
_DISK_GB: Final = 10
"""6 for the packages, which uv's cache and the environment share, 0.4 for the model, and a reserve."""
_DISK_AGAIN_GB: Final = 1
LOCKED: Final = (
    *("crds/pyproject.toml", "trainer-image/common/pyproject.toml", "trainer-image/pyproject.toml"),
    "trainer-image/uv.lock",
)
"""The files that determine the packages."""
_TICK_SECONDS: Final = 1.0
LINE_SECONDS: Final = 10.0
"""Between two lines of a step where the output is no terminal."""
_BEGUN: Final = re.compile(r"Downloading (\S+) \(([\d.]+)([KMG])iB\)")
_ENDED: Final = re.compile(r"Downloaded (\S+)")
Steps = Callable[[], None]
_MIB: Final = {"K": 1 / 1024, "M": 1.0, "G": 1024.0}


class TryError(Exception):
    """A sentence on why `make try` cannot continue, and what to do."""


class Step:
    """A step with its title, what it does now, and its time: live on a terminal, else a line every ten seconds."""

    def __init__(self, title: str) -> None:
        self.note = ""
        self._began = time.monotonic()
        self._ended = threading.Event()
        self._live = sys.stdout.isatty()
        self._thread = threading.Thread(target=self._tick, daemon=True)
        print(f"▸ {title}", flush=True)

    def __enter__(self) -> Step:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()
        self._clear()
        if kind is None:
            print(f"  done in {self._text()}", flush=True)

    def _text(self) -> str:
        seconds = f"{time.monotonic() - self._began:.0f} s"
        return f"{seconds}: {self.note}" if self.note else seconds

    def _tick(self) -> None:
        while not self._ended.wait(_TICK_SECONDS if self._live else LINE_SECONDS):
            self._clear()
            text = f"  {self._text()}"
            if self._live:
                print(text[: shutil.get_terminal_size().columns - 1], end="", flush=True)
            else:
                print(text, flush=True)

    def _clear(self) -> None:
        if self._live:
            print("\r\x1b[K", end="", flush=True)


def main() -> int:
    """Check the machine, install the trainer and run the job; return the exit code."""
    return ended(_install)


def ended(steps: Steps) -> int:
    """Run steps and return the exit code; errors and interrupts are one sentence."""
    try:
        for number in SIGNALS:
            signal.signal(number, _interrupt)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        steps()
    except (TryError, disk.NoRoom, OSError) as error:
        print(f"make try: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted: everything that make try started has ended. Run it again to start over.", file=sys.stderr)
        return INTERRUPTED
    return 0


def _interrupt(*_: object) -> None:
    """Raise KeyboardInterrupt once: a second Ctrl-C must not stop the end of what was started."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _install() -> None:
    uv = Path(os.environ.get("UV") or shutil.which("uv") or "uv")
    installed = stamp()
    check_python(sys.version_info[:2])
    disk.require(_DISK_AGAIN_GB if installed.exists() else _DISK_GB, (ROOT, cache_dir()))
    if not installed.exists():
        with Step(f"Install the trainer into {VENV.relative_to(ROOT)}: 3 GB of packages, the first time only") as step:
            install_uv(uv)
            _install_trainer(uv, installed, step)
    # Ctrl-C waits until Python has started again.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    python = str(VENV / "bin" / "python")
    os.execv(python, [python, "-m", "tools.demo.local_job"])


def check_python(version: tuple[int, int]) -> None:
    """Raise TryError if this version of Python has no packages in the lock."""
    first, last = _PYTHONS
    if not first <= version <= last:
        raise TryError(
            f"python3 is Python {'.'.join(map(str, version))}, and the trainer needs 3.11, 3.12 or 3.13. "
            "Fix: install one of them and put it first in PATH as python3."
        )


def stamp() -> Path:
    """Return the file that says that the environment is complete and has the packages of the lock."""
    digest = hashlib.sha256(sys.version.encode())
    for file in LOCKED:
        digest.update((ROOT / file).read_bytes())
    return VENV / f".complete-{digest.hexdigest()[:12]}"


def install_uv(uv: Path) -> None:
    """Let make install uv, by its rule for that file."""
    if shutil.which(uv):
        return
    if importlib.util.find_spec("ensurepip") is None:
        raise TryError("Python's venv module is missing. Fix: install it (Debian, Ubuntu: apt install python3-venv).")
    command = [os.environ.get("MAKE", "make"), "--no-print-directory", "-C", str(ROOT), str(uv)]
    lines: list[str] = []
    if _run(command, {"PIP_RETRIES": "1", "PIP_DEFAULT_TIMEOUT": "20"}, lines.append):
        raise not_installed(lines)


def _install_trainer(uv: Path, installed: Path, step: Step) -> None:
    """Rebuild the environment: one that a killed uv left looks complete to uv."""
    shutil.rmtree(VENV, ignore_errors=True)
    # Triton compiles for GPUs.
    command = [str(uv), "sync", "--frozen", "--no-dev", "--group", "try", "--no-install-package", "triton"]
    command += ["--no-python-downloads", "--python", sys.executable, "--project", str(ROOT / "trainer-image")]
    downloads = Downloads()
    lines: list[str] = []

    def read(line: str) -> None:
        lines.append(line)
        downloads.read(line)
        step.note = str(downloads)

    if _run(command, {"UV_PROJECT_ENVIRONMENT": str(VENV)}, read):
        raise not_installed(lines)
    step.note = ""
    installed.touch()


class Downloads:
    """What uv has downloaded, by the lines that it prints."""

    def __init__(self) -> None:
        self._sizes: dict[str, float] = {}
        self._ended: set[str] = set()

    def read(self, line: str) -> None:
        """Take note of a line of uv."""
        if begun := _BEGUN.search(line):
            self._sizes[begun[1]] = float(begun[2]) * _MIB[begun[3]]
        elif ended := _ENDED.search(line):
            self._ended.add(ended[1])

    def __str__(self) -> str:
        done = sum(size for name, size in self._sizes.items() if name in self._ended)
        return f"{done:,.0f} of {sum(self._sizes.values()):,.0f} MiB downloaded" if self._sizes else ""


def _run(command: list[str], environment: dict[str, str], read: Callable[[str], None]) -> int:
    """Run a program, give each line of its output to `read`, and return its exit code; an exception ends it."""
    environment = os.environ | environment
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            for line in process.stdout or ():
                read(line)
            return process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise


def not_installed(lines: list[str]) -> TryError:
    """Return the error of pip or uv, whose last line has the cause; make adds one of its own."""
    told = [line.strip() for line in lines if line.strip() and not line.startswith("make")]
    why = told[-1] if told else "no reason was given"
    why = re.sub(r"^\W*(cause|caused by|error):\s*", "", why, flags=re.IGNORECASE).rstrip(".")
    return TryError(
        f"the packages could not be installed: {why[:200]}. Fix: check the network, its proxy and package index."
    )


if __name__ == "__main__":
    sys.exit(main())
