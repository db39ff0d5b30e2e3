"""Preflight: everything that can be known to fail is found here, on a CPU, before any GPU is asked for."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from tunery_api.methods import LoraInit
from tunery_api.reasons import FailureReason
from tunery_api.runspec import PreflightReport, RunSpec
from tunery_api.training import Precision
from tunery_trainer.caching.models import cache_model, told_in_percent
from tunery_trainer.caching.rows import survey
from tunery_trainer.data.options import DataOptions, DatasetReport
from tunery_trainer.disk import check_disk, disk_status, estimate_disk
from tunery_trainer.environment import go_offline
from tunery_trainer.errors import TrainerError
from tunery_trainer.fetch import FetchedDataset, FetchedModel
from tunery_trainer.inputs import (
    check_secrets,
    data_options,
    decide,
    expected_device,
    get_data,
    get_model,
    lora_spec,
    model_place,
    probe_places,
    shared_cache,
)
from tunery_trainer.previous import PreviousAdapter, continued, get_previous
from tunery_trainer.resolved import DeviceFacts, DeviceKind, Resolved
from tunery_trainer.steps import expected_sequences, total_steps
from tunery_trainer.summary import dataset_status, resolved_status

if TYPE_CHECKING:
    from tunery_trainer.memory import MemoryEstimate

_log = logging.getLogger(__name__)


def run_preflight(run: RunSpec) -> PreflightReport:
    """Check credentials, output, model, every row of the data set, settings and memory, the cheapest first.

    Prints the report. Raises TrainerError for what would fail later.
    """
    check_secrets(run)
    probe_places(run)
    model = get_model(run, weights=False)
    cache_model(model_place(run), told_in_percent(_tell, "base model into the cache"))
    previous = get_previous(run, weights=False)
    files = get_data(run)
    go_offline()
    report = _check(run, (model, previous), files)
    _print(report)
    return report


def _tell(text: str) -> None:
    print(f"Preflight  {text}", flush=True)


def _check(
    run: RunSpec,
    start: tuple[FetchedModel, PreviousAdapter | None],
    files: tuple[FetchedDataset, FetchedDataset | None],
) -> PreflightReport:
    from tunery_trainer.model import load_tokenizer, model_facts

    spec, (model, previous) = lora_spec(run), start
    facts = model_facts(model.folder)
    tokenizer = load_tokenizer(model.folder)
    devices = expected_device(run)
    resolved = decide(spec, facts, files, devices)
    if previous:
        resolved = continued(resolved, spec, model.folder, previous)
    options = data_options(spec, files, resolved)
    dataset = survey(shared_cache(run), files[0].root, options, tokenizer)
    steps = total_steps(expected_sequences(dataset, options), resolved.training)
    targets, trained, estimate = _adapt(model.folder, resolved, steps, _row_length(options, dataset), devices)
    disk = estimate_disk(run, model, files, dataset, trained)
    report = PreflightReport(
        dataset=dataset_status(dataset),
        memory=estimate.to_status(devices.memory_bytes) if estimate else None,
        disk=disk_status(run, disk),
        resolved=resolved_status(
            resolved,
            {
                "target_modules": targets,
                "trainable_parameters": trained,
                "revision": model.revision,
                # Packing decides the number of sequences, and is done once, before training.
                "steps": None if options.packing and resolved.training.max_steps is None else steps,
            },
        ),
    )
    _check_memory(estimate, devices)
    check_disk(run, disk)
    return report


def _adapt(
    folder: Path, resolved: Resolved, steps: int, length: int, devices: DeviceFacts
) -> tuple[list[str], int, MemoryEstimate | None]:
    """Put the adapter on a model without weights; return its target modules, its size, and the memory it takes."""
    from tunery_trainer.adapter import attach, target_modules, trainable_parameters
    from tunery_trainer.memory import MemoryPlan, estimate_memory
    from tunery_trainer.methods.base import Start
    from tunery_trainer.model import load_tokenizer, meta_model

    # How the adapter starts changes neither its shape nor its memory, and would need the weights.
    plain = dataclasses.replace(resolved, adapter=dataclasses.replace(resolved.adapter, init=LoraInit.DEFAULT))
    model = attach(meta_model(folder), plain, Start(load_tokenizer(folder), steps))
    training, half = resolved.training, resolved.training.precision is Precision.BFLOAT16
    plan = MemoryPlan(
        batch_size=training.batch_size,
        length=length,
        quantization=resolved.quantization,
        optimizer=training.optimizer,
        gradient_checkpointing=training.gradient_checkpointing,
        adapter_bytes=2 if resolved.quantization and half else 4,
        on_gpu=devices.kind is DeviceKind.CUDA,
    )
    try:
        estimate = estimate_memory(model.train(), plan)
    except Exception as error:  # noqa: BLE001 (an estimate that cannot be made must not refuse a job that would run)
        _log.warning("no memory estimate for this architecture: %s: %s", type(error).__name__, error)
        estimate = None
    return target_modules(model), trainable_parameters(model), estimate


def _row_length(options: DataOptions, dataset: DatasetReport) -> int:
    """Return the tokens of the longest sequence that training will see, or a little more."""
    if dataset.tokens is None:
        return options.max_length
    longest = dataset.tokens.tokens if options.packing else 2 * dataset.tokens.p99_length
    return max(1, min(options.max_length, longest))


def _check_memory(estimate: MemoryEstimate | None, devices: DeviceFacts) -> None:
    from tunery_trainer.memory import human_bytes

    if estimate is None or devices.memory_bytes is None or estimate.total <= devices.memory_bytes:
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
    if resolved:
        targets = ", ".join(resolved.target_modules or []) or "none"
        print(f"Preflight  method: {resolved.method} on {targets}; {resolved.trainable_parameters} parameters trained")
    if memory and memory.estimate_bytes:
        from tunery_trainer.memory import human_bytes

        available = f" of {human_bytes(memory.available_bytes)}" if memory.available_bytes else ""
        print(f"Preflight  memory: about {human_bytes(memory.estimate_bytes)}{available}", flush=True)
