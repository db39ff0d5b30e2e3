"""The story of a process that trains with the one which leads: its share of each step, and nothing beside it."""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from tunery_api.manifest import Lineage
from tunery_api.reasons import ExitCode
from tunery_api.runspec import Task
from tunery_common.errors import TuneryError
from tunery_common.termination import failed_message, write_termination
from tunery_trainer.process.device import require_gpu
from tunery_trainer.process.environment import be_quiet, go_offline
from tunery_trainer.process.failures import explain, show, to_failure
from tunery_trainer.process.signals import StopRequested, StopSignal
from tunery_trainer.reporting.kept_curves import KeptCurves
from tunery_trainer.reporting.progress import ProgressReporter
from tunery_trainer.reporting.trackers import Tracker
from tunery_trainer.team.crew import FAILURE
from tunery_trainer.team.place import own_place
from tunery_trainer.team.team import is_echo, join

if TYPE_CHECKING:
    from tunery_trainer.training.trained import Trained


def run_following(assignment: Path, folder: Path, stop: StopSignal) -> ExitCode:
    """Train with the others on what the leader has pickled; whatever fails is told in `folder`.

    Nothing of it is published: the leader has the same weights.
    """
    be_quiet()
    go_offline()
    try:
        _follow(assignment, folder, stop)
    except StopRequested:
        return ExitCode.TERMINATED
    except (Exception, SystemExit) as error:  # noqa: BLE001 (any failure becomes an exit code and a message)
        failure = explain(error)
        (folder / FAILURE).write_text(to_failure(failure).model_dump_json(exclude_none=True), "utf-8")
        return ExitCode.PEER_LOST if is_echo(error) else failure.exit_code
    return ExitCode.OK


def _follow(assignment: Path, folder: Path, stop: StopSignal) -> None:
    from tunery_trainer.training.assignment import Assignment, Observers
    from tunery_trainer.training.run import train_on

    job = pickle.loads(assignment.read_bytes())  # noqa: S301 (what the leader has just written)
    if job.plan.basis.on_gpu:
        require_gpu()
    team = join(own_place())
    with Path(os.devnull).open("w", encoding="utf-8") as nobody:
        reporter = ProgressReporter({}, nobody)
        observers = Observers(stop, reporter, KeptCurves(None, folder), None, _nothing)
        train_on(Assignment(job.plan, job.data, folder / "checkpoints", job.resumed, observers, _undescribed, team))
        reporter.close()


@contextmanager
def _nothing(_: Mapping[str, Any]) -> Iterator[list[Tracker]]:
    yield []


def _undescribed(_: Trained) -> Lineage:
    raise TypeError("only the leader publishes")


def leave(error: TuneryError) -> NoReturn:
    """End this process for the failure of another one, without unwinding: it may wait for that for ever."""
    show(error, error)
    write_termination(failed_message(Task.TRAIN, to_failure(error)))
    sys.stdout.flush()
    os._exit(error.exit_code)
