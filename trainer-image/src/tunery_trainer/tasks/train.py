"""The story of a training run, from top to bottom: download, train, evaluate, publish, read back."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from tunery_api.lorajob import LoRAJobSpec
from tunery_api.manifest import EvaluationRecord, Lineage, SourceRecord
from tunery_api.preference import TrainingTask
from tunery_api.reasons import FailureReason
from tunery_api.runspec import RunResult, RunSpec
from tunery_api.status import Phase
from tunery_common.errors import TuneryError
from tunery_common.storage.publisher import Published, publish, published_before
from tunery_trainer.crew.place import Place
from tunery_trainer.data.notebook import Notebook
from tunery_trainer.diagnosis.answers import answer_metrics, write_answers
from tunery_trainer.inputs.adapter import get_starting_adapter
from tunery_trainer.inputs.workspace import Workspace, check_secrets, get_data, get_model
from tunery_trainer.process.device import device_words
from tunery_trainer.process.environment import go_offline
from tunery_trainer.process.signals import StopSignal
from tunery_trainer.reporting.downloads import Downloads
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
from tunery_trainer.resuming.resume import Resumed, resume, with_resumed, with_taken
from tunery_trainer.settings.parallelism import parallelism_of
from tunery_trainer.settings.units import human_bytes
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
from tunery_trainer.tasks.devices import devices_found, place_for
from tunery_trainer.tasks.following import Leading, following, leading
from tunery_trainer.tasks.frame import output_target, probe_places, with_progress
from tunery_trainer.tasks.rejected import reject, with_verdict

if TYPE_CHECKING:
    from tunery_trainer.data.prepare import PreparedData
    from tunery_trainer.plan.training_plan import TrainingPlan
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
        print("This very run has published before: nothing is left to train", flush=True)
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
        ready = _gather(work, crew.place, notebook, reporter)
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
            return publish(folder, output_target(work, math.inf), lineage)
    raise reject(work, folder, lineage)


class _Watchers(NamedTuple):
    """Who may end the run, who is told how far it is, and who keeps what it has logged."""

    stop: StopSignal
    reporter: ProgressReporter
    curves: KeptCurves


class _Ready(NamedTuple):
    """All that training needs, on the disk and decided."""

    plan: TrainingPlan
    data: PreparedData


def _gather(work: Workspace, place: Place, notebook: Notebook, reporter: ProgressReporter) -> _Ready:
    """Bring model and data to the disk, decide every setting, and prepare the rows."""
    spec, taken = with_taken(work)
    device = devices_found(work, place, reporter)  # before a download that a pod without a working GPU has no use for
    downloads = Downloads(reporter)
    base = get_model(work, weights=True, progress=downloads.of("model"))
    start_from = get_starting_adapter(work, weights=True)
    files = get_data(work, downloads.of("data set"))
    reporter.downloaded()
    go_offline()
    from tunery_trainer.plan.basis import Basis
    from tunery_trainer.plan.prepared_rows import prepare_rows
    from tunery_trainer.plan.request import request_data
    from tunery_trainer.plan.training_plan import plan_training

    basis = Basis(work.run.identity, spec, base, device, start_from, taken)
    request = request_data(basis, files)
    print(f"Tokenizing {spec.dataset.uri}", flush=True)
    data = prepare_rows(request, basis.tokenizer, work.cache, work.folder("prepared"), notebook)
    ready = _Ready(plan_training(basis, request.rows, data.report), data)
    _print(ready)
    return ready


def _print(ready: _Ready) -> None:
    """Print for who follows the log what is about to be trained, and on what."""
    plan, data = ready
    spec, base = plan.basis.spec, plan.basis.base
    at = f" at {base.revision}" if base.revision else ""
    print(f"Model      {spec.model.uri}{at}, {human_bytes(base.weight_bytes)} of weights")
    print(f"Data       {spec.dataset.uri}, {len(data.train)} sequences to train on, {len(data.evaluation)} held out")
    devices = plan.basis.device
    device = devices.words if devices.world > 1 else f"the {'GPU' if plan.basis.on_gpu else 'CPU'}"
    how = parallelism_of(sharded=plan.settings.training.sharded, devices=devices.world)
    print(f"Method     {plan.settings.method}, {plan.steps} steps on {device}{f', {how}' if how else ''}", flush=True)


def _train_on(work: Workspace, ready: _Ready, watchers: _Watchers, crew: Leading) -> Trained:
    from tunery_trainer.training.assignment import Assignment, Following, Observers
    from tunery_trainer.training.run import train_on

    folder, spec = work.folder(LOCAL_FOLDER), ready.plan.basis.spec
    resumed, source = resume(work, ready.plan.origin, folder), ready.plan.basis.start_from
    if resumed:
        check_start(resumed.memo.continued_from, source.record if source else None)
    if resumed and resumed.own and spec.tracking:
        fetch_runs(work)
    goes_on_after = resumed.step if resumed else 0
    tracked = Tracked(spec.tracking, work.run.identity, work.credentials, work.result, goes_on_after)
    team = crew.begin(Following(ready.plan, ready.data, resumed), _decided(ready))
    with _uploads(work, spec, watchers.reporter) as uploader:
        observers = Observers(watchers.stop, watchers.reporter, watchers.curves, uploader, partial(trackers, tracked))
        describe = partial(_lineage, work.run, ready)
        with crew.heard(uploader):
            return train_on(Assignment(ready.plan, ready.data, folder, resumed, observers, describe, team))


def _decided(ready: _Ready) -> dict[str, Any]:
    """Return what every node has to come to alike, or they would train different things."""
    return {
        **ready.plan.origin.model_dump(mode="json"),
        "passes": repr(ready.plan.settings.training),  # what follows from the memory of the devices, too
        "rows": ready.data.report.sha256,
        "versions": library_versions(),
    }


def _assist(work: Workspace, place: Place, stop: StopSignal) -> RunResult:
    """Train on another node than the first one, which publishes."""
    from tunery_trainer.training.assignment import Following

    check_secrets(work)
    reporter = ProgressReporter({})
    with following(work, place) as crew:
        ready = _gather(work, place, Notebook(work.folder("notebook")), reporter)
        step = crew.ready(_decided(ready))
        resumed = _resume_at(work, ready, step) if step is not None else None
        crew.follow(Following(ready.plan, ready.data, resumed), stop)
    return RunResult()


def _resume_at(work: Workspace, ready: _Ready, step: int) -> Resumed:
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


def _write_result(work: Workspace, ready: _Ready, trained: Trained, lineage: Lineage) -> Path:
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


def _lineage(run: RunSpec, ready: _Ready, trained: Trained) -> Lineage:
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
