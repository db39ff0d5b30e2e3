"""The middle of the story: the base model, its adapter, the loop with its checkpoints, and the evaluation."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from tunery_api.reasons import FailureReason
from tunery_api.status import CheckpointStatus, Phase
from tunery_trainer.adapter.attach import attach, published_rank, target_modules, trainable_parameters, training_hooks
from tunery_trainer.adapter.continue_from import continue_from
from tunery_trainer.adapter.methods.base import Batch, Start
from tunery_trainer.adapter.methods.lora_init import RELATIVE
from tunery_trainer.errors import TrainerError
from tunery_trainer.inputs.workspace import checkpoint_store, work_folder
from tunery_trainer.losses.answers import sequences_per_row
from tunery_trainer.losses.evaluation import Pass
from tunery_trainer.losses.objectives import Compared, objective_of
from tunery_trainer.model.collator import Collator
from tunery_trainer.model.language import auto_class
from tunery_trainer.model.load import dtype_of, load_base, load_config
from tunery_trainer.plan.session import Session
from tunery_trainer.process.signals import StopRequested, StopSignal
from tunery_trainer.reporting.progress import ProgressReporter
from tunery_trainer.reporting.status_parts import hyperparameters
from tunery_trainer.reporting.trackers import TrackingCallback, trackers
from tunery_trainer.resuming.kept import LOCAL_FOLDER
from tunery_trainer.resuming.memo import Memo, Split
from tunery_trainer.resuming.resume import Resumed, check_weights, resume
from tunery_trainer.settings.types import Resolved
from tunery_trainer.storage.checkpoints import CheckpointUploader, step_prefix
from tunery_trainer.training.best_weights import BestAdapter
from tunery_trainer.training.callbacks import (
    CheckpointCallback,
    DivergenceCallback,
    PatienceCallback,
    ProgressCallback,
    StopCallback,
)
from tunery_trainer.training.ordering import reached
from tunery_trainer.training.recovery import train_to_the_end, with_split
from tunery_trainer.training.reference import Scoring, TaskRows, task_rows, without_dropout
from tunery_trainer.training.trl_trainer import (
    AdapterTrainer,
    Compare,
    LoopParts,
    LoopSettings,
    load_trained,
    trained_state,
)

_CLOSE_SECONDS: Final = 600.0
_STOP_SECONDS: Final = 80.0
"""How long the last checkpoint may take to upload: at the end, and after a SIGTERM."""
_EVA_BATCHES: Final = 8

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fitted:
    """A trained model and what was measured on the way."""

    model: PeftModel
    resolved: Resolved
    """The settings as they ended up: with smaller passes than planned where memory ran out."""
    before: dict[str, float]
    """`loss` on the held-out rows before training, and a preference task's `reward_accuracy` and `reward_margin`."""
    after: dict[str, float]
    """The same of what is published."""
    loss: float
    """Training loss at the last logged step up to `step`."""
    history: list[dict[str, Any]]
    taken: int
    """Optimizer steps: fewer than planned where early stopping ended the run."""
    epochs: float
    """How often they passed the data."""
    step: int
    """The step whose weights are published: early stopping keeps the best ones."""
    rank: int | None
    target_modules: list[str]
    trainable_parameters: int
    device: str
    loader: str
    """The auto class that loads the base model."""
    memo: Memo | None = None
    """What the run knows of how it began; None where it was not resumed."""

    @property
    def base_eval_loss(self) -> float:
        """The loss on the held-out rows before training."""
        return self.before["loss"]

    @property
    def eval_loss(self) -> float:
        """The loss on the held-out rows of what is published."""
        return self.after["loss"]


@dataclass(frozen=True)
class _Course:
    """How training went, in this attempt and in those before it."""

    history: list[dict[str, Any]]
    """Of some steps only: a long run does not log each."""
    steps: int
    """Optimizer steps that were taken."""
    epochs: float
    """How often they passed the data; the last step of a pass may be of fewer rows than the others."""


@dataclass(frozen=True)
class _Ground:
    """What training starts from."""

    rows: TaskRows
    before: dict[str, float]
    """How the model does on the held-out rows."""


def fit(session: Session, stop: StopSignal, reporter: ProgressReporter) -> Fitted:
    """Load, adapt, train and evaluate; resumes from the newest complete checkpoint.

    Raises TrainerError(LossDiverged, GPUOutOfMemory, ...), and StopRequested after a SIGTERM.
    """
    folder = work_folder(session.run, LOCAL_FOLDER)
    resumed = resume(session, folder)
    base = load_base(session.model.folder, session.resolved, _device(session))
    if session.resolved.preference:
        without_dropout(base)
    model, ground = _adapt(session, base, resumed, reporter)
    reporter.metrics({"base_eval_loss": ground.before["loss"]})
    with _uploads(session, reporter) as uploader:
        trainer = _trainer(session, (model, ground), folder, resumed)
        best = _best(session, model, resumed)
        memory = _memory(session, ground, resumed)
        written = _writer(uploader, trainer, (memory, ground.rows))
        _add_callbacks(trainer, session, (stop, reporter, best), written)
        if resumed and resumed.is_finished(session.steps):
            load_trained(model, resumed.folder, training_hooks(model, session.resolved))
            reporter.step(resumed.step, session.steps)
            course = _course(resumed)
        else:
            course = _loop(trainer, session, (stop, reporter, uploader), resumed)
    session = session.with_resolved(with_split(session.resolved, trainer.split))
    fitted = _evaluated(session, model, (ground, course, best), reporter)
    return replace(fitted, memo=memory()) if resumed else fitted


def _device(session: Session) -> str:
    return "cuda:0" if session.on_gpu else "cpu"


def _memory(session: Session, ground: _Ground, resumed: Resumed | None) -> Callable[[], Memo]:
    """Return what tells, once it is asked for, what every checkpoint of the run remembers.

    That raises TrainerError(InvalidSpec) where the run was resumed on a base with other weights.
    """
    before, previous = resumed.memo if resumed else None, session.previous

    def memory() -> Memo:
        # Here and not before the first step: a GPU need not wait for the digest of a large base, and nothing is stored
        # or published before it was compared.
        origin = session.whole_origin()
        if resumed:
            check_weights(resumed, origin)
        return Memo(
            before=ground.before,
            finished=False,
            origin=origin,
            continued_from=previous.record if previous else before.continued_from if before else None,
            resumed_from=before.resumed_from if before else [],
        )

    return memory


def _course(resumed: Resumed) -> _Course:
    state = json.loads((resumed.folder / "trainer_state.json").read_text("utf-8"))
    return _Course(state["log_history"], state["global_step"], state["epoch"])


def _measure(session: Session, model: torch.nn.Module, rows: TaskRows, reporter: ProgressReporter) -> dict[str, float]:
    """Return how `model` does on the held-out rows; raises TrainerError(LossDiverged) when the loss is not a number."""
    reporter.phase(Phase.EVALUATING)
    found = rows.measure(model, objective_of(session.resolved), _pass(session))
    if not math.isfinite(found["loss"]):
        raise TrainerError(FailureReason.LOSS_DIVERGED, f"the loss on the held-out rows is {found['loss']}")
    return found


def _pass(session: Session, split: Split | None = None) -> Pass:
    """Return how rows go through the model; with `split` fewer at once, where memory ran out."""
    training = with_split(session.resolved, split).training
    return Pass(
        int(session.tokenizer.pad_token_id),
        dtype_of(training.precision),
        training.batch_size * training.max_length * sequences_per_row(session.resolved.task),
    )


def _adapt(
    session: Session, base: PreTrainedModel, resumed: Resumed | None, reporter: ProgressReporter
) -> tuple[PeftModel, _Ground]:
    """Return the model with its adapter, and what it was before training: the base, or a published adapter on it that
    is trained on."""
    start = _start(session, overwritten=resumed is not None or session.previous is not None)
    if session.previous:
        model = continue_from(base, session.resolved, start, session.previous.folder)
        return model, _ground(session, model, resumed, reporter)
    # Measured first: PiSSA and OLoRA change the base when they are put on it.
    ground = _ground(session, base, resumed, reporter)
    return attach(base, session.resolved, start), ground


def _ground(session: Session, model: torch.nn.Module, resumed: Resumed | None, reporter: ProgressReporter) -> _Ground:
    """Return the rows with what `model` says of them, and how it does; what a checkpoint knows is not asked again."""
    rows, objective = task_rows(session.data, session.resolved), objective_of(session.resolved)
    if isinstance(objective, Compared):
        if resumed:
            rows = rows.known(resumed.folder)
        if session.previous:
            rows = replace(rows, start=trained_state(model))
        rows = rows.scored(model, Scoring(objective, _pass(session), reporter.scored), _ahead(session))
    return _Ground(rows, resumed.memo.before if resumed else _measure(session, model, rows, reporter))


def _ahead(session: Session) -> list[int]:
    """Return the training rows that cannot wait for the step that takes them, as the adapter changes the base."""
    if session.resolved.adapter.init not in RELATIVE:
        return []
    return reached(session.data.train, session.resolved.training, session.steps)


def _start(session: Session, *, overwritten: bool) -> Start:
    collate = Collator(int(session.tokenizer.pad_token_id))
    rows = session.data.train.remove_columns([c for c in session.data.train.column_names if c == "seq_lengths"])
    size = session.resolved.training.batch_size
    count = min(len(rows), _EVA_BATCHES * size)
    batches: list[Batch] = [
        collate([rows[i] for i in range(at, min(at + size, count))]) for at in range(0, count, size)
    ]
    return Start(session.tokenizer, session.steps, batches, overwritten)


def _trainer(
    session: Session, trained: tuple[PeftModel, _Ground], folder: Path, resumed: Resumed | None
) -> AdapterTrainer:
    """Return the trainer, with the passes that an earlier attempt found to fit where it ran out of memory."""
    model, ground = trained
    evaluation, split = session.spec.evaluation, resumed.memo.split if resumed and resumed.own else None
    loop = LoopSettings(
        training=with_split(session.resolved, split).training,
        total_steps=session.steps,
        evaluate_every_steps=evaluation.every_steps,
        keep_checkpoints=session.spec.checkpoint.keep + 1,
        on_gpu=session.on_gpu,
    )
    parts = LoopParts(
        rows=ground.rows.train,
        tokenizer=session.tokenizer,
        folder=folder,
        held_out=lambda: ground.rows.measure(model, objective_of(session.resolved), _pass(session)),
        hooks=training_hooks(model, session.resolved),
        objective=objective_of(session.resolved),
        compared=_compared(session, model, ground.rows),
    )
    trainer = AdapterTrainer(model, loop, parts)
    trainer.split = split
    return trainer


def _compared(session: Session, model: PeftModel, rows: TaskRows) -> Compare | None:
    """Return what adds the reference to the batches of a step; None where the task has none."""
    objective = objective_of(session.resolved)
    if not isinstance(objective, Compared):
        return None
    return lambda batches, split: rows.compared(batches, model, Scoring(objective, _pass(session, split)))


def _best(session: Session, model: PeftModel, resumed: Resumed | None) -> BestAdapter | None:
    """Return what keeps the best weights where the job may stop early, with what a checkpoint knows of it."""
    if session.spec.evaluation.early_stopping_patience is None:
        return None
    best = BestAdapter(model, training_hooks(model, session.resolved))
    if resumed:
        best.load(resumed.folder, resumed.step)
    return best


def _add_callbacks(
    trainer: AdapterTrainer,
    session: Session,
    listeners: tuple[StopSignal, ProgressReporter, BestAdapter | None],
    written: Callable[[Path, Any, bool], None],
) -> None:
    stop, reporter, best = listeners
    trainer.add_callback(ProgressCallback(reporter, lambda: trainer.tokens_seen))
    trainer.add_callback(DivergenceCallback())
    patience = session.spec.evaluation.early_stopping_patience
    if best and patience is not None:
        trainer.add_callback(PatienceCallback(patience, best.since))
        trainer.add_callback(best)
    trainer.add_callback(CheckpointCallback(session.spec.checkpoint, written))
    trainer.add_callback(StopCallback(stop))


def _writer(
    uploader: CheckpointUploader | None, trainer: AdapterTrainer, kept: tuple[Callable[[], Memo], TaskRows]
) -> Callable[[Path, Any, bool], None]:
    """Return what is done with a checkpoint that was just written."""
    memory, rows = kept

    def written(folder: Path, state: Any, finished: bool) -> None:
        memory().model_copy(update={"finished": finished, "split": trainer.split}).write(folder)
        rows.store(folder)
        if uploader is not None:
            uploader.submit(folder, state.global_step)

    return written


@contextmanager
def _uploads(session: Session, reporter: ProgressReporter) -> Iterator[CheckpointUploader | None]:
    place = checkpoint_store(session.run)
    if place is None:
        yield None
        return
    scratch = Path(session.run.work_dir) / "uploads"
    uploader = CheckpointUploader(*place, scratch, session.spec.checkpoint.keep, reporter.checkpoint)
    try:
        yield uploader
    finally:
        uploader.close(_CLOSE_SECONDS)


def _loop(
    trainer: AdapterTrainer,
    session: Session,
    parts: tuple[StopSignal, ProgressReporter, CheckpointUploader | None],
    resumed: Resumed | None,
) -> _Course:
    """Train to the end; after a SIGTERM store the checkpoint and raise StopRequested."""
    stop, reporter, uploader = parts
    reporter.phase(Phase.TRAINING)
    parameters = {"method": session.resolved.method.value, **hyperparameters(session.resolved)}
    with stop.graceful(), trackers(session.run, parameters, work_folder(session.run, "result")) as opened:
        trainer.add_callback(TrackingCallback(opened))
        train_to_the_end(trainer, resumed.folder if resumed else None, session.resolved.method)
        if stop.requested:
            stored = uploader.close(_STOP_SECONDS) if uploader else False
            print("Stopped; the checkpoint is stored." if stored else "Stopped without a checkpoint.", flush=True)
            raise StopRequested(_newest_checkpoint(session, uploader, resumed))
    state = trainer.state
    return _Course(list(state.log_history), state.global_step, state.epoch)


def _evaluated(
    session: Session,
    model: PeftModel,
    trained: tuple[_Ground, _Course, BestAdapter | None],
    reporter: ProgressReporter,
) -> Fitted:
    ground, course, best = trained
    step = course.steps
    after = last = _measure(session, model, ground.rows, reporter)
    if best and best.loss < last["loss"]:
        best.put_back()
        step = best.step
        after = _measure(session, model, ground.rows, reporter)
    reporter.metrics({f"eval_{name}": value for name, value in after.items()})
    losses = [entry["loss"] for entry in course.history if "loss" in entry and entry["step"] <= step]
    at_end = {"step": course.steps, **{f"eval_{name}": value for name, value in last.items()}}
    return Fitted(
        model=model,
        resolved=session.resolved,
        before=ground.before,
        after=after,
        loss=float(losses[-1]) if losses else math.nan,
        history=[*course.history, at_end],
        taken=course.steps,
        epochs=course.epochs,
        step=step,
        rank=published_rank(model),
        target_modules=target_modules(model),
        trainable_parameters=trainable_parameters(model),
        device=torch.cuda.get_device_name(0) if session.on_gpu else "cpu",
        loader=auto_class(load_config(session.model.folder)).__name__,
    )


def _newest_checkpoint(
    session: Session, uploader: CheckpointUploader | None, resumed: Resumed | None
) -> CheckpointStatus | None:
    """Return the newest complete checkpoint that this attempt stored, else the one of its own that it started from."""
    place, started = checkpoint_store(session.run), resumed.step if resumed and resumed.own else None
    step = uploader.last_stored if uploader and uploader.last_stored is not None else started
    if place is None or step is None:
        return None
    store, prefix = place
    return CheckpointStatus(uri=store.uri(step_prefix(prefix, step)), step=step)
