"""Watches a run: hands its log, its steps and its memory to who judges them, tells what was found, and may end it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tunery_api.findings import FindingStatus
from tunery_api.reasons import FailureReason
from tunery_api.remedies import recreate
from tunery_api.training import DiagnosisAction
from tunery_common.errors import TuneryError
from tunery_trainer.diagnosis.evaluations import Evaluations
from tunery_trainer.diagnosis.findings import Finding
from tunery_trainer.diagnosis.history import UNCHANGED
from tunery_trainer.diagnosis.judge import DIVERGED, Judge
from tunery_trainer.diagnosis.speed import Memory, Step
from tunery_trainer.process.memory import MemoryUse, container_memory
from tunery_trainer.reporting.progress import say
from tunery_trainer.training.frozen import levels
from tunery_trainer.training.trl_trainer import AdapterTrainer

_EVAL: Final = "eval_loss"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Watched:
    """What is watched, and who hears of it."""

    trainer: AdapterTrainer
    evaluations: Evaluations
    """Those of the run, which grow as it goes."""
    tell: Callable[[list[FindingStatus]], None]
    aloud: bool
    """Whether what is found goes to the log: of several processes the first one's alone."""
    action: DiagnosisAction
    on_gpu: bool
    memory_limit: int | None = None
    """What the container was given, in bytes, for where its cgroup does not say it; None: not known."""


class DiagnosisCallback(TrainerCallback):  # type: ignore[misc]  # transformers is not typed for us
    """Judges each entry of the log. Add it before whatever ends a run, so that what ends it is told, too."""

    def __init__(self, judge: Judge, watched: Watched) -> None:
        self._judge = judge
        self._watched = watched
        self._read = 0
        self._mark = (time.monotonic(), 0.0, 0)
        self._steps: list[tuple[Step, torch.Tensor | int, int]] = []
        self._told: list[FindingStatus] = []
        self._printed: set[str] = set()
        self._memory: Memory | None = None
        self._levels: torch.Tensor | None = None
        """Of the adapter as this attempt began; None: not begun, or it has changed since."""
        self._begun = self._broken = False

    @property
    def findings(self) -> list[FindingStatus]:
        """What holds now."""
        return self._judge.findings

    @property
    def memory(self) -> Memory | None:
        """The most that was in use; None: there is no limit, or nothing was trained."""
        return self._memory

    @property
    def padding(self) -> float | None:
        """Share of padding among what was trained on in this attempt, 0 to 1; None: nothing was."""
        return self._judge.pace.padding if self._watched.trainer.tokens_seen else None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Read what a checkpoint has logged, which stops no run: it may have other settings now."""
        self._safely(lambda: self._begin(state))
        self._begun = True
        self._restart()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Note what the step took; its padding is asked for when the log waits for the device anyway."""
        trainer, (began, waited, tokens) = self._watched.trainer, self._mark
        step = Step(time.monotonic() - began, trainer.waited - waited, trainer.tokens_seen - tokens, 0)
        self._steps.append((step, trainer.padding, state.global_step))
        self._restart()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Judge; raises TuneryError where a problem is to end the run."""
        self._safely(lambda: self._hear(logs or {}, state))
        self._restart()
        problem = None if self._broken else self._judge.problem
        if problem is not None and self._begun and self._watched.action is DiagnosisAction.STOP:
            raise _stopped(problem, state.global_step)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Leave the time of a checkpoint out."""
        self._restart()

    def read(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Judge what of a log is new."""
        for entry in history[self._read :]:
            self._judge.log(entry)
        self._read = len(history)

    def end(self, history: Sequence[Mapping[str, Any]], last: dict[str, Any]) -> list[FindingStatus] | None:
        """Judge the whole run with its `last` evaluation, and return what holds; None where judging has failed."""
        self._safely(lambda: self._end(history, last))
        return None if self._broken else self.findings

    def _begin(self, state: TrainerState) -> None:
        self.read(state.log_history)
        split = self._watched.trainer.split
        if split is not None:
            self._judge.halved(split.batch_size, split.reason, state.global_step)
        self._levels = levels(self._watched.trainer.model)
        self._say()

    def _hear(self, logs: Mapping[str, float], state: TrainerState) -> None:
        if _EVAL in logs:
            self._compare(state.log_history[-1])
        elif "loss" in logs:
            self._look_for_change(state.log_history[-1])
            self._judge_steps(state.global_step)
        self.read(state.log_history)
        self._say()

    def _end(self, history: Sequence[Mapping[str, Any]], last: dict[str, Any]) -> None:
        self.read(history)
        evaluations = self._judge.history.evaluations
        if not evaluations or evaluations[-1].step != last["step"]:
            self._compare(last)
            self._judge.log(last)
        self._judge.end(self._memory)
        self._say()

    def _safely(self, judge: Callable[[], None]) -> None:
        """Judge; where that fails, say so once, and train on."""
        if self._broken:
            return
        try:
            judge()
        except Exception as error:  # noqa: BLE001 (what a run says of itself must not end it)
            self._broken = True
            _log.warning("the run is not diagnosed any more: %s: %s", type(error).__name__, error)

    def _compare(self, entry: dict[str, Any]) -> None:
        """Add to an entry of the log how the evaluation differs from those before."""
        found = self._watched.evaluations.at(int(entry["step"]))
        if found is not None:
            entry.update(found.to_log())

    def _look_for_change(self, entry: dict[str, Any]) -> None:
        """Add to an entry of the log that the adapter is still what it was, until it is not."""
        if self._levels is None:
            return
        if torch.equal(levels(self._watched.trainer.model), self._levels):
            entry[UNCHANGED] = True
        else:
            self._levels = None

    def _judge_steps(self, number: int) -> None:
        for step, padding, at in self._steps:
            self._judge.step(Step(step.seconds, step.waited, step.tokens, int(padding)), at)
        self._steps = []
        found = _gpu_memory() if self._watched.on_gpu else container_memory(self._watched.memory_limit)
        if found is not None:
            used = max(found.used, self._memory.used if self._memory else 0)
            self._memory = Memory(used, found.available)
            self._judge.memory(self._memory, number)

    def _restart(self) -> None:
        """Count time from here on: evaluations and checkpoints are no part of a step."""
        trainer = self._watched.trainer
        self._mark = (time.monotonic(), trainer.waited, trainer.tokens_seen)

    def _say(self) -> None:
        """Tell what holds, where that has changed."""
        found = self.findings
        if found == self._told and self._printed:
            return
        for each in found:
            if self._watched.aloud and each.type not in self._printed:
                say(f"Finding    {each.severity} {each.type} at step {each.step}: {each.message}")
        self._printed = {each.type for each in found} | {""}
        self._told = found
        self._watched.tell(found)


def _gpu_memory() -> MemoryUse:
    """Return the most that tensors have taken of the GPU: what is reserved beside it is given back when it must be."""
    return MemoryUse(torch.cuda.max_memory_allocated(), torch.cuda.get_device_properties(0).total_memory)


def _stopped(problem: Finding, step: int) -> TuneryError:
    reason = FailureReason.LOSS_DIVERGED if problem.type in DIVERGED else FailureReason.NOT_IMPROVED
    message = f"stopped at step {step} by diagnosis.action, {problem.type}: {problem.message}"
    if not problem.advice:
        return TuneryError(reason, message)
    changes = recreate(f"Try {' or '.join(map(str, problem.advice))}", *(each.field for each in problem.advice))
    train_on = recreate("Set diagnosis.action: Warn to train on", "diagnosis.action")
    return TuneryError(reason, message, changes, train_on)
