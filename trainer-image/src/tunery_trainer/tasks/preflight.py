"""Preflight: everything that can be known to fail is found here, on a CPU, before any GPU is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunery_api.lorajob import LoRAJobSpec
from tunery_api.reasons import FailureReason
from tunery_api.runspec import PreflightReport, RunSpec
from tunery_trainer.errors import TrainerError
from tunery_trainer.inputs.adapter import PreviousAdapter, get_previous
from tunery_trainer.inputs.cached_model import cache_model, told_in_percent
from tunery_trainer.inputs.fetch import FetchedDataset, FetchedModel
from tunery_trainer.inputs.workspace import (
    check_secrets,
    count_rows,
    data_options,
    expected_device,
    get_data,
    get_model,
    lora_spec,
    model_place,
    probe_places,
    shared_cache,
)
from tunery_trainer.plan.disk import check_disk, disk_status, estimate_disk
from tunery_trainer.plan.prepared_rows import survey
from tunery_trainer.process.environment import go_offline
from tunery_trainer.reporting.status_parts import dataset_status, resolved_status
from tunery_trainer.resuming.inherited import NOTHING, with_open_taken
from tunery_trainer.resuming.origin import base_of, check_base, check_origin, origin_of
from tunery_trainer.resuming.resume import Peeked, peek, told, with_resumed
from tunery_trainer.settings.sizing import FEWEST_STEPS
from tunery_trainer.settings.types import DeviceFacts, DeviceKind

if TYPE_CHECKING:
    from tunery_trainer.plan.training_plan import Plan


def run_preflight(run: RunSpec) -> PreflightReport:
    """Check credentials, output, model, every row of the data set, settings and memory, the cheapest first.

    Prints the report. Raises TrainerError for what would fail later.
    """
    check_secrets(run)
    probe_places(run)
    model = get_model(run, weights=False)
    cache_model(model_place(run), told_in_percent(_tell, "base model into the cache"))
    previous = get_previous(run, weights=False)
    source = peek(run)
    files = get_data(run)
    go_offline()
    report = _check(run, (model, previous, source), files)
    _print(report)
    return report


def _tell(text: str) -> None:
    print(f"Preflight  {text}", flush=True)


def _check(
    run: RunSpec,
    start: tuple[FetchedModel, PreviousAdapter | None, Peeked | None],
    files: tuple[FetchedDataset, FetchedDataset | None],
) -> PreflightReport:
    from tunery_trainer.model.load import load_tokenizer
    from tunery_trainer.plan.training_plan import Basis, before_data, make_plan

    model, previous, source = start
    devices = expected_device(run)
    spec, taken = lora_spec(run), NOTHING
    if source:
        check_base(source.memo.origin, base_of(run, model))
        spec, taken = with_open_taken(spec, source.memo.origin)
    basis = Basis(spec, model.folder, devices, previous, taken)
    rows = count_rows(basis.spec, files)
    options = data_options(basis.spec, files, before_data(basis, rows))
    dataset = survey(shared_cache(run), files[0].root, options, load_tokenizer(model.folder))
    plan = make_plan(basis, rows, dataset)
    _check_steps(basis.spec, plan)
    if source:
        _tell(f"goes on from {told(source.record)}")
        check_origin(source.memo.origin, source.record.step, origin_of(run, model, dataset, plan))
    disk = estimate_disk(run, model, files, dataset, plan.trainable_parameters)
    report = PreflightReport(
        dataset=dataset_status(dataset, plan.resolved),
        memory=plan.memory.to_status(devices.memory_bytes) if plan.memory else None,
        disk=disk_status(run, disk),
        resolved=resolved_status(
            with_resumed(plan.resolved, source.record if source else None),
            {
                "target_modules": plan.target_modules,
                "trainable_parameters": plan.trainable_parameters,
                "revision": model.revision,
                "steps": plan.steps,
            },
        ),
    )
    _check_memory(plan, devices)
    check_disk(run, disk)
    return report


def _check_steps(spec: LoRAJobSpec, plan: Plan) -> None:
    """Raise TrainerError(DatasetInvalid) for too few steps to learn anything, unless the manifest asks for so few."""
    asked = {"epochs", "max_steps", "batch_size", "gradient_accumulation"} & spec.training.model_fields_set
    if plan.steps < FEWEST_STEPS and not asked:
        raise TrainerError(
            FailureReason.DATASET_INVALID,
            f"the rows make {plan.steps} optimizer steps, one row and {plan.resolved.training.epochs:g} passes each; "
            f"fewer than {FEWEST_STEPS} teach nothing",
            "Add rows, and retry; or say spec.training.epochs or maxSteps in a new job.",
        )


def _check_memory(plan: Plan, devices: DeviceFacts) -> None:
    from tunery_trainer.model.memory import human_bytes

    estimate = plan.memory
    if estimate is None or devices.memory_bytes is None or plan.fits(devices):
        return
    largest = estimate.largest_batch(devices.memory_bytes)
    device = "the GPU" if devices.kind is DeviceKind.CUDA else "the container"
    advice = f"training.batchSize: {largest} fits" if largest else "not even training.batchSize: 1 fits"
    raise TrainerError(
        FailureReason.WONT_FIT,
        f"training needs about {human_bytes(estimate.total)}, {device} has {human_bytes(devices.memory_bytes)}; "
        f"{advice}",
    )


def _print(report: PreflightReport) -> None:
    """Print the report for people: one line for each thing that was checked."""
    dataset, resolved, memory = report.dataset, report.resolved, report.memory
    if dataset:
        print(
            f"Preflight  data: {dataset.rows} rows, {dataset.tokens} tokens, format {dataset.format}, "
            f"{dataset.invalid_rows} invalid, {dataset.duplicates} duplicates, {dataset.truncated_percent} % cut"
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
    if resolved:
        targets = ", ".join(resolved.target_modules or []) or "none"
        print(f"Preflight  method: {resolved.method} on {targets}; {resolved.trainable_parameters} parameters trained")
    if memory and memory.estimate_bytes:
        from tunery_trainer.model.memory import human_bytes

        available = f" of {human_bytes(memory.available_bytes)}" if memory.available_bytes else ""
        print(f"Preflight  memory: about {human_bytes(memory.estimate_bytes)}{available}", flush=True)
