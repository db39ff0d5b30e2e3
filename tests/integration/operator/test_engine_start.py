"""The command of an engine's container, run by real shells: its end is the engine's own, whenever it comes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tunery_api.serving import ENGINE_SOCKET
from tunery_operator.manifests.server import build_server
from tunery_operator.planning.adapterserver import plan_server
from tunery_operator.planning.job import Platform

from kit.operator.servers import owner, server_spec
from kit.operator.settings import settings
from tools.cluster.waiting import wait_until

ENGINE = """\
import os, signal, socket, sys, time

def drain(*_):
    signal.signal(signal.SIGTERM, lambda *_: print("told twice", flush=True))
    server.close()
    print("drains", flush=True)
    time.sleep(0.5)
    print("drained", flush=True)
    sys.exit(int(os.environ["DRAINED"]))

print(*sys.argv[1:], os.getpid(), flush=True)
server = socket.socket(socket.AF_UNIX)
server.bind(os.environ["SOCKET"])
if "WAITS" in os.environ:
    signal.signal(signal.SIGTERM, lambda *_: print("waits for its own processes", flush=True))
    print("loads", flush=True)
if "DRAINED" in os.environ:
    signal.signal(signal.SIGTERM, drain)
    server.listen()
    print("listens", flush=True)
if "ENDS" in os.environ:
    sys.exit(int(os.environ["ENDS"]))
time.sleep(60)
"""
"""A stand-in for `vllm`: it has the name of its socket at once, listens once it has loaded, and finishes requests."""
SHELLS = [shell for shell in ("dash", "bash") if shutil.which(shell)]


class Container:
    """The shell as it runs in an engine's container, and what stands in its log."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self._log = log

    @property
    def log(self) -> list[str]:
        return self._log.read_text().splitlines()

    def wait_line(self, words: str) -> None:
        """Return as soon as a line begins so: nothing holds the engine's words back."""
        wait_until(lambda: any(line.startswith(words) for line in self.log), f"{words!r} in the log", 10)

    def tell(self, number: int = signal.SIGTERM) -> None:
        """Send the first process of the container a signal, as the kubelet does."""
        os.kill(self.first, number)

    @property
    def first(self) -> int:
        """The shell, as this machine counts processes; `unshare` stands before it where that is allowed."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[0]) if self.process.args[0] == "unshare" else self.process.pid  # type: ignore[index]

    def end(self) -> int:
        """Return the exit code, which has to come soon."""
        code = self.process.wait(10)
        return code if code >= 0 else 128 - code


def command() -> list[str]:
    """Return the command of the engine's container."""
    plan = plan_server(server_spec(), owner(), Platform(settings(), None))
    found: list[str] = build_server(plan).deployment["spec"]["template"]["spec"]["containers"][0]["command"]
    return found


@contextmanager
def started(folder: Path, shell: str, **environment: str) -> Iterator[Container]:
    """Start the container's command with a stand-in for vLLM, as process 1 where this machine lets us."""
    vllm = folder / "vllm"
    vllm.write_text(f"#!{sys.executable}\n{ENGINE}")
    vllm.chmod(0o755)
    first, *rest = command()
    assert first == "sh"
    with tempfile.TemporaryDirectory() as short:  # of a socket's name no more than a hundred characters are taken
        place = f"{short}/engine.sock"
        with _started(
            folder, [shell, *(word.replace(ENGINE_SOCKET, place) for word in rest)], environment | {"SOCKET": place}
        ) as it:
            yield it


@contextmanager
def _started(folder: Path, command: list[str], environment: dict[str, str]) -> Iterator[Container]:
    apart = ["unshare", "--user", "--map-current-user", "--pid", "--fork", "--kill-child"]
    allowed = subprocess.run([*apart, "true"], check=False, capture_output=True).returncode == 0
    words = [*(apart if allowed else []), *command]
    with (folder / "log").open("wb") as log:
        variables = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"} | environment
        process = subprocess.Popen(words, env=variables, stdout=log, stderr=log)
    try:
        yield Container(process, folder / "log")
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("code", [0, 1, 3, 127])
def test_an_engine_that_ends_by_itself_ends_its_container_with_its_own_code(
    tmp_path: Path, shell: str, code: int
) -> None:
    with started(tmp_path, shell, ENDS=str(code)) as container:
        assert container.end() == code
        assert container.log[0].startswith("serve /model --uds=")


@pytest.mark.parametrize("shell", SHELLS)
def test_an_engine_that_still_loads_ends_as_soon_as_it_is_told(tmp_path: Path, shell: str) -> None:
    with started(tmp_path, shell) as container:
        container.wait_line("serve /model")
        began = time.monotonic()
        container.tell()
        assert container.end() == 128 + signal.SIGKILL
        assert time.monotonic() - began < 5


@pytest.mark.parametrize("shell", SHELLS)
def test_an_engine_that_loads_and_would_wait_for_its_own_processes_has_nothing_to_finish(
    tmp_path: Path, shell: str
) -> None:
    """vLLM's first process has a handler by then, which gives the others as long as requests would get."""
    with started(tmp_path, shell, WAITS="1") as container:
        container.wait_line("loads")
        container.tell()
        assert container.end() == 128 + signal.SIGKILL
        assert "waits for its own processes" not in container.log


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("code", [0, 5])
def test_an_engine_that_finishes_its_requests_is_waited_for(tmp_path: Path, shell: str, code: int) -> None:
    with started(tmp_path, shell, DRAINED=str(code)) as container:
        container.wait_line("listens")
        container.tell()
        container.wait_line("drains")
        assert container.process.poll() is None, "it has requests left"
        container.tell()
        assert container.end() == code
        assert container.log[-1] == "drained"
        assert "told twice" in container.log


@pytest.mark.parametrize("shell", SHELLS)
def test_an_engine_that_is_killed_ends_its_container_with_137(tmp_path: Path, shell: str) -> None:
    with started(tmp_path, shell) as container:
        container.wait_line("serve /model")
        children = Path(f"/proc/{container.first}/task/{container.first}/children").read_text().split()
        assert len(children) == 1, "the engine is the shell's own child, with nothing between them"
        os.kill(int(children[0]), signal.SIGKILL)
        assert container.end() == 128 + signal.SIGKILL


@pytest.mark.parametrize("shell", SHELLS)
def test_where_there_is_no_engine_the_container_says_so(tmp_path: Path, shell: str) -> None:
    found, nowhere = shutil.which(shell), {"PATH": str(tmp_path)}
    # `rm` is where the shell is.
    (tmp_path / "rm").symlink_to(str(shutil.which("rm")))
    process = subprocess.run([str(found), *command()[1:]], env=nowhere, capture_output=True, check=False)
    assert process.returncode == 127
    assert b"vllm" in process.stderr
