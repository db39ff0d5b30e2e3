"""How a trial's process ended, as the status of its LoRAJob would tell it in a cluster."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tunery_api.reasons import ExitCode, FailureReason
from tunery_api.runspec import Task
from tunery_api.status import ConditionType, Phase
from tunery_common.errors import TuneryError
from tunery_trainer.process.memory import CGROUP
from tunery_trainer.process.supervise import explain_end

KILL_COUNTERS: Final = (CGROUP / "memory.events", CGROUP / "memory" / "memory.oom_control", Path("/proc/vmstat"))
"""Where the kernel counts the processes that it has killed for memory, each in a line that begins with `oom_kill `."""
_KILLED: Final = frozenset({-signal.SIGKILL, ExitCode.KILLED})
STOPPED: Final = frozenset({-signal.SIGTERM, ExitCode.TERMINATED})
"""How a process ends that was told to."""


@dataclass(frozen=True)
class Ended:
    """A trial's process that is over."""

    code: int
    """As subprocess has it: negative for a signal."""
    words: Mapping[str, Any]
    """What it has told, by task."""
    said: Sequence[str]
    """The last lines of its log."""
    stopped: bool
    """Whether the sweep had told it to end."""
    checked: bool
    """Whether its preflight was left out, as another trial's says the same."""
    memory_kills: int | None
    """Processes that the kernel has killed for memory meanwhile; None: it does not tell."""

    @property
    def trained(self) -> bool:
        """Tell whether it came to train: its preflight had passed, or there was none."""
        passed = "failure" not in self.words.get(Task.PREFLIGHT, {"failure": None})
        return self.checked or passed or Task.TRAIN in self.words


def status_of(ended: Ended) -> dict[str, Any]:
    """Return the phase and what was reached, as the operator would read them from a pod and its last words."""
    reached = {**ended.words.get(Task.PREFLIGHT, {}), **ended.words.get(Task.TRAIN, {})}
    if ended.trained:
        reached["conditions"] = [{"type": ConditionType.PREFLIGHT.value, "status": "True"}]
    if ended.code == ExitCode.OK or ("adapter" in reached and "failure" not in reached):
        return {**reached, "phase": Phase.SUCCEEDED.value}
    if ended.stopped and ended.code in STOPPED:
        return {**reached, "phase": Phase.STOPPED.value}
    if "failure" not in reached:
        failure = _unexplained(ended).failure
        reached["failure"] = failure.model_dump(mode="json", by_alias=True, exclude_none=True)
    return {**reached, "phase": Phase.FAILED.value}


def _unexplained(ended: Ended) -> TuneryError:
    """Return why a process ended that has not said it."""
    if ended.code in _KILLED and (ended.memory_kills is None or ended.memory_kills > 0):
        text = "the trial's process was killed, as memory ran out"
        return TuneryError(FailureReason.OUT_OF_MEMORY, text)
    if ended.code in _KILLED:
        text = "the trial's process was killed (SIGKILL), and the kernel counts none that it killed for memory"
        return TuneryError(FailureReason.KILLED, text)
    if ended.code in STOPPED:
        return TuneryError(FailureReason.KILLED, "the trial's process was told to end, not by the sweep")
    return explain_end(ended.code, ended.said)


def memory_kills(counters: Sequence[Path] = ()) -> int | None:
    """Return how many processes the kernel has killed for memory so far, here or anywhere; None where none tells."""
    counted = [count for path in counters or KILL_COUNTERS if (count := _counted(path)) is not None]
    return sum(counted) if counted else None


def _counted(path: Path) -> int | None:
    try:
        lines = path.read_text("utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)
