"""The rules of tasks: what DPO, ORPO and KTO learn from, what they look at, and what belongs to SFT alone."""

from __future__ import annotations

from collections.abc import Iterator

from tunery_api.adaptermerge import AdapterMergeSpec
from tunery_api.errors import FieldError
from tunery_api.fields import alias_of
from tunery_api.inputs import FORMATS_OF_TASK, DatasetFormat
from tunery_api.lorajob import LoRAJobSpec
from tunery_api.preference import PREFERENCE_TASKS, READ_OF_PREFERENCE, TrainingTask
from tunery_api.training import Loss

Errors = Iterator[FieldError]


def dataset_of_task(spec: LoRAJobSpec) -> Errors:
    """Each task has rows of its own kind."""
    task, name = spec.task, spec.dataset.format
    if name is not DatasetFormat.AUTO and name not in FORMATS_OF_TASK[task]:
        fitting = " or ".join(FORMATS_OF_TASK[task])
        yield FieldError("spec.dataset.format", f"{name} has no rows for task: {task}; use {fitting}, or leave it out")


def preference(spec: LoRAJobSpec) -> Errors:
    """Settings that the task looks at."""
    block, task = spec.preference, spec.task
    if block is None:
        return
    if task not in PREFERENCE_TASKS:
        yield FieldError("spec.preference", f"goes with task: DPO, ORPO or KTO, not {task}; set that, or leave it out")
        return
    for name in sorted({alias_of(block, name) for name in block.model_fields_set} - READ_OF_PREFERENCE[task]):
        yield FieldError(f"spec.preference.{name}", f"{task} has no such setting; leave it out")


def preference_loop(spec: LoRAJobSpec) -> Errors:
    """What belongs to SFT alone."""
    task, training = spec.task, spec.training
    if task not in PREFERENCE_TASKS:
        return
    if training.packing:
        yield FieldError(
            "spec.training.packing",
            f"{task} weighs whole answers, each in a row of its own; leave packing out or set it to false",
        )
    if training.loss is Loss.ALL:
        yield FieldError("spec.training.loss", f"is for task: SFT; {task} has a loss of its own; leave it out")
    if training.neftune_noise_alpha:
        yield FieldError(
            "spec.training.neftuneNoiseAlpha",
            f"{task} compares the model with what it was, which has no noise; leave it out",
        )
    if spec.preset is not None:
        yield FieldError("spec.preset", f"the guide's presets are for task: SFT, not {task}; leave it out")


def generation(spec: LoRAJobSpec) -> Errors:
    """An answer that can be asked for, and compared with the row's."""
    if spec.evaluation.generation is None:
        return
    if spec.task is not TrainingTask.SFT:
        yield FieldError("spec.evaluation.generation", f"is for task: SFT, not for {spec.task}; leave it out")
    elif spec.training.loss is Loss.ALL:
        yield FieldError(
            "spec.evaluation.generation",
            "needs questions and answers, which training.loss: All does not tell apart; keep one of the two",
        )


def merge_dataset(spec: AdapterMergeSpec) -> Errors:
    """A merge is measured by the loss on rows of SFT."""
    name = spec.evaluation.dataset.format if spec.evaluation else DatasetFormat.AUTO
    if name is not DatasetFormat.AUTO and name not in FORMATS_OF_TASK[TrainingTask.SFT]:
        fitting = ", ".join(FORMATS_OF_TASK[TrainingTask.SFT])
        yield FieldError("spec.evaluation.dataset.format", f"{name} has no loss to measure a merge by; use {fitting}")
