"""Training from top to bottom: the base model, its adapter, the loop with its checkpoints, and the evaluation."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from tunery_api.status import CheckpointStatus, Phase
from tunery_api.training import PublishedWeights
from tunery_trainer.adapter.attach import attach, target_modules, trainable_parameters, training_hooks
from tunery_trainer.adapter.continue_from import attach_published
from tunery_trainer.adapter.methods.base import Batch, MethodContext
from tunery_trainer.adapter.methods.lora_init import RELATIVE
from tunery_trainer.adapter.save import published_rank
from tunery_trainer.diagnosis.paired import paired
from tunery_trainer.losses.objectives import Compared, objective_of
from tunery_trainer.model.collator import Collator
from tunery_trainer.model.language_part import auto_class
from tunery_trainer.model.load import load_base, load_config
from tunery_trainer.model.sharding import shard
from tunery_trainer.process.device import peak_bytes
from tunery_trainer.process.place import Place
from tunery_trainer.process.signals import StopRequested
from tunery_trainer.reporting.progress import say
from tunery_trainer.reporting.status_parts import hyperparameters
from tunery_trainer.resuming.checkpoints import CLOSE_SECONDS, CheckpointUploader, step_place
from tunery_trainer.resuming.memo import Memo
from tunery_trainer.resuming.resume import Resumed, check_weights
from tunery_trainer.settings.evaluation import evaluated_after
from tunery_trainer.settings.units import human_bytes
from tunery_trainer.team.team import Team, join
from tunery_trainer.training.answering import interview
from tunery_trainer.training.assignment import Assignment
from tunery_trainer.training.best_weights import BestAdapter
from tunery_trainer.training.callbacks import (
    CheckpointCallback,
    CurvesCallback,
    DivergenceCallback,
    PatienceCallback,
    ProgressCallback,
    StopCallback,
    TrackingCallback,
    told_to_stop,
)
from tunery_trainer.training.diagnosed import Diagnosis, Run, diagnose
from tunery_trainer.training.ground import Ground, ground_of, held_out, measured, pass_of, tell
from tunery_trainer.training.no_loss import check_start, looking_at_the_base
from tunery_trainer.training.recovery import train_to_the_end, with_split
from tunery_trainer.training.reference_scores import Scoring, TaskRows, without_dropout
from tunery_trainer.training.trained import Trained
from tunery_trainer.training.trl_config import LoopSettings
from tunery_trainer.training.trl_trainer import AdapterTrainer, Compare, LoopParts
from tunery_trainer.training.unfinished import keep_draft, measured_at
from tunery_trainer.training.weights import load_trained

_STOP_SECONDS: Final = 80.0
"""How long the last checkpoint may take to upload after a SIGTERM."""
_EVA_BATCHES: Final = 8
_ALONE: Final = Place()
_NOBODY_ELSE: Final = nullcontext()


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
class _Loop:
    """The trainer on its ground, and what is kept beside it."""

    trainer: AdapterTrainer
    model: PeftModel
    ground: Ground
    best: BestAdapter | None
    """None where the last weights are published."""
    diagnosis: Diagnosis


def train_on(job: Assignment, place: Place = _ALONE, together: AbstractContextManager[None] = _NOBODY_ELSE) -> Trained:
    """Load, adapt, train and evaluate, from `place` among those that train `job` together.

    In the body of `together` the others are needed; why a loss diverged is looked for after it, by the first of them.
    Goes on from the checkpoint of `job.resumed`. Raises TuneryError(LossDiverged, GPUOutOfMemory, ...), and
    StopRequested after a SIGTERM.
    """
    with looking_at_the_base(job) if place.rank == 0 else nullcontext(), together:
        job = replace(job, team=join(place, sharded=job.settings.training.sharded))
        check_start(job)
        return _train_on(job)


def _train_on(job: Assignment) -> Trained:
    say(f"Loading    the base model, {human_bytes(job.plan.basis.base.weight_bytes)} of weights")
    # A base that one GPU does not hold is put on them part by part.
    device = _device(job)
    base = load_base(job.plan.basis.base.folder, job.settings, "cpu" if job.team.sharded else device, device)
    if job.settings.preference:
        without_dropout(base)
    model, ground = _adapt(job, base)
    job.observers.reporter.metrics({"base_eval_loss": ground.before["loss"]})
    job.observers.curves.begin(ground.before["loss"])
    loop = _loop(job, model, ground)
    remembered = _memory(job, ground)
    _add_callbacks(job, loop, remembered)
    if job.resumed and job.resumed.is_finished(job.plan.steps):
        load_trained(model, job.resumed.folder, training_hooks(model, job.settings))
        job.observers.reporter.step(job.resumed.step, job.plan.steps)
        course = _course(job.resumed)
    else:
        course = _train(job, loop.trainer)
    if job.observers.uploader:
        # Before the evaluation, which a SIGTERM ends at once.
        with job.observers.stop.graceful():
            job.observers.uploader.close(CLOSE_SECONDS)
        job.observers.stop.obey()
    trained = _evaluated(_with_split(job, loop), loop, course)
    return replace(trained, memo=remembered()) if job.resumed else trained


def _with_split(job: Assignment, loop: _Loop) -> Assignment:
    return replace(job, plan=job.plan.with_settings(with_split(job.settings, loop.trainer.split)))


def _device(job: Assignment) -> str:
    return "cuda:0" if job.plan.basis.on_gpu else "cpu"


def _memory(job: Assignment, ground: Ground) -> Callable[[], Memo]:
    """Return what tells, once it is asked for, what every checkpoint of the run remembers.

    That raises TuneryError(InvalidSpec) where the run was resumed on a base with other weights.
    """
    before, source = job.resumed.memo if job.resumed else None, job.plan.basis.start_from

    def memory() -> Memo:
        # Here and not before the first step: a GPU need not wait for the digest of a large base, and nothing is stored
        # or published before it was compared.
        origin = job.plan.whole_origin()
        if job.resumed:
            check_weights(job.resumed, origin)
        return Memo(
            before=ground.before,
            finished=False,
            origin=origin,
            continued_from=source.record if source else before.continued_from if before else None,
            resumed_from=before.resumed_from if before else [],
        )

    return memory


def _course(resumed: Resumed) -> _Course:
    state = json.loads((resumed.folder / "trainer_state.json").read_text("utf-8"))
    return _Course(state["log_history"], state["global_step"], state["epoch"])


def _adapt(job: Assignment, base: PreTrainedModel) -> tuple[PeftModel, Ground]:
    """Return the model with its adapter, and what it was before training: the base, or a published adapter on it that
    is trained on."""
    source = job.plan.basis.start_from
    context = _context(job, overwritten=job.resumed is not None or source is not None)
    if source:
        model = _alike(job, attach_published(base, job.settings, context, source.folder))
        return model, ground_of(job, model)
    if job.team.sharded:
        model = _alike(job, attach(base, job.settings, context))
        # PiSSA and OLoRA have changed the base; with the adapter on it, it is what it was.
        with nullcontext() if job.settings.adapter.init in RELATIVE else model.disable_adapter():
            return model, ground_of(job, model)
    # Measured first: PiSSA and OLoRA change the base when they are put on it.
    ground = ground_of(job, base)
    return _alike(job, attach(base, job.settings, context)), ground


def _alike(job: Assignment, model: PeftModel) -> PeftModel:
    """Return the model as all processes have it: with the leader's adapter, and of a sharded base its own part."""
    job.team.share_from_leader(parameter.data for parameter in model.parameters() if parameter.requires_grad)
    if job.team.sharded:
        shard(model, job.team.nodes, _device(job))
    return model


def _context(job: Assignment, *, overwritten: bool) -> MethodContext:
    tokenizer = job.plan.basis.tokenizer
    collate = Collator(int(tokenizer.pad_token_id))
    rows = job.data.train.remove_columns([c for c in job.data.train.column_names if c == "seq_lengths"])
    size = job.settings.training.batch_size
    count = min(len(rows), _EVA_BATCHES * size)
    batches: list[Batch] = [
        collate([rows[i] for i in range(at, min(at + size, count))]) for at in range(0, count, size)
    ]
    return MethodContext(tokenizer, job.plan.steps, batches, overwritten)


def _loop(job: Assignment, model: PeftModel, ground: Ground) -> _Loop:
    """Return the loop, with the passes that an earlier attempt found to fit where it ran out of memory."""
    spec, plan, resumed = job.plan.basis.spec, job.plan, job.resumed
    split = resumed.memo.split if resumed and resumed.own else None
    settings = LoopSettings(
        training=with_split(job.settings, split).training,
        total_steps=plan.steps,
        keep_checkpoints=spec.checkpoint.keep + 1,
        on_gpu=plan.basis.on_gpu,
        evaluated_after=evaluated_after(job.settings.evaluation, plan.steps),
    )
    parts = LoopParts(
        rows=ground.rows.train,
        tokenizer=plan.basis.tokenizer,
        folder=job.folder,
        held_out=held_out(job, model, ground),
        hooks=training_hooks(model, job.settings),
        objective=objective_of(job.settings),
        compared=_compared(job, model, ground.rows),
        team=job.team,
    )
    trainer = AdapterTrainer(model, settings, parts)
    trainer.split = split
    run = Run(plan, ground, resumed, job.team)
    diagnosis = diagnose(run, model, trainer, job.observers.reporter)
    return _Loop(trainer, model, ground, _best(job, model), diagnosis)


def _compared(job: Assignment, model: PeftModel, rows: TaskRows) -> Compare | None:
    """Return what adds the reference to the batches of a step; None where the task has none."""
    objective = objective_of(job.settings)
    if not isinstance(objective, Compared):
        return None
    return lambda batches, split: rows.compared(batches, model, Scoring(objective, pass_of(job, split)))


def _best(job: Assignment, model: PeftModel) -> BestAdapter | None:
    """Return what keeps the best weights where they are published, with what a checkpoint knows of them."""
    if job.settings.evaluation.publish is PublishedWeights.LAST:
        return None
    best = BestAdapter(model, training_hooks(model, job.settings), job.team)
    if job.resumed:
        best.load(job.resumed.folder, job.resumed.step)
    return best


def _add_callbacks(job: Assignment, loop: _Loop, remembered: Callable[[], Memo]) -> None:
    trainer, best, spec = loop.trainer, loop.best, job.plan.basis.spec
    trainer.add_callback(ProgressCallback(job.observers.reporter, lambda: trainer.tokens_seen))
    trainer.add_callback(CurvesCallback(job.observers.curves))
    trainer.add_callback(loop.diagnosis.callback)
    trainer.add_callback(DivergenceCallback())
    patience = job.settings.evaluation.patience
    if patience is not None:
        trainer.add_callback(PatienceCallback(patience, best.since if best else 0))
    if best:
        trainer.add_callback(best)
    trainer.add_callback(CheckpointCallback(spec.checkpoint, _writer(job, loop, remembered), job.team))
    trainer.add_callback(StopCallback(job.observers.stop, job.team))


def _writer(job: Assignment, loop: _Loop, remembered: Callable[[], Memo]) -> Callable[[Path, Any, bool], None]:
    """Return what is done with a checkpoint that was just written."""
    uploader = job.observers.uploader

    def written(folder: Path, state: Any, finished: bool) -> None:
        memo = remembered()
        memo.model_copy(update={"finished": finished, "split": loop.trainer.split}).write(folder)
        loop.ground.rows.store(folder)
        loop.ground.evaluations.store(folder)
        _keep_draft(job, loop, folder, state, memo if job.resumed else None)
        if uploader is not None:
            uploader.submit(folder, state.global_step)

    return written


def _keep_draft(job: Assignment, loop: _Loop, folder: Path, state: Any, memo: Memo | None) -> None:
    """Let a checkpoint be published as it is: the weights that were measured as the best, else those of its step."""
    job = _with_split(job, loop)
    course = _Course(list(state.log_history), state.global_step, state.epoch)
    step = loop.best.step if loop.best and math.isfinite(loop.best.loss) else course.steps
    trained = _outcome(job, loop, course, step, measured_at(course.history, step))
    checks = loop.diagnosis.checks_so_far(loop.model, trained.after.get("loss", math.nan), trained.change)
    keep_draft(folder, trained, job.describe(replace(trained, memo=memo, checks=checks)))


def _train(job: Assignment, trainer: AdapterTrainer) -> _Course:
    """Train to the end; after a SIGTERM store the checkpoint and raise StopRequested."""
    observers, resumed = job.observers, job.resumed
    observers.reporter.phase(Phase.TRAINING)
    job.team.hurry()
    parameters = {"method": job.settings.method.value, **hyperparameters(job.settings)}
    with observers.stop.graceful(), observers.trackers(parameters) as opened:
        trainer.add_callback(TrackingCallback(opened))
        if not job.team.leader:
            # Each process draws its own dropout.
            torch.manual_seed(job.settings.training.seed + job.team.rank)
        train_to_the_end(trainer, resumed.folder if resumed else None, job.settings.method)
        if told_to_stop(observers.stop, job.team):
            elsewhere = job.team.node not in job.team.nodes_with(observers.stop.told)
            say(f"Stopped{last_stored(observers.uploader, job.team)}")
            raise StopRequested(_newest_checkpoint(job), elsewhere=elsewhere)
    state = trainer.state
    return _Course(list(state.log_history), state.global_step, state.epoch)


def last_stored(uploader: CheckpointUploader | None, team: Team) -> str:
    """Wait until this process has stored the last checkpoint; return what a sentence about a stop says of it.

    A collective of `team`, of which only the leader has an `uploader`, if anybody.
    """
    if team.any(uploader is not None)[0] and not team.leader:
        return "; node 0 stores the checkpoint."
    stored = uploader is not None and uploader.close(_STOP_SECONDS)
    return "; the checkpoint is stored." if stored else " without a checkpoint."


def _evaluated(job: Assignment, loop: _Loop, course: _Course) -> Trained:
    model, rows, best, evaluations = loop.model, loop.ground.rows, loop.best, loop.ground.evaluations
    step = course.steps
    # At the last step it was measured, unless a stop came between, or another attempt took that step.
    last = loop.ground.newest.get(step)
    if last is None:
        last = measured(job, model, rows)
        loop.ground.take(step, last)
        tell(job, evaluations)
    after = last
    at_end = {"step": step, **{f"eval_{name}": value for name, value in last.metrics.items()}}
    findings = loop.diagnosis.findings(course.history, at_end)
    if best and best.loss < last.loss:
        best.put_back()
        step = best.step
        after = measured(job, model, rows)
    job.observers.reporter.metrics({f"eval_{name}": value for name, value in after.metrics.items()}, step)
    asked = interview(job, rows.evaluation)
    answers = asked.compared(evaluations.said, asked.answers(model)) if asked else []
    history = course.history if _is_measured(course) else [*course.history, at_end]
    trained = _outcome(job, loop, replace(course, history=history), step, after.metrics)
    change = paired(after.rows, evaluations.before)
    checks = loop.diagnosis.checks(model, after.loss, change)
    return replace(trained, change=change, answers=answers, findings=findings, checks=checks)


def _outcome(job: Assignment, loop: _Loop, course: _Course, step: int, after: dict[str, float]) -> Trained:
    """Return what there is to publish: the weights of `step`, of which `after` was measured."""
    model, evaluations = loop.model, loop.ground.evaluations.done
    losses = [entry["loss"] for entry in course.history if "loss" in entry and entry["step"] <= step]
    return Trained(
        model=model,
        settings=job.settings,
        before=loop.ground.before,
        after=after,
        change=next((each.base for each in evaluations if each.step == step), None),
        evaluations=list(evaluations),
        answers=[],
        loss=float(losses[-1]) if losses else math.nan,
        history=course.history,
        taken=course.steps,
        epochs=course.epochs,
        step=step,
        rank=published_rank(model),
        target_modules=target_modules(model),
        trainable_parameters=trainable_parameters(model),
        peak_bytes=peak_bytes(),
        device=torch.cuda.get_device_name(0) if job.plan.basis.on_gpu else "cpu",
        loader=auto_class(load_config(job.plan.basis.base.folder)).__name__,
        findings=loop.diagnosis.callback.findings,
    )


def _is_measured(course: _Course) -> bool:
    return any("eval_loss" in entry and entry["step"] == course.steps for entry in course.history)


def _newest_checkpoint(job: Assignment) -> CheckpointStatus | None:
    """Return the newest complete checkpoint that this attempt stored, else the one of its own that it started from."""
    uploader, resumed = job.observers.uploader, job.resumed
    if uploader is None:
        return None
    step = resumed.step if resumed and resumed.own else None
    step = step if uploader.last_stored is None else uploader.last_stored
    return None if step is None else CheckpointStatus(uri=step_place(uploader.place, step).uri, step=step)
