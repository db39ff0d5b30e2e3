"""A look at a job before it is applied: its plan from config.json alone, and the table of what else would fit."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Final

from tunery_api.inputs import DatasetFormat
from tunery_api.reasons import FailureReason
from tunery_api.remedies import recreate
from tunery_api.runspec import RunIdentity
from tunery_common.errors import TuneryError
from tunery_common.inputs.location import DataFiles, FetchedModel
from tunery_trainer.data.options import DatasetReport, TokenReport
from tunery_trainer.plan.basis import Basis
from tunery_trainer.plan.method_table import GPU_CLASSES, method_table
from tunery_trainer.plan.prepared_rows import survey
from tunery_trainer.plan.request import request_data
from tunery_trainer.plan.training_plan import TrainingPlan, plan_training
from tunery_trainer.plan.wont_fit import change_that_fits
from tunery_trainer.resuming.here import Start
from tunery_trainer.resuming.taken_settings import NOTHING
from tunery_trainer.settings.look import Estimated, TableLine
from tunery_trainer.settings.types import DeviceFacts

_RUN: Final = RunIdentity(kind="LoRAJob", namespace="local", name="estimate", uid="")
_MANY: Final = 20_000
"""Sequences of a data set that was not read: enough for the largest steps."""


def look_ahead(start: Start, folder: Path, device: DeviceFacts, files: DataFiles | None) -> Estimated:
    """Return what the job of `start` would take; without `files` its rows are taken to be many, and of maxLength.

    `folder` holds the model's config.json, and where there are `files` its tokenizer.
    Raises TuneryError as preflight does, and ModelUnsupported for a model that cannot be counted without weights.
    """
    spec = start.spec
    basis = Basis(
        _RUN, spec, FetchedModel(folder, None, 0), device, start.adapter, start.taken, config_only=files is None
    )
    rows, data = _read(basis, files) if files else (None, _unread(spec.training.max_length))
    plan = plan_training(basis, rows, data)
    if plan.memory is None:
        raise TuneryError(
            FailureReason.MODEL_UNSUPPORTED,
            f"spec.model.uri: {basis.facts.architecture} cannot be counted without its weights; a LoRAJob runs on it "
            "all the same",
            recreate("Name another model for an estimate", "model.uri"),
        )
    return Estimated(
        model=spec.model.uri,
        parameters=basis.facts.parameters,
        settings=plan.settings,
        targets=tuple(plan.target_modules),
        trained=plan.trainable_parameters,
        left_out=start.left_out,
        memory=plan.memory,
        device=device,
        by_default="memory" not in spec.resources.model_fields_set,
        rows=data.rows if files else None,
        capped=plan.row_length == plan.settings.training.max_length,
        packed=plan.packed,
        steps=plan.steps if files or spec.training.max_steps else None,
        tokens=plan.tokens,
        container=plan.container,
        change=None if plan.fits else change_that_fits(plan),
        table=_table(plan),
    )


def _read(basis: Basis, files: DataFiles) -> tuple[int | None, DatasetReport]:
    """Return how many rows there are, where that decides the method, and what was found in them."""
    request = request_data(basis, files)
    return request.rows, survey(request, basis.tokenizer, None)


def _unread(length: int) -> DatasetReport:
    counts: dict[str, Any] = dict.fromkeys((field.name for field in dataclasses.fields(TokenReport)), 0)
    tokens = TokenReport(**counts | {"longest": length, "template": "", "sequences": _MANY, "packed": False})
    return DatasetReport(0, 0, 0, (), 0, 0, "", DatasetFormat.MESSAGES, (), tokens)


def _table(plan: TrainingPlan) -> list[TableLine]:
    """Return what each method takes; of a run that goes on from a checkpoint its own, which may not change."""
    basis = plan.basis
    rows = method_table(basis, _unread(plan.settings.training.max_length))
    return [
        TableLine(
            method=row.method.value,
            quantization=row.quantization,
            total_bytes=row.estimate.total,
            largest={gpu.name: row.largest_batch(gpu) for gpu in GPU_CLASSES},
            spread=frozenset(gpu.name for gpu in GPU_CLASSES if row.is_spread(gpu)),
        )
        for row in rows
        if basis.taken is NOTHING or row.method is plan.settings.method
    ]
