"""What happens between two optimizer steps: progress, checkpoints, stopping, and a loss that is no number."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tunery_api.names import METRICS
from tunery_api.reasons import FailureReason
from tunery_api.training import CheckpointSpec
from tunery_common.errors import TuneryError
from tunery_trainer.process.signals import StopSignal
from tunery_trainer.reporting.curve_file import TIME, TOKENS_PER_SECOND
from tunery_trainer.reporting.kept_curves import KeptCurves
from tunery_trainer.reporting.progress import ProgressReporter, say
from tunery_trainer.reporting.trackers import Tracker
from tunery_trainer.team.team import ALONE, Team

DEFAULT_CHECKPOINT_MINUTES: Final = 10
_SPEED_MEMORY: Final = 0.9
"""Share that the past keeps in the moving average of a step's duration."""

_log = logging.getLogger(__name__)


class ProgressCallback(TrainerCallback):  # type: ignore[misc]  # transformers is not typed for us
    """Tells step, epoch, speed, time left and metrics."""

    def __init__(self, reporter: ProgressReporter, tokens_seen: Callable[[], int]) -> None:
        self._reporter = reporter
        self._tokens_seen = tokens_seen
        self._last = (time.monotonic(), 0)
        self._seconds: float | None = None
        self._tokens: float | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock; a resumed run starts at its checkpoint's step."""
        self._last = (time.monotonic(), self._tokens_seen())
        self._reporter.step(state.global_step, state.max_steps, epoch=state.epoch)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Tell where training is, and how fast it was lately."""
        now, tokens = time.monotonic(), self._tokens_seen()
        seconds = now - self._last[0]
        self._seconds = _blend(self._seconds, seconds)
        self._tokens = _blend(self._tokens, (tokens - self._last[1]) / max(seconds, 1e-9))
        self._last = (now, tokens)
        # With what the step is logged with: told before it would stand beside the loss of the step before.
        if not control.should_log:
            self._tell(state)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Tell the newest metrics with their step; the clock leaves out the time that an evaluation took.

        The log keeps when that was, and how fast it was.
        """
        if state.log_history and logs and METRICS.keys() & logs.keys():
            state.log_history[-1][TIME] = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
            if "loss" in logs and self._tokens is not None:
                state.log_history[-1][TOKENS_PER_SECOND] = self._tokens
        with self._reporter.at_once():
            self._tell(state)
            known = {name: value for name, value in (logs or {}).items() if name in METRICS}
            self._reporter.metrics(known, state.global_step)
        if logs and "eval_loss" in logs:
            self._last = (time.monotonic(), self._tokens_seen())

    def _tell(self, state: TrainerState) -> None:
        left = None if self._seconds is None else (state.max_steps - state.global_step) * self._seconds
        self._reporter.step(
            state.global_step,
            state.max_steps,
            epoch=state.epoch,
            eta_seconds=left,
            tokens_per_second=self._tokens,
        )


class CurvesCallback(TrainerCallback):  # type: ignore[misc]
    """Hands on what was logged, and has it stored with each checkpoint. Add it before whatever ends a run."""

    def __init__(self, curves: KeptCurves) -> None:
        self._curves = curves

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take what a checkpoint has logged: what came after it is trained, and told, anew."""
        self._curves.log(state.log_history)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Take the log with its newest entry."""
        self._curves.log(state.log_history)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Store the curve beside the checkpoint."""
        self._curves.store()


class DivergenceCallback(TrainerCallback):  # type: ignore[misc]
    """Ends the run when the loss or the gradient is not a number: no later step can mend that."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Raise TuneryError(LossDiverged)."""
        for name in ("loss", "eval_loss"):
            value = (logs or {}).get(name)
            if value is not None and not math.isfinite(value):
                what = "training loss" if name == "loss" else "evaluation loss"
                raise TuneryError(FailureReason.LOSS_DIVERGED, f"the {what} became {value} at step {state.global_step}")


class EvaluationCallback(TrainerCallback):  # type: ignore[misc]
    """Evaluates after the chosen steps, each of them once.

    An evaluation that was put off, as the run was told to stop after that very step, is made up for as it goes on.
    """

    def __init__(self, after: frozenset[int], evaluate: Callable[[], object]) -> None:
        self._after = after
        self._evaluate = evaluate

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Evaluate what a checkpoint has brought, where that is due still."""
        step = state.global_step
        done = any("eval_loss" in entry and entry["step"] == step for entry in state.log_history)
        if step in self._after and not done:
            self._evaluate()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Set should_evaluate where it is due."""
        if state.global_step in self._after:
            control.should_evaluate = True


class CheckpointCallback(TrainerCallback):  # type: ignore[misc]
    """Asks for a checkpoint every so many steps or minutes and at the end, and hands each on once it is written."""

    def __init__(
        self, spec: CheckpointSpec, written: Callable[[Path, TrainerState, bool], None], team: Team = ALONE
    ) -> None:
        """`written` takes the folder, the state, and whether training is over; only the leader of `team` calls it."""
        self._team = team
        self._every_steps = spec.every_steps
        minutes = spec.every_minutes or (None if spec.every_steps else DEFAULT_CHECKPOINT_MINUTES)
        self._every_seconds = minutes * 60 if minutes else None
        self._written = written
        self._last = time.monotonic()
        self._over = False
        self._first = True

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Set should_save where a checkpoint is due."""
        self._over = state.global_step >= state.max_steps
        due = self._every_steps is not None and state.global_step % self._every_steps == 0
        if self._every_seconds is not None:
            # By one clock: those of several processes differ.
            late = self._team.leader and time.monotonic() - self._last >= self._every_seconds
            due = self._team.any(late)[0] or due
        if due or self._over:
            control.should_save = True

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Save when an evaluation has just ended the run."""
        if control.should_training_stop:
            self._over = control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Hand the folder on."""
        self._last = time.monotonic()
        # The first one waits for the digest of the base, which may still be read from a claim.
        with self._team.patiently() if self._first else nullcontext():
            self._hand_on(args, state)
        self._first = False

    def _hand_on(self, args: TrainingArguments, state: TrainerState) -> None:
        if self._team.leader:
            self._written(Path(args.output_dir) / f"checkpoint-{state.global_step}", state, self._over)


class StopCallback(TrainerCallback):  # type: ignore[misc]
    """Ends training after the step during which the process, or another of its team, was told to stop, with a
    checkpoint."""

    def __init__(self, stop: StopSignal, team: Team = ALONE) -> None:
        self._stop = stop
        self._team = team

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Save and stop, and put off an evaluation that is due, if told to stop."""
        if told_to_stop(self._stop, self._team):
            control.should_evaluate = False
            control.should_save = control.should_training_stop = True


def told_to_stop(stop: StopSignal, team: Team) -> bool:
    """Tell whether any process of the team was told to stop; from then on all of them have been.

    On a node of which none was, the log says which other one was.
    """
    if not team.any(stop.requested)[0]:
        return False

    nodes = team.nodes_with(stop.told)
    if not stop.requested:
        stop.hear()
        if nodes and team.node not in nodes:
            who = ", ".join(f"node {node}" for node in nodes)
            say(f"Told to stop: {who} {'was' if len(nodes) == 1 else 'were'} told to.")
    return True


class PatienceCallback(TrainerCallback):  # type: ignore[misc]
    """Ends training when so many evaluations in a row brought no better loss; it keeps no state of its own."""

    def __init__(self, patience: int, since: int = 0) -> None:
        """Evaluations up to step `since` do not count: another run's, which kept none of their weights."""
        self._patience = patience
        self._since = since

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stop if the best of the logged evaluations lies `patience` evaluations back."""
        measured = [entry for entry in state.log_history if "eval_loss" in entry and entry["step"] > self._since]
        losses = [entry["eval_loss"] for entry in measured]
        if losses and len(losses) - 1 - losses.index(min(losses)) >= self._patience:
            control.should_training_stop = True


class TrackingCallback(TrainerCallback):  # type: ignore[misc]  # transformers is not typed for us
    """Hands every logged metric to each tracker; one that fails is dropped, and training goes on."""

    def __init__(self, trackers: list[Tracker]) -> None:
        self._trackers = list(trackers)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Mapping[str, float] | None = None, **kwargs: Any
    ) -> None:
        """Send what is told of a run: losses, rewards, learning rate and gradient norm."""
        metrics = {name: float(value) for name, value in (logs or {}).items() if name in METRICS}
        for tracker in list(self._trackers) if metrics else ():
            try:
                tracker.log(metrics, state.global_step)
            except Exception as error:  # noqa: BLE001 (a tracking server that is down must not cost GPU hours)
                _log.warning("%s is not told any more: %s", type(tracker).__name__, error)
                self._trackers.remove(tracker)


def _blend(average: float | None, value: float) -> float:
    return value if average is None else _SPEED_MEMORY * average + (1 - _SPEED_MEMORY) * value
