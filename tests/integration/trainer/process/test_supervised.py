"""Native code that ends the process has its last words in the termination message, with the reason they tell."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tunery_api.reasons import ExitCode
from tunery_api.runspec import Task
from tunery_trainer.process.supervise import explain_end, to_supervise

PARENT = "import sys; from tunery_trainer.process.supervise import supervise; from tunery_api.runspec import Task; "
_TGKILL = 234 if platform.machine() == "x86_64" else 131
BITSANDBYTES = """
import ctypes, glob, os, torch, bitsandbytes
found = glob.glob(os.path.join(os.path.dirname(bitsandbytes.__file__), "libbitsandbytes_cuda1*.so"))
library = ctypes.CDLL(max(found))
nothing, size = ctypes.c_void_p(0), ctypes.c_int(64)
library.cquantize_blockwise_fp32_nf4(nothing, nothing, nothing, nothing, size, size)
"""


def supervised(folder: Path, child: str, task: str = "TRAIN") -> subprocess.Popen[str]:
    """Start a supervisor of `python -c child`."""
    code = f"{PARENT}sys.exit(supervise(Task.{task}, [sys.executable, '-c', sys.argv[1]]))"
    return subprocess.Popen(
        [sys.executable, "-c", code, child],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TUNERY_TERMINATION_PATH": str(folder / "last"), "CUDA_VISIBLE_DEVICES": ""},
    )


def end(folder: Path, child: str, task: str = "TRAIN") -> tuple[int, dict[str, Any], str]:
    """Return exit code, termination message and stderr."""
    process = supervised(folder, child, task)
    errors = process.communicate(timeout=120)[1]
    last = folder / "last"
    return process.returncode, json.loads(last.read_text()) if last.exists() and last.stat().st_size else {}, errors


@pytest.mark.slow
def test_bitsandbytes_own_exit_is_told_with_its_reason(tmp_path: Path) -> None:
    code, said, errors = end(tmp_path, BITSANDBYTES)
    assert said["failure"]["reason"] == "GPUUnavailable"
    assert "Error CUDA driver version is insufficient" in said["failure"]["message"]
    assert code == ExitCode.USER_ERROR
    assert errors.rstrip().splitlines()[-1].startswith("GPUUnavailable: the GPU cannot be used: Error CUDA driver")


@pytest.mark.parametrize(
    ("last", "reason"),
    [
        ("Error out of memory at line 74 in file /src/csrc/ops.cu", "GPUOutOfMemory"),
        ("Error an illegal memory access was encountered at line 74 in file /src/csrc/ops.cu", "GPUFault"),
        ("Error no kernel image is available for execution on the device at line 62 in file /x.cu", "GPUUnavailable"),
        ("CUBLAS ERROR: Status 13", "GPUFault"),
        ("CUBLAS ERROR: Status 3", "GPUOutOfMemory"),
        ("terminate called after throwing an instance of 'std::bad_alloc'", "InternalError"),
    ],
)
def test_the_last_lines_tell_the_reason(last: str, reason: str) -> None:
    assert explain_end(1, ["Training  step 3/10", last, ""]).reason == reason


def test_a_crash_is_an_error_of_ours_with_the_signal_and_the_trace(tmp_path: Path) -> None:
    code, said, errors = end(tmp_path, "import faulthandler, ctypes; faulthandler.enable(); ctypes.string_at(0)")
    assert code == ExitCode.BUG
    assert said["failure"]["reason"] == "InternalError"
    assert said["failure"]["message"].startswith("native code failed: the process was ended by SIGSEGV: Fatal Python")
    assert 'File "<string>", line 1' in errors


def test_a_long_trace_does_not_hide_what_happened() -> None:
    lines = ["Fatal Python error: Segmentation fault", *['  File "x.py", line 1 in f'] * 80, "Extension modules: numpy"]
    said = explain_end(-11, lines).message
    assert said == "native code failed: the process was ended by SIGSEGV: Fatal Python error: Segmentation fault"


def test_preflights_message_is_of_its_own_kind(tmp_path: Path) -> None:
    code, said, _ = end(tmp_path, "import ctypes; ctypes.CDLL(None).exit(3)", "PREFLIGHT")
    assert (code, said["failure"]["message"]) == (1, "native code failed: the process ended with exit code 3")


@pytest.mark.parametrize(
    ("code", "word"), [(0, None), (143, None), (0, "said"), (1, "said"), (64, "said"), (75, "said"), (143, "said")]
)
def test_an_end_of_pythons_stays_as_it_is(tmp_path: Path, code: int, word: str | None) -> None:
    (tmp_path / "last").write_text("of an earlier process")
    write = f"open({str(tmp_path / 'last')!r}, 'w').write('\"said\"'); " if word else ""
    found, said, errors = end(tmp_path, f"import sys; {write}sys.exit({code})")
    assert (found, said, errors) == (code, word or {}, "")


def test_a_kill_by_the_kernel_is_left_to_the_kubelet_to_tell(tmp_path: Path) -> None:
    assert end(tmp_path, "import os; os.kill(os.getpid(), 9)")[:2] == (ExitCode.KILLED, {})


@pytest.mark.parametrize("threads", [1, 2], ids=["main thread", "another thread"])
def test_signals_are_passed_on_whichever_thread_the_kernel_gives_them_to(tmp_path: Path, threads: int) -> None:
    child = (
        "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(7)); print('up', flush=True); time.sleep(60)"
    )
    with supervised(tmp_path, child) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        while len(found := os.listdir(f"/proc/{process.pid}/task")) < threads:
            time.sleep(0.01)
        others = {int(thread) for thread in found} - {process.pid}
        send_to_thread(process.pid, others.pop() if threads > 1 else process.pid)
        process.communicate(timeout=30)
        assert process.returncode == ExitCode.BUG, "7 is no code of ours"
    assert "exit code 7" in (tmp_path / "last").read_text()


def send_to_thread(process: int, thread: int) -> None:
    assert ctypes.CDLL(None).syscall(_TGKILL, process, thread, signal.SIGTERM) == 0


def test_the_child_dies_with_its_parent(tmp_path: Path) -> None:
    code = "from tunery_trainer.process.supervise import die_with_parent; die_with_parent(); "
    process = supervised(tmp_path, f"{code}import os, time; print(os.getpid(), flush=True); time.sleep(60)")
    assert process.stdout is not None
    child = int(process.stdout.readline())
    process.kill()
    process.wait()
    for _ in range(100):
        if not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text().split()[2]:
            return
        time.sleep(0.1)
    pytest.fail("the child lives on")


def test_only_the_operators_tasks_have_a_supervisor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TUNERY_SUPERVISED", raising=False)
    assert to_supervise(["train", "run.json"]) is Task.TRAIN
    assert to_supervise(["run", "lorajob.yaml"]) is None
    assert to_supervise([]) is None
    monkeypatch.setenv("TUNERY_SUPERVISED", "1")
    assert to_supervise(["train", "run.json"]) is None
