"""What the data layer is asked for, by manifest and settings, before a row was read."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from tunery_api.lorajob import LoRAJobSpec
from tunery_api.methods import Method, TrainingTask
from tunery_api.reasons import FailureReason
from tunery_api.runspec import RunSpec
from tunery_common.errors import TuneryError
from tunery_common.inputs.location import DataFiles, FetchedModel
from tunery_trainer.data.notebook import Notebook
from tunery_trainer.data.options import DataOptions, DatasetReport
from tunery_trainer.data.scan import count_rows, scan
from tunery_trainer.plan.basis import Basis
from tunery_trainer.settings.sizing import sequences_to_pack
from tunery_trainer.settings.types import DeviceFacts, RunSettings


@dataclass(frozen=True)
class DataRequest:
    """The rows that a run is to learn from, and the tokens that it wants of them."""

    root: Path
    options: DataOptions
    rows: int
    """Of the data set, where `method: Auto` depends on them, else 0."""


def request_data(basis: Basis, files: DataFiles) -> DataRequest:
    """Return what preflight and training ask for alike. Raises TuneryError: InvalidSpec, and those of `count_rows`."""
    rows = _count_rows(basis, files)
    # As far as they do not depend on tokens.
    settings = basis.settings(basis.choices(rows)[0], None)
    basis.check_start(settings)
    return DataRequest(files.train.root, data_options(basis, files, settings), rows)


def _count_rows(basis: Basis, files: DataFiles) -> int:
    spec = basis.spec
    depends = spec.method is Method.AUTO and spec.task is TrainingTask.SFT
    return count_rows(files.train.root, data_options(basis, files, None)) if depends else 0


def data_options(basis: Basis, files: DataFiles, resolved: RunSettings | None) -> DataOptions:
    """Return what the data layer is asked for; without `resolved` it fits a scan for formats only."""
    own, spec = files.evaluation, basis.spec
    plain = DataOptions.of(spec, files.train.pattern, own.root if own else None, own.pattern if own else "")
    plain = dataclasses.replace(plain, sweep=basis.run.sweep)
    if resolved is None:
        return plain
    return dataclasses.replace(
        plain,
        max_length=resolved.training.max_length,
        packing=resolved.training.packing,
        min_sequences=sequences_to_pack(resolved.training.epochs) if _may_stay_alone(spec) else 0,
    )


def read_data(
    run: RunSpec, base: FetchedModel, device: DeviceFacts, files: DataFiles, notebook: Notebook
) -> DatasetReport:
    """Read every row as preflight does, and prepare none; `base` is a folder with configuration and tokenizer.

    Raises TuneryError: InvalidSpec, ModelUnsupported, and those of `scan`.
    """
    if run.lora_job is None:
        raise TuneryError(FailureReason.INTERNAL_ERROR, "the run holds no LoRAJob")
    basis = Basis(run.identity, run.lora_job, base, device)
    request = request_data(basis, files)
    return scan(request.root, request.options, basis.tokenizer, notebook)


def _may_stay_alone(spec: LoRAJobSpec) -> bool:
    """Say whether nobody asks for packing, nor for a number of steps that would be the same without it."""
    return spec.training.packing is None and spec.training.max_steps is None
