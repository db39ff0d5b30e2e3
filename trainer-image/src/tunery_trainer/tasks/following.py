"""The story of a process that trains with the one which leads: its share of each step, and nothing beside it."""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, NoReturn

from tunery_api.failures import Subject
from tunery_api.manifest import Lineage
from tunery_api.reasons import ExitCode, FailureReason
from tunery_api.runspec import RunResult, Task
from tunery_common.errors import TuneryError
from tunery_common.termination import failed_message, write_termination
from tunery_trainer.crew.causes import Causes, is_echo
from tunery_trainer.crew.crew import FAILURE, Crew
from tunery_trainer.crew.nodes import Follow, Lead
from tunery_trainer.inputs.workspace import Workspace
from tunery_trainer.process.device import require_gpu
from tunery_trainer.process.environment import be_quiet, go_offline
from tunery_trainer.process.failures import explain, show, subject_of
from tunery_trainer.process.place import Place, own_place
from tunery_trainer.process.signals import StopRequested, StopSignal
from tunery_trainer.reporting.kept_curves import KeptCurves
from tunery_trainer.reporting.progress import ProgressReporter
from tunery_trainer.reporting.trackers import Tracker
from tunery_trainer.resuming.checkpoints import CLOSE_SECONDS, CheckpointUploader
from tunery_trainer.resuming.resume import Resumed
from tunery_trainer.tasks.ready import Ready

_TRAINED: Final = "training had ended, and node 0 was publishing the adapter"


class Following(NamedTuple):
    """What the other processes are given: the same plan, rows and checkpoint."""

    ready: Ready
    resumed: Resumed | None


def run_following(assignment: Path, folder: Path, stop: StopSignal) -> ExitCode:
    """Train with the others on what the leader has pickled; whatever fails is told in `folder`.

    Nothing of it is published: the leader has the same weights. A stop that all have agreed on is no failure.
    """
    be_quiet()
    go_offline()
    try:
        _follow(assignment, folder, stop)
    except StopRequested:
        # TERMINATED says that this process alone was told to end, while it could not tell the others.
        return ExitCode.OK
    except (Exception, SystemExit) as error:  # noqa: BLE001 (any failure becomes an exit code and a message)
        failure = explain(error)
        if failure.reason is FailureReason.INTERNAL_ERROR and not is_echo(error):
            show(failure, error)  # the trace, which the leader does not have
        (folder / FAILURE).write_text(failure.failure.model_dump_json(exclude_none=True), "utf-8")
        return ExitCode.PEER_LOST if is_echo(error) else failure.exit_code
    return ExitCode.OK


def _follow(assignment: Path, folder: Path, stop: StopSignal) -> None:
    job: Following = pickle.loads(assignment.read_bytes())  # noqa: S301 (what the leader has just written)
    if job.ready.plan.basis.on_gpu:
        require_gpu()
    _train_along(job, own_place(), folder, stop)


def _train_along(job: Following, place: Place, folder: Path, stop: StopSignal) -> None:
    """Train with the others, and tell nobody: the leader does."""
    from tunery_trainer.training.assignment import Assignment, Observers
    from tunery_trainer.training.run import train_on

    with Path(os.devnull).open("w", encoding="utf-8") as nobody:
        reporter = ProgressReporter({}, nobody)
        observers = Observers(stop, reporter, KeptCurves(None, folder), None, _nothing)
        train_on(Assignment(*job.ready, folder / "checkpoints", job.resumed, observers, _undescribed), place)
        reporter.close()


class Leading:
    """What the process that tells the story knows of the others."""

    def __init__(self, crew: Crew, lead: Lead | None) -> None:
        self._crew = crew
        self._lead = lead

    @property
    def place(self) -> Place:
        """Where this process stands among them."""
        return self._crew.place

    def begin(self, job: Following, decided: dict[str, Any]) -> None:
        """Let all others begin with this one; `decided` is what each node has to have come to alike."""
        if self._lead:
            self._lead.begin(decided, step=job.resumed.step if job.resumed else None)
        self._crew.start(job)

    @contextmanager
    def heard(self, uploader: CheckpointUploader | None) -> Iterator[None]:
        """Train in the body; what fails there for another process is that one's failure."""
        if self._lead:
            self._lead.progressed = lambda: uploader is not None and uploader.last_stored is not None
        if self.place.world == 1:
            yield
            return
        if uploader is not None:
            self._crew.causes.store = partial(uploader.close, CLOSE_SECONDS)
        with blamed(self._crew.causes):
            yield
        self._crew.causes.settle()  # what is left this one does alone


@contextmanager
def leading(work: Workspace, place: Place) -> Iterator[Leading]:
    """Lead the other processes of a run for the time of the body; without any where there is one device."""
    causes = Causes(partial(leave, subject=subject_of(work.run)))
    with ExitStack() as stack:
        lead = stack.enter_context(Lead(place, work.run.identity.uid, causes)) if place.nodes > 1 else None
        yield Leading(stack.enter_context(Crew(place, work.folder("crew"), causes)), lead)


class Assisting:
    """What the first process of another node knows of the others."""

    def __init__(self, crew: Crew, node: Follow, folder: Path) -> None:
        self._crew = crew
        self._node = node
        self._folder = folder

    def ready(self, decided: dict[str, Any]) -> int | None:
        """Wait until all begin; return the step that they go on from."""
        found: int | None = self._node.ready(decided)["step"]
        return found

    def follow(self, job: Following, stop: StopSignal) -> None:
        """Train along, and wait until the adapter is published: until then this node may be needed again."""
        with blamed(self._crew.causes):
            self._crew.start(job)
            _train_along(job, self._crew.place, self._folder, stop)
        stop.last_word = partial(write_termination, RunResult(doing=_TRAINED))
        self._node.wait()


@contextmanager
def following(work: Workspace, place: Place) -> Iterator[Assisting]:
    """Meet node 0, and lead the other processes of this one for the time of the body."""
    causes = Causes(partial(leave, subject=subject_of(work.run)))
    folder = work.folder("crew")
    with Follow(place, work.run.identity.uid, causes) as node, Crew(place, folder, causes) as crew:
        yield Assisting(crew, node, folder)


@contextmanager
def blamed(causes: Causes) -> Iterator[None]:
    """Raise what ended the body, or the failure of another process where that is but its echo.

    From then on nobody ends this process: all of them may have come to the same end, and this one stores what it has.
    """
    try:
        yield
    except Exception as error:
        cause = causes.of(error)
        causes.settle()
        if cause is error:
            raise
        raise cause from error


@contextmanager
def _nothing(_: Mapping[str, Any]) -> Iterator[list[Tracker]]:
    yield []


def _undescribed(_: object) -> Lineage:
    raise TypeError("only the leader publishes")


def leave(error: TuneryError, subject: Subject | None = None) -> NoReturn:
    """End this process for the failure of another one, without unwinding: it may wait for that for ever."""
    try:
        show(error, error, subject)
        write_termination(failed_message(Task.TRAIN, error.failure))
        sys.stdout.flush()
    finally:
        os._exit(error.exit_code)
