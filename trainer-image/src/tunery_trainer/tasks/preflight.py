"""Preflight: everything that can be known to fail is found here, on a CPU, before any GPU is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tunery_api.findings import CHECK_PENDING, TRAINING_CHECKS, CheckResult
from tunery_api.measured import DiskStatus
from tunery_api.reasons import FailureReason
from tunery_api.remedies import recreate, retry
from tunery_api.runspec import PreflightReport, RunSpec
from tunery_common.errors import TuneryError
from tunery_common.inputs.location import DataFiles, FetchedModel
from tunery_common.inputs.weight_files import check_weight_files, files_before_download
from tunery_trainer.data.notebook import Notebook
from tunery_trainer.inputs.adapter import StartingAdapter, get_starting_adapter
from tunery_trainer.inputs.cached_model import cache_model
from tunery_trainer.inputs.workspace import Workspace, check_secrets, get_data, get_model, model_location
from tunery_trainer.process.environment import go_offline
from tunery_trainer.reporting.downloads import Downloads
from tunery_trainer.reporting.status_parts import dataset_status, devices_status, resolved_status
from tunery_trainer.resuming.may_resume import base_of, check_base, check_origin
from tunery_trainer.resuming.resume import Peeked, peek, told, with_resumed, with_taken
from tunery_trainer.resuming.taken_settings import NOTHING, with_open_taken
from tunery_trainer.settings.parallelism import told_of_devices
from tunery_trainer.settings.sizing import FEWEST_STEPS
from tunery_trainer.settings.stored_quantization import check_types
from tunery_trainer.settings.types import DeviceFacts
from tunery_trainer.settings.units import compared
from tunery_trainer.tasks.data_report import name_report, notebook_of, told_and_stored
from tunery_trainer.tasks.devices import devices_expected
from tunery_trainer.tasks.frame import probe_places, probe_sweep_output, tell_of_loading

if TYPE_CHECKING:
    from tunery_trainer.plan.training_plan import TrainingPlan

_BEFORE: Final = "Preflight  "
"""Before each line."""


@dataclass(frozen=True)
class _Found:
    """What preflight has brought to the disk."""

    base: FetchedModel
    """Without weights."""
    start_from: StartingAdapter | None
    source: Peeked | None
    """The checkpoint that spec.resumeFrom leads to."""
    files: DataFiles


def run_preflight(run: RunSpec) -> PreflightReport:
    """Check credentials, output, model, every row of the data set, settings and memory, the cheapest first.

    Prints the report. Raises TuneryError for what would fail later.
    """
    work = Workspace(run)
    check_secrets(work)
    probe_places(work)
    probe_sweep_output(work)
    found = _gather(work)
    go_offline()
    if run.local:
        tell_of_loading("Preflight")
    notebook = notebook_of(work)
    try:
        report, devices = _check(work, found, notebook)
    except TuneryError as error:
        name_report(work, notebook, error, PreflightReport())
        raise
    _print(run, report, devices)
    return report.model_copy(update={"dataset": told_and_stored(work, notebook, report.dataset)})


def _gather(work: Workspace) -> _Found:
    downloads = Downloads(before=_BEFORE)
    base = get_model(work, weights=False)
    _check_weights(work, base)
    cache_model(model_location(work), downloads.of("base model into the cache"))
    start_from = get_starting_adapter(work, weights=False)
    return _Found(base, start_from, peek(work), get_data(work, downloads.of("data set")))


def _check_weights(work: Workspace, base: FetchedModel) -> None:
    """Look at the headers of the weights' files; raises TuneryError(ModelUnsupported), and the storage reasons."""
    files = files_before_download(model_location(work), base.folder)
    if files:
        check_types(files.config, check_weight_files(files))


def _tell(text: str) -> None:
    print(f"{_BEFORE}{text}", flush=True)


def _check(work: Workspace, found: _Found, notebook: Notebook) -> tuple[PreflightReport, DeviceFacts]:
    """Return what is reported, and the devices that it is of."""
    from tunery_trainer.plan.disk import check_disk, disk_status, estimate_disk
    from tunery_trainer.plan.wont_fit import check_memory

    plan = _plan(work, found, notebook)
    _check_steps(plan)
    if plan.basis.device.world > 1:
        _tell(f"devices: {told_of_devices(plan.settings, plan.basis.device)}")
    source = found.source
    if source:
        _tell(f"goes on from {told(source.record)}")
        check_origin(source.memo.origin, source.record.step, plan.origin)
    disk = estimate_disk(Path(work.run.work_dir), plan, found.files)
    report = _report(found, plan, disk_status(work, disk))
    try:
        check_memory(plan, local=work.run.local)
        check_disk(work, disk)
    except TuneryError as error:
        error.reached = report  # what would fit is told by the method, and by what it takes
        raise
    return report, plan.basis.device


def _plan(work: Workspace, found: _Found, notebook: Notebook) -> TrainingPlan:
    """Return the plan that training will make, from every row of the data set."""
    from tunery_trainer.plan.basis import Basis
    from tunery_trainer.plan.prepared_rows import survey
    from tunery_trainer.plan.request import request_data
    from tunery_trainer.plan.training_plan import plan_training

    spec, taken = work.lora_job, NOTHING
    if found.source:
        origin = found.source.memo.origin
        check_base(origin, base_of(spec.model.uri, found.base))
        spec, taken = with_open_taken(spec, origin)
    if work.run.local:
        spec, taken = with_taken(work)  # training follows here, and may go on from a checkpoint of its own
    device = devices_expected(work, spec, taken)
    basis = Basis(work.run.identity, spec, found.base, device, found.start_from, taken)
    request = request_data(basis, found.files)
    return plan_training(basis, request.rows, survey(request, basis.tokenizer, work.cache, notebook))


def _report(found: _Found, plan: TrainingPlan, disk: DiskStatus) -> PreflightReport:
    return PreflightReport(
        checks=plan.checklist(),
        dataset=dataset_status(plan.data, plan.settings),
        memory=plan.memory.to_status(plan.basis.device.memory_bytes) if plan.memory else None,
        estimate=plan.memory.in_parts(plan.steps, plan.tokens) if plan.memory else None,
        disk=disk,
        resolved=resolved_status(
            with_resumed(plan.settings, found.source.record if found.source else None),
            {
                "target_modules": plan.target_modules,
                "trainable_parameters": plan.trainable_parameters,
                "revision": found.base.revision,
                "continued_from": found.start_from.to_status() if found.start_from else None,
                "steps": plan.steps,
                **devices_status(plan.basis.device, plan.settings),
            },
        ),
    )


def _check_steps(plan: TrainingPlan) -> None:
    """Raise TuneryError(DatasetInvalid) for too few steps to learn anything, unless the manifest asks for so few."""
    asked = {"epochs", "max_steps", "batch_size", "gradient_accumulation"} & plan.basis.spec.training.model_fields_set
    if plan.steps < FEWEST_STEPS and not asked:
        fewer = [recreate("Use fewer devices", "resources.gpus")] if plan.basis.device.world > 1 else []
        raise TuneryError(
            FailureReason.DATASET_INVALID,
            f"the rows make {plan.steps} optimizer steps, {_fewest(plan)} and {plan.settings.training.epochs:g} passes "
            f"each; fewer than {FEWEST_STEPS} teach nothing",
            retry("Add rows"),
            recreate("Set training.epochs or training.maxSteps", "training.epochs", "training.maxSteps"),
            *fewer,
        )


def _fewest(plan: TrainingPlan) -> str:
    """Return how few rows a step has: at least one of each device."""
    devices = plan.basis.device.world
    return "one row" if devices == 1 else f"a row of each of the {devices} devices"


def _print(run: RunSpec, report: PreflightReport, devices: DeviceFacts) -> None:
    """Print the report for people: one line for each thing that was checked."""
    dataset, resolved, memory = report.dataset, report.resolved, report.memory
    if dataset:
        print(
            f"Preflight  data: {dataset.rows} rows, {dataset.tokens} tokens, format {dataset.format}, "
            f"{dataset.invalid_rows} invalid, {dataset.duplicates} duplicates, {dataset.truncated_percent} % cut"
        )
        print(
            f"Preflight  data: half of the rows have at most {dataset.p50_length} tokens, 90 % {dataset.p90_length}, "
            f"the longest has {dataset.longest}; the loss counts {dataset.loss_tokens} tokens"
        )
        if dataset.assistant_turns:
            print(f"Preflight  data: {dataset.trained_turns} of {dataset.assistant_turns} answers count in the loss")
        if dataset.split_rows:
            print(
                f"Preflight  data: the chat template rewrites earlier turns, so {dataset.split_rows} rows were split, "
                f"into {dataset.examples} examples with the others; {dataset.repeated_tokens} tokens are repeated"
            )
        for warning in dataset.warnings or []:
            print(f"Preflight  warning: {warning}")
    for check in report.checks or []:
        if check.result == CheckResult.WARNING or (check.message != CHECK_PENDING and check.name in TRAINING_CHECKS):
            print(f"Preflight  check {check.name}: {check.message}")
    if resolved:
        # Prompt and prefix tuning adapt no modules.
        targets = f" on {', '.join(resolved.target_modules)}" if resolved.target_modules else ""
        print(f"Preflight  method: {resolved.method}{targets}; {resolved.trainable_parameters} parameters trained")
    if memory and memory.estimate_bytes:
        of_all = (each * devices.sharing for each in (memory.estimate_bytes, memory.available_bytes) if each)
        needed, *there = compared(*of_all)
        available = f" of {there[0]}" if there else ""
        here = " that this machine has; resources.memory counts in a cluster" if run.local and available else ""
        of = f" for {devices.sharing} processes," if devices.sharing > 1 else " on each device,"
        print(f"Preflight  memory: about {needed}{of if devices.world > 1 else ''}{available}{here}", flush=True)
