"""Start Python programs as forks of a process that has imported their libraries already.

To import the trainer's libraries takes ten seconds of CPU, a fork some hundredths. `ForkServer.popen` takes what
`subprocess.Popen` takes. The process that it returns is a child of the caller. It has a fork server of its own: what it
starts as `python -m ...` by `subprocess.Popen` is a fork, too, and its child.

Variables that libraries read as they are imported have the values of the server's environment. A test of such a
variable, or of a program's first moments, uses `subprocess.Popen`.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import gc
import importlib
import os
import pickle
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import IO, Any, Final

from tools.cluster.daemon import ENDS_WITH_PARENT

_MESSAGE: Final = 1 << 20
"""Bytes of a request at most."""
_FILES: Final = 16
"""Descriptors of a request at most."""
SERVER: Final = "fork-server"
"""The name of such a process; that of another one is its first argument."""
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
_SUBREAPER_LOCK: Final = threading.Lock()
"""Held while this process is a subreaper: one for all servers, else another thread would end that too early."""
_LIBC: Final = ctypes.CDLL(None)
_DIRECT: Final = subprocess.Popen
_SERVE: Final = "import sys; from kit.fork_server import serve; serve(int(sys.argv[1]), sys.argv[2:])"
_OPERATOR: Final = (
    "health",
    "client.event_recorder",
    "logs",
    "progress.auth",
    "progress.server",
    "controllers",
    "runtime.kopf_source",
    "runtime.leader_gate",
    "runtime.leaderelection",
    "runtime.watches",
)
_TESTS: Final = Path(__file__).parents[1]

_RELOADED: Final = {"kubernetes.config.kube_config"}
"""Modules that read a variable at import which each process has of its own: KUBECONFIG."""

Stream = int | IO[Any] | None


class Process:
    """A child of this process, with the surface of `subprocess.Popen`."""

    def __init__(self, pid: int, args: Sequence[str], out: IO[Any] | None, errors: IO[Any] | None) -> None:
        self.pid = pid
        self.args = args
        self.stdin = None
        self.stdout = out
        self.stderr = errors
        self.returncode: int | None = None
        self._lock = threading.Lock()
        self._handle = os.pidfd_open(pid)
        weakref.finalize(self, os.close, self._handle)

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal; None while the process runs."""
        with self._lock:
            if self.returncode is None and select.select([self._handle], [], [], 0)[0]:
                self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code; raises subprocess.TimeoutExpired after `timeout` seconds."""
        select.select([self._handle], [], [], timeout)
        code = self.poll()
        if code is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return code

    def communicate(self, input: None = None, timeout: float | None = None) -> tuple[Any, Any]:
        """Return what the process writes to its pipes until its end; raises subprocess.TimeoutExpired."""
        end = None if timeout is None else time.monotonic() + timeout
        pool = ThreadPoolExecutor(2)
        try:
            streams = (self.stdout, self.stderr)
            told = [pool.submit(each.read) if each and not each.closed else None for each in streams]
            found = [each and each.result(None if end is None else end - time.monotonic()) for each in told]
        except TimeoutError as error:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0) from error
        finally:
            pool.shutdown(wait=False)
        self.wait(None if end is None else max(0.0, end - time.monotonic()))
        return found[0], found[1]

    def send_signal(self, number: int) -> None:
        """Send a signal; do nothing where the process has ended."""
        if self.poll() is None:
            signal.pidfd_send_signal(self._handle, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        for stream in (self.stdout, self.stderr):
            if stream is not None:
                stream.close()
        self.wait()


class ForkServer:
    """A process that forks others for this one; thread-safe."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    @classmethod
    def start(cls, preload: Sequence[str], environment: Mapping[str, str]) -> ForkServer:
        """Start a server that imports the modules of `preload` in `environment`; it ends with this process."""
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        null = subprocess.DEVNULL
        with its:
            command = [sys.executable, "-c", _SERVE, str(its.fileno()), *preload]
            process = _DIRECT(command, env=environment, cwd=_TESTS, stdin=null, stdout=null, pass_fds=[its.fileno()])
        server = cls(ours)
        weakref.finalize(server, _end, ours, process)
        return server

    def popen(
        self,
        args: Sequence[str],
        *,
        stdin: Stream = None,
        stdout: Stream = None,
        stderr: Stream = None,
        text: bool = False,
        pass_fds: Sequence[int] = (),
        **options: Any,
    ) -> Process:
        """Start `[sys.executable, "-m" or "-c", ...]`, with ENDS_WITH_PARENT before it or without.

        Parameters as for `subprocess.Popen`, of which `options` may have env, cwd, start_new_session and preexec_fn, a
        function that can be pickled.
        """
        out, for_out = _stream(stdout, 1, text)
        errors, for_errors = _stream(stderr, 2, text)
        given = [_stream(stdin, 0, text)[1], for_out, for_out if stderr == subprocess.STDOUT else for_errors]
        request = {"env": dict(os.environ), "cwd": str(Path.cwd()), **_without_none(options), "args": list(args)}
        if tuple(args[: len(ENDS_WITH_PARENT)]) == ENDS_WITH_PARENT:
            request |= {"args": list(args[len(ENDS_WITH_PARENT) :]), "parent": os.getpid()}
        try:
            pid = self._fork(pickle.dumps(request), [*given, *pass_fds])
        finally:
            for number in {each for each, kind in zip(given, (stdin, stdout, stderr), strict=True) if kind in _OPENED}:
                os.close(number)
        return Process(pid, request["args"], out, errors)

    def run(
        self, args: Sequence[str], *, check: bool = False, timeout: float | None = None, **options: Any
    ) -> subprocess.CompletedProcess[Any]:
        """Do what `subprocess.run` does; capture stdout and stderr unless `options` redirect them."""
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with self.popen(args, **{**streams, **options}) as process:
            try:
                out, errors = process.communicate(timeout=timeout)
            except BaseException:
                process.kill()
                raise
        done = subprocess.CompletedProcess(args, process.wait(), out, errors)
        if check:
            done.check_returncode()
        return done

    def popen_class(self) -> type[subprocess.Popen[Any]]:
        """Return a class to put in place of `subprocess.Popen`: what is `python -m` is a fork, all else as always."""
        return type("Popen", (_Popen,), {"server": self})

    def _fork(self, request: bytes, files: Sequence[int]) -> int:
        """Return the id of a new child: the server's grandchild, which is this process's from its parent's end on."""
        with _SUBREAPER_LOCK:
            _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1)
            try:
                socket.send_fds(self._connection, [request], files)
                answer = self._connection.recv(_FILES)
            finally:
                _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 0)
        if not answer:
            raise RuntimeError("The fork server has ended: its last lines on stderr tell why")
        return int(answer)


def _end(connection: socket.socket, process: subprocess.Popen[bytes]) -> None:
    connection.close()
    process.wait()


_OPENED: Final = (subprocess.PIPE, subprocess.DEVNULL)
"""Kinds of streams of which `_stream` opens the child's end."""


def _stream(kind: Stream, inherited: int, text: bool) -> tuple[IO[Any] | None, int]:
    """Return this process's end of a stream, if it has one, and the descriptor for the child."""
    if kind == subprocess.PIPE:
        reading, writing = os.pipe()
        return open(reading, "r" if text else "rb"), writing
    if kind == subprocess.DEVNULL:
        return None, os.open(os.devnull, os.O_RDWR)
    if kind is None or kind == subprocess.STDOUT:
        return None, inherited
    return None, kind if isinstance(kind, int) else kind.fileno()


def _without_none(options: Mapping[str, Any]) -> dict[str, Any]:
    known = ("env", "cwd", "start_new_session", "preexec_fn")
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise TypeError(f"the fork server has no {', '.join(unknown)}")
    found = {name: value for name, value in options.items() if value is not None}
    for name, kind in (("env", dict), ("cwd", os.fspath)):
        if name in found:
            found[name] = kind(found[name])
    return found


class _Popen(subprocess.Popen[Any]):
    """What `ForkServer.popen_class` returns."""

    server: ForkServer

    def __new__(cls, args: Any, *rest: Any, **options: Any) -> Any:
        """Return a Process, which has no more to be initialised, or an instance of this class."""
        if not isinstance(args, str) and [*args][:2] == [sys.executable, "-m"]:
            return cls.server.popen(args, *rest, **options)
        return super().__new__(cls)


def serve(number: int, preload: Sequence[str]) -> None:
    """Import `preload`, then fork a process for each request on the socket `number`; run its program in that."""
    ended: list[int] = []
    atexit.register(_leave, ended)  # what is registered first is called last
    for name in preload:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # else the collector would copy each page that it looks at
    request, files = _next_request(socket.socket(fileno=number))
    try:
        _run(request, files)
        ended.append(0)
    except SystemExit as error:
        ended.append(error.code if isinstance(error.code, int) else int(error.code is not None))
        raise
    except Exception:
        ended.append(1)
        raise


def _leave(ended: list[int]) -> None:
    """End the process without unloading the libraries: most programs never imported them."""
    for code in ended:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)


def _next_request(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Answer requests; return one in the process that is forked for it, which has a fork server of its own by then."""
    _rename(SERVER)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the group of the process that this one works for
    while True:
        request, files, *_ = socket.recv_fds(connection, _MESSAGE, _FILES)
        if not request:
            os._exit(0)
        pid = _fork_orphan()
        if pid:
            connection.send(str(pid).encode())
        for each in files if pid else ():
            os.close(each)
        if not pid:
            break
    connection.close()
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if not os.fork():
        ours.close()
        for each in files:
            os.close(each)
        return _next_request(its)
    its.close()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    subprocess.Popen = ForkServer(ours).popen_class()  # type: ignore[misc]
    return pickle.loads(request), files


def _rename(name: str) -> None:
    """Set what /proc/PID/comm and ps show; the kernel cuts it after 15 bytes."""
    Path("/proc/self/comm").write_text(name)


def _fork_orphan() -> int:
    """Fork a process that is no child of this one; return its id, and 0 in it."""
    reading, writing = os.pipe()
    between = os.fork()
    if between:
        os.close(writing)
        os.waitpid(between, 0)
        with open(reading) as told:
            return int(told.read())
    between = os.getpid()
    orphan = os.fork()
    if orphan:
        os.write(writing, str(orphan).encode())
        os._exit(0)
    os.close(reading)
    os.close(writing)
    while os.getppid() == between:
        time.sleep(0.0005)
    return 0


def _run(request: dict[str, Any], files: list[int]) -> None:
    """Become the process that was asked for, and run its program as the interpreter does."""
    if parent := request.get("parent"):
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it has ended meanwhile
            os._exit(1)
    if request.get("start_new_session"):
        os.setsid()
    for number, file in enumerate(files[:3]):
        os.dup2(file, number)
        os.close(file)
    os.chdir(request["cwd"])
    before: Callable[[], None] | None = request.get("preexec_fn")
    if before is not None:
        before()
    os.environ.clear()
    os.environ.update(request["env"])
    for name in sys.modules.keys() & _RELOADED:
        importlib.reload(sys.modules[name])
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()  # as a new process has it; Python's own generator does so itself
    _, how, what, *arguments = request["args"]
    _rename(next(iter(arguments), what))
    more = request["env"].get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:1] = [request["cwd"] if how == "-m" else "", *(each for each in more if each and each not in sys.path)]
    sys.argv = [how, *arguments]
    if how == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
        return
    sys.modules["__main__"] = main = ModuleType("__main__")
    exec(compile(what, "<string>", "exec"), vars(main))


@functools.cache
def trainer_server() -> ForkServer:
    """Return this process's server of trainers; the first call starts it."""
    folder = tempfile.TemporaryDirectory(prefix="tunery-tests-")
    variables = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TUNERY_TESTS_FOLDER": folder.name}
    server = ForkServer.start(["kit.trainer_imports"], {**os.environ, **variables})
    weakref.finalize(server, folder.cleanup)
    return server


@functools.cache
def operator_server() -> ForkServer:
    """Return this process's server of operators; the first call starts it."""
    return ForkServer.start([f"tunery_operator.{name}" for name in _OPERATOR], os.environ)
