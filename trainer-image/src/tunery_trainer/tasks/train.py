"""The story of a training run, from top to bottom: download, train, evaluate, publish, read back."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from tunery_api.lorajob import LoRAJobSpec
from tunery_api.manifest import Lineage, SourceRecord
from tunery_api.preference import TrainingTask
from tunery_api.reasons import FailureReason
from tunery_api.runspec import RunResult, RunSpec
from tunery_api.status import Phase
from tunery_trainer.errors import TrainerError
from tunery_trainer.inputs.adapter import get_previous
from tunery_trainer.inputs.workspace import (
    actual_device,
    check_secrets,
    count_rows,
    data_options,
    get_data,
    get_model,
    output_target,
    probe_places,
    shared_cache,
    work_folder,
)
from tunery_trainer.losses.improvement import shortfall
from tunery_trainer.plan.prepared_rows import look_up
from tunery_trainer.plan.session import Session
from tunery_trainer.process.environment import go_offline
from tunery_trainer.process.signals import StopSignal
from tunery_trainer.reporting.progress import ProgressReporter
from tunery_trainer.reporting.result import result_of
from tunery_trainer.reporting.status_parts import dataset_status, hyperparameters, library_versions, resolved_status
from tunery_trainer.resuming.kept import settle_checkpoints
from tunery_trainer.resuming.resume import with_resumed, with_taken
from tunery_trainer.settings.types import DeviceKind
from tunery_trainer.storage.publish import Published, publish, published_before
from tunery_trainer.tasks.rejected import reject, rejected_uri

if TYPE_CHECKING:
    from tunery_trainer.training.run import Fitted

_log = logging.getLogger(__name__)


def run_train(run: RunSpec, stop: StopSignal) -> RunResult:
    """Train and publish the adapter that `run` asks for, then remove its checkpoints.

    A rerun resumes from the newest complete checkpoint, and succeeds at once if this very run published already.
    Raises TrainerError, and StopRequested after a SIGTERM once the checkpoint is stored.
    """
    reporter = ProgressReporter()
    try:
        result = _train(run, stop, reporter)
        reporter.phase(Phase.SUCCEEDED)
    except TrainerError as error:
        error.reached = (error.reached or RunResult()).model_copy(update={"checkpoint": reporter.newest_checkpoint})
        raise
    finally:
        reporter.close()
    return result


def _train(run: RunSpec, stop: StopSignal, reporter: ProgressReporter) -> RunResult:
    check_secrets(run)
    published = published_before(output_target(run))
    if published is None:
        published = _fit_and_publish(run, stop, reporter)
    else:
        print("This very run has published before: nothing is left to train", flush=True)
    kept = settle_checkpoints(run)
    if kept is None:
        reporter.checkpoints_removed()
    return result_of(published, kept)


def _fit_and_publish(run: RunSpec, stop: StopSignal, reporter: ProgressReporter) -> Published:
    probe_places(run)
    reporter.phase(Phase.STARTING)
    session = _gather(run)
    from tunery_trainer.training.run import (
        fit,  # imports torch, transformers, peft and trl, while the reader sees Starting
    )

    fitted = fit(session, stop, reporter)
    lineage = _lineage(session, fitted)
    reporter.phase(Phase.UPLOADING)
    folder = _write_result(session, fitted, lineage)
    if lineage.rejected:
        raise reject(run, folder, lineage)
    return publish(folder, output_target(run), lineage)


def _gather(run: RunSpec) -> Session:
    """Bring model and data to the disk, decide every setting, and prepare the rows."""
    spec, taken = with_taken(run)
    device = actual_device(run)  # before a download that a pod without a working GPU has no use for
    model = get_model(run, weights=True)
    previous = get_previous(run, weights=True)
    files = get_data(run)
    go_offline()
    from tunery_trainer.data.prepare import prepare
    from tunery_trainer.model.load import load_tokenizer
    from tunery_trainer.plan.training_plan import Basis, before_data, make_plan

    if spec.resources.gpus and device.kind is DeviceKind.CPU:
        _log.warning("spec.resources.gpus is %s, but no GPU is here: training on the CPU", spec.resources.gpus)
    basis, tokenizer = Basis(spec, model.folder, device, previous, taken), load_tokenizer(model.folder)
    rows = count_rows(spec, files)
    options = data_options(spec, files, before_data(basis, rows))
    data = prepare(files[0].root, options, tokenizer, look_up(shared_cache(run), work_folder(run, "prepared")))
    plan = make_plan(basis, rows, data.report)
    session = Session(run, spec, model, previous, tokenizer, data, plan, device.kind is DeviceKind.CUDA)
    _print(session)
    return session


def _print(session: Session) -> None:
    """Print for who follows the log what is about to be trained, and on what."""
    from tunery_trainer.model.memory import human_bytes

    spec, model, data = session.spec, session.model, session.data
    at = f" at {model.revision}" if model.revision else ""
    print(f"Model      {spec.model.uri}{at}, {human_bytes(model.weight_bytes)} of weights")
    print(f"Data       {spec.dataset.uri}, {len(data.train)} sequences to train on, {len(data.evaluation)} held out")
    device = "GPU" if session.on_gpu else "CPU"
    print(f"Method     {session.resolved.method}, {session.steps} steps on the {device}", flush=True)


def _rejection(spec: LoRAJobSpec, fitted: Fitted) -> str | None:
    """Say why the adapter is not better than the base by the share that was asked for; None where it is.

    Raises TrainerError(NotImproved) where it changes nothing at all: nobody has a use for that.
    """
    if fitted.eval_loss == fitted.base_eval_loss:
        raise TrainerError(
            FailureReason.NOT_IMPROVED,
            f"the adapter changes nothing: the evaluation loss is {fitted.eval_loss:.4f} with it and without it",
        )
    return shortfall(fitted.base_eval_loss, fitted.eval_loss, spec.evaluation.min_improvement)


def _write_result(session: Session, fitted: Fitted, lineage: Lineage) -> Path:
    """Write everything that is published into one folder: adapter, tokenizer, card and curves."""
    from tunery_trainer.adapter.attach import save_published
    from tunery_trainer.data.template import DEFAULT_TEMPLATE
    from tunery_trainer.reporting.curves import FILE_NAME, TITLE, draw_curves
    from tunery_trainer.reporting.model_card import model_card

    folder = work_folder(session.run, "result")
    save_published(fitted.model, folder, session.spec.model.effective_served_name())
    tokens = session.data.report.tokens
    if tokens is not None and tokens.template != "none":
        if session.tokenizer.chat_template is None:
            session.tokenizer.chat_template = DEFAULT_TEMPLATE
        session.tokenizer.save_pretrained(str(folder))
    draw_curves(fitted.history, fitted.base_eval_loss, folder / FILE_NAME)
    uri = rejected_uri(session.run) if lineage.rejected else session.run.output_uri
    card = model_card(session.run.identity, lineage, uri, pictures={TITLE: FILE_NAME})
    (folder / "README.md").write_text(card, "utf-8")
    return folder


def _metrics(fitted: Fitted, task: TrainingTask) -> dict[str, float]:
    """Return what was measured, by the names of the API; of the base what it prefers only where that says something.

    Compared with itself, as DPO and KTO compare it, it prefers nothing.
    """
    metrics = {"loss": fitted.loss, "evalLoss": fitted.eval_loss, "baseEvalLoss": fitted.base_eval_loss}
    for name in ("reward_accuracy", "reward_margin"):
        said = "".join(word.capitalize() for word in name.split("_"))
        if name in fitted.after:
            metrics[f"eval{said}"] = fitted.after[name]
        if task is TrainingTask.ORPO and name in fitted.before:
            metrics[f"baseEval{said}"] = fitted.before[name]
    return metrics


def _lineage(session: Session, fitted: Fitted) -> Lineage:
    spec, run, previous, memo = session.spec, session.run, session.previous, fitted.memo
    sources = memo.resumed_from if memo else []
    resolved = with_resumed(fitted.resolved, sources[-1] if sources else None)
    return Lineage(
        model=SourceRecord(uri=spec.model.uri, revision=session.model.revision, digest=session.model.digest),
        dataset=SourceRecord(uri=spec.dataset.uri, digest=session.data.report.sha256),
        served_name=spec.model.effective_served_name(),
        loader=fitted.loader,
        method=resolved.method.value,
        rank=fitted.rank,
        hyperparameters=hyperparameters(resolved),
        steps=fitted.taken,
        epochs=round(fitted.epochs, 4),
        step=fitted.step,
        seed=resolved.training.seed,
        image=run.image,
        versions=library_versions(),
        device=fitted.device,
        metrics=_metrics(fitted, resolved.task),
        continued_from=previous.record if previous else memo.continued_from if memo else None,
        resumed_from=sources,
        rejected=_rejection(spec, fitted),
        found=dataset_status(session.data.report, resolved),
        resolved=resolved_status(
            resolved,
            {
                "revision": session.model.revision,
                "steps": session.steps,
                "target_modules": fitted.target_modules,
                "trainable_parameters": fitted.trainable_parameters,
            },
        ),
    )
