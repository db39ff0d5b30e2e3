"""What the data layer is asked for, by manifest and settings, before a row was read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tunery_api.lorajob import LoRAJobSpec
from tunery_api.methods import Method
from tunery_api.preference import TrainingTask
from tunery_trainer.data.options import DataOptions
from tunery_trainer.data.scan import count_rows
from tunery_trainer.inputs.location import DataFiles
from tunery_trainer.plan.basis import Basis
from tunery_trainer.settings.sizing import sequences_to_pack
from tunery_trainer.settings.types import RunSettings


@dataclass(frozen=True)
class DataRequest:
    """The rows that a run is to learn from, and the tokens that it wants of them."""

    root: Path
    options: DataOptions
    rows: int
    """Of the data set, where `method: Auto` depends on them, else 0."""


def request_data(basis: Basis, files: DataFiles) -> DataRequest:
    """Return what preflight and training ask for alike. Raises TrainerError: InvalidSpec, and those of `count_rows`."""
    rows = _count_rows(basis.spec, files)
    # As far as they do not depend on tokens.
    settings = basis.settings(basis.choices(rows)[0], None)
    return DataRequest(files.train.root, data_options(basis.spec, files, settings), rows)


def _count_rows(spec: LoRAJobSpec, files: DataFiles) -> int:
    depends = spec.method is Method.AUTO and spec.task is TrainingTask.SFT
    return count_rows(files.train.root, data_options(spec, files, None)) if depends else 0


def data_options(spec: LoRAJobSpec, files: DataFiles, resolved: RunSettings | None) -> DataOptions:
    """Return what the data layer is asked for; without `resolved` it fits a scan for formats only."""
    train, own = files.train, files.evaluation
    evaluation = spec.dataset.evaluation
    defaults = DataOptions()
    return DataOptions(
        task=spec.task,
        path=train.pattern,
        format=spec.dataset.format,
        template=spec.dataset.template,
        split=spec.dataset.split,
        columns=dict(spec.dataset.columns or {}),
        max_invalid_rows=spec.dataset.max_invalid_rows,
        max_length=resolved.training.max_length if resolved else defaults.max_length,
        packing=resolved.training.packing if resolved else False,
        min_sequences=sequences_to_pack(resolved.training.epochs) if resolved and _may_stay_alone(spec) else 0,
        loss=spec.training.loss,
        seed=spec.training.seed,
        evaluation_root=own.root if own else None,
        evaluation_path=own.pattern if own else "",
        evaluation_split=evaluation.split if evaluation else None,
        evaluation_fraction=float(evaluation.fraction)
        if evaluation and evaluation.fraction is not None
        else defaults.evaluation_fraction,
    )


def _may_stay_alone(spec: LoRAJobSpec) -> bool:
    """Say whether nobody asks for packing, nor for a number of steps that would be the same without it."""
    return spec.training.packing is None and spec.training.max_steps is None
