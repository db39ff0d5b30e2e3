"""The story of a training run, from top to bottom: download, train, evaluate, publish, read back."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from tunery_api.lorajob import LoRAJobSpec
from tunery_api.manifest import EvaluationRecord, Lineage, SourceRecord
from tunery_api.methods import TrainingTask
from tunery_api.reasons import FailureReason
from tunery_api.runspec import RunResult, RunSpec
from tunery_api.status import Phase
from tunery_common.errors import TuneryError
from tunery_common.storage.publisher import Published, published_before
from tunery_trainer.data.notebook import Notebook
from tunery_trainer.diagnosis.answers import answer_metrics, write_answers
from tunery_trainer.inputs.workspace import Workspace, check_secrets
from tunery_trainer.process.device import device_words
from tunery_trainer.process.place import Place
from tunery_trainer.process.signals import StopSignal
from tunery_trainer.reporting.kept_curves import KeptCurves
from tunery_trainer.reporting.progress import ProgressReporter
from tunery_trainer.reporting.result import result_of
from tunery_trainer.reporting.status_parts import (
    dataset_status,
    devices_status,
    hyperparameters,
    library_versions,
    quantization_record,
    resolved_status,
)
from tunery_trainer.reporting.trackers import Tracked, trackers
from tunery_trainer.resuming.checkpoints import CLOSE_SECONDS, CheckpointUploader
from tunery_trainer.resuming.kept import LOCAL_FOLDER, settle_checkpoints
from tunery_trainer.resuming.may_resume import check_start
from tunery_trainer.resuming.resume import Resumed, resume, with_resumed
from tunery_trainer.tasks.card import write_card
from tunery_trainer.tasks.curves import fetch_runs, named_curves
from tunery_trainer.tasks.data_report import (
    add_report,
    forget_report,
    name_report,
    notebook_of,
    say_where_it_lies,
    write_report,
)
from tunery_trainer.tasks.devices import place_for
from tunery_trainer.tasks.following import Following, Leading, following, leading
from tunery_trainer.tasks.frame import output_target, probe_places, with_progress
from tunery_trainer.tasks.patience import publish_patiently
from tunery_trainer.tasks.ready import Ready, decided, gather
from tunery_trainer.tasks.rejected import reject, with_verdict

if TYPE_CHECKING:
    from tunery_trainer.training.trained import Trained

_MOST: Final = 1000
"""Evaluations that a manifest tells of."""


def run_train(run: RunSpec, stop: StopSignal) -> RunResult:
    """Train and publish the adapter that `run` asks for, then remove its checkpoints.

    A rerun resumes from the newest complete checkpoint, and succeeds at once if this very run published already; what
    was published of it as it was stopped gives way.
    Raises TuneryError, and StopRequested after a SIGTERM once the checkpoint is stored.
    """
    work = Workspace(run)
    place = place_for(work)
    if place.node:
        return _assist(work, place, stop)
    return with_progress(partial(_train, work, place, stop))


def _train(work: Workspace, place: Place, stop: StopSignal, reporter: ProgressReporter) -> RunResult:
    check_secrets(work)
    published = published_before(output_target(work, math.inf))
    if published is None:
        with leading(work, place) as crew:
            published = _train_and_publish(work, crew, stop, reporter)
    else:
        print("The same manifest and data are already published. Nothing is trained.", flush=True)
    stop.heeded()
    stop.hint = " What was asked for is published."
    forget_report(work)
    say_where_it_lies(published)
    kept = settle_checkpoints(work)
    if kept is None:
        reporter.checkpoints_removed()
    return result_of(published, kept)


def _train_and_publish(work: Workspace, crew: Leading, stop: StopSignal, reporter: ProgressReporter) -> Published:
    probe_places(work)
    reporter.phase(Phase.STARTING)
    notebook = notebook_of(work)
    try:
        ready = gather(work, crew.place, notebook, reporter)
        write_report(work, notebook)
    except TuneryError as error:
        name_report(work, notebook, error, RunResult())
        raise
    with named_curves(work, reporter) as curves:
        trained = _train_on(work, ready, _Watchers(stop, reporter, curves), crew)
        curves.log(trained.history)
        lineage = with_verdict(_lineage(work.run, ready, trained), work.lora_job.evaluation.min_improvement)
        reporter.phase(Phase.UPLOADING)
        folder = _write_result(work, ready, trained, lineage)
        add_report(work, folder)
        if not lineage.rejected:
            return publish_patiently(folder, output_target(work, math.inf), lineage)
    raise reject(work, folder, lineage)


class _Watchers(NamedTuple):
    """Who may end the run, who is told how far it is, and who keeps what it has logged."""

    stop: StopSignal
    reporter: ProgressReporter
    curves: KeptCurves


def _train_on(work: Workspace, ready: Ready, watchers: _Watchers, crew: Leading) -> Trained:
    from tunery_trainer.training.assignment import Assignment, Observers
    from tunery_trainer.training.run import train_on

    folder, spec = work.folder(LOCAL_FOLDER), ready.plan.basis.spec
    resumed, source = resume(work, ready.plan.origin, folder), ready.plan.basis.start_from
    if resumed:
        check_start(resumed.memo.continued_from, source.record if source else None)
    if resumed and resumed.own and spec.tracking:
        fetch_runs(work)
    goes_on_after = resumed.step if resumed else 0
    tracked = Tracked(spec.tracking, work.run.identity, work.credentials, work.result, goes_on_after)
    crew.begin(Following(ready, resumed), decided(ready))
    with _uploads(work, spec, watchers.reporter) as uploader:
        observers = Observers(watchers.stop, watchers.reporter, watchers.curves, uploader, partial(trackers, tracked))
        describe = partial(_lineage, work.run, ready)
        job = Assignment(ready.plan, ready.data, folder, resumed, observers, describe)
        return train_on(job, crew.place, crew.heard(uploader))


def _assist(work: Workspace, place: Place, stop: StopSignal) -> RunResult:
    """Train on another node than the first one, which publishes."""
    check_secrets(work)
    reporter = ProgressReporter({})
    with following(work, place) as crew:
        ready = gather(work, place, Notebook(work.folder("notebook")), reporter)
        step = crew.ready(decided(ready))
        resumed = _resume_at(work, ready, step) if step is not None else None
        crew.follow(Following(ready, resumed), stop)
    return RunResult()


def _resume_at(work: Workspace, ready: Ready, step: int) -> Resumed:
    """Return the checkpoint that node 0 goes on from."""
    found = resume(work, ready.plan.origin, work.folder(LOCAL_FOLDER), step)
    if found is None or found.step != step:
        text = f"node 0 goes on from the checkpoint of step {step}, and an intact one is not found here"
        raise TuneryError(FailureReason.STORAGE_UNAVAILABLE, text)
    return found


@contextmanager
def _uploads(work: Workspace, spec: LoRAJobSpec, reporter: ProgressReporter) -> Iterator[CheckpointUploader | None]:
    place = work.checkpoints
    if place is None:
        yield None
        return
    scratch = Path(work.run.work_dir) / "uploads"
    uploader = CheckpointUploader(place, scratch, spec.checkpoint.keep, reporter)
    try:
        yield uploader
    finally:
        uploader.close(CLOSE_SECONDS)


def _write_result(work: Workspace, ready: Ready, trained: Trained, lineage: Lineage) -> Path:
    """Write everything that is published into one folder: adapter, tokenizer, card and curves."""
    if trained.answers:
        write_answers(trained.answers, work.result)
    trained.save(ready.plan, work.result)
    write_card(work, lineage, trained.history, trained.answers)
    return work.result


def _metrics(trained: Trained, task: TrainingTask) -> dict[str, float]:
    """Return what was measured, by the names of the API; of the base what it prefers only where that says something.

    Compared with itself, as DPO and KTO compare it, it prefers nothing.
    """
    metrics = {"loss": trained.loss, "baseEvalLoss": trained.base_eval_loss}
    if trained.eval_loss is not None:
        metrics |= {"evalLoss": trained.eval_loss, "improvement": 1 - trained.eval_loss / trained.base_eval_loss}
    if trained.eval_loss is not None and trained.change:
        metrics["improvementError"] = trained.change.share_error(trained.base_eval_loss)
    if trained.answers:
        metrics |= answer_metrics(trained.answers)
    for name in ("reward_accuracy", "reward_margin"):
        said = "".join(word.capitalize() for word in name.split("_"))
        if name in trained.after:
            metrics[f"eval{said}"] = trained.after[name]
        if task is TrainingTask.ORPO and name in trained.before:
            metrics[f"baseEval{said}"] = trained.before[name]
    return metrics


def _lineage(run: RunSpec, ready: Ready, trained: Trained) -> Lineage:
    basis, report, memo = ready.plan.basis, ready.data.report, trained.memo
    spec, base, source = basis.spec, basis.base, basis.start_from
    resumed_from = memo.resumed_from if memo else []
    settings = with_resumed(trained.settings, resumed_from[-1] if resumed_from else None)
    return Lineage(
        model=SourceRecord(uri=spec.model.uri, revision=base.revision, digest=base.digest),
        dataset=SourceRecord(uri=spec.dataset.uri, digest=report.sha256),
        served_name=spec.model.effective_served_name(),
        loader=trained.loader,
        method=settings.method.value,
        rank=trained.rank,
        hyperparameters=hyperparameters(settings),
        quantization=quantization_record(settings),
        steps=trained.taken,
        epochs=round(trained.epochs, 4),
        step=trained.step,
        seed=settings.training.seed,
        image=run.image,
        versions=library_versions(),
        device=trained.device,
        peak_bytes=trained.peak_bytes,
        metrics=_metrics(trained, settings.task),
        evaluations=[EvaluationRecord(step=each.step, loss=each.loss) for each in trained.evaluations[-_MOST:]],
        continued_from=source.record if source else memo.continued_from if memo else None,
        resumed_from=resumed_from,
        found=dataset_status(report, settings),
        findings=trained.findings,
        checks=trained.checks,
        resolved=resolved_status(
            settings,
            {
                "revision": base.revision,
                "continued_from": source.to_status() if source else None,
                "steps": ready.plan.steps,
                "target_modules": trained.target_modules,
                "trainable_parameters": trained.trainable_parameters,
                **devices_status(basis.device, settings, device_words(basis.device.kind)),
            },
        ),
    )
