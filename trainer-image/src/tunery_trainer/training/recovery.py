"""What is done where a pass runs out of memory: fewer rows at once, then activations recomputed, the same steps."""

from __future__ import annotations

import dataclasses
import gc
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch

from tunery_api.methods import Method
from tunery_api.reasons import FailureReason
from tunery_api.redact import shorten
from tunery_api.remedies import Remedy, recreate
from tunery_api.status import ResolvedValue
from tunery_api.training import OnOutOfMemory
from tunery_common.errors import TuneryError, first_line
from tunery_trainer.process.device import MAX_CAUSE, out_of_memory
from tunery_trainer.process.memory import nothing_hoarded
from tunery_trainer.reporting.progress import say
from tunery_trainer.resuming.memo import PassSplit
from tunery_trainer.settings.decisions import text_of
from tunery_trainer.settings.types import RunSettings, SettingSource, TrainingSettings

if TYPE_CHECKING:
    from tunery_trainer.training.trl_trainer import AdapterTrainer

_FIELDS: Final = {
    "training.batchSize": "batch_size",
    "training.gradientAccumulation": "gradient_accumulation",
    "training.gradientCheckpointing": "gradient_checkpointing",
}


def smaller(training: TrainingSettings, *, recomputable: bool) -> TrainingSettings | None:
    """Return settings whose optimizer steps see the same rows with less memory; None where there are none.

    First the rows of a pass, by the largest divisor up to half of them; where it is one, activations are recomputed.
    """
    rows = training.batch_size
    if rows > 1:
        part = next(size for size in range(rows // 2, 0, -1) if rows % size == 0)
        accumulation = training.gradient_accumulation * (rows // part)
        return dataclasses.replace(training, batch_size=part, gradient_accumulation=accumulation)
    if recomputable and not training.gradient_checkpointing:
        return dataclasses.replace(training, gradient_checkpointing=True)
    return None


def with_split(resolved: RunSettings, split: PassSplit | None) -> RunSettings:
    """Return `resolved` with the passes of `split`, each changed value with its reason.

    Unchanged where `split` is None, is of steps of other rows, takes no less memory than what is resolved already, or
    was made on other devices, and these cannot share its passes.
    """
    training = resolved.training
    if split is None or split.rows != training.batch_size * training.gradient_accumulation:
        return resolved
    if split.gradient_accumulation % training.devices:
        return resolved
    recomputes = split.gradient_checkpointing or training.gradient_checkpointing
    if split.batch_size >= training.batch_size and recomputes == training.gradient_checkpointing:
        return resolved
    passes = training if split.batch_size >= training.batch_size else split
    adjusted = dataclasses.replace(
        training,
        batch_size=passes.batch_size,
        gradient_accumulation=passes.gradient_accumulation,
        gradient_checkpointing=recomputes,
    )
    values = tuple(_noted(value, adjusted, split.reason) for value in resolved.values)
    return dataclasses.replace(resolved, training=adjusted, values=values)


def _noted(value: ResolvedValue, training: TrainingSettings, reason: str) -> ResolvedValue:
    text = text_of(getattr(training, _FIELDS[value.name])) if value.name in _FIELDS else value.value
    if text == value.value:
        return value
    return value.model_copy(update={"value": text, "source": SettingSource.MEMORY.value, "reason": reason})


def train_to_the_end(trainer: AdapterTrainer, checkpoint: Path | None, method: Method) -> None:
    """Train from `checkpoint`, with fewer rows at once whenever memory runs out in a pass.

    No step is lost, and none is taken with half its rows: weights and moments are those after the last finished
    optimizer step, which is where it goes on, from a checkpoint that remembers the smaller passes. The gradient of a
    step stays the same, as its loss is a sum over the tokens of all its passes; dropout draws other numbers.
    Raises TuneryError(GPUOutOfMemory, OutOfMemory) where one row does not fit with its activations recomputed, or
    nothing of it is wanted.
    """
    while (cause := _attempt(trainer, checkpoint)) is not None:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        before = trainer.settings
        wanted = before.on_out_of_memory is OnOutOfMemory.HALVE_BATCH
        training = smaller(before, recomputable=method is not Method.PREFIX_TUNING) if wanted else None
        if training is None:
            if trainer.state.global_step:
                trainer.save_now()
            raise _nothing_helps(trainer, method, cause) if wanted else _unwanted(trainer, cause)
        reason = f"memory ran out with {_told(before)} at step {trainer.state.global_step + 1}"
        say(f"Memory     {reason}: going on with {_told(training)} ({cause})")
        checkpoint = trainer.shrink(training, reason)


def _attempt(trainer: AdapterTrainer, checkpoint: Path | None) -> str | None:
    """Train, and return None; or what was said as memory ran out in a pass, once its tensors are let go.

    Where the base is spread, the other processes are in that pass still, and cannot be met anywhere else: the run ends.
    """
    # Memory is saved at the cost of time here, and the holes that freed activations leave would take back most of it.
    saving = trainer.settings.gradient_checkpointing and not torch.cuda.is_available()
    try:
        with nothing_hoarded() if saving else nullcontext():
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except (RuntimeError, MemoryError) as error:
        if not (trainer.in_pass and out_of_memory(error)):
            raise
        cause = first_line(error, MAX_CAUSE)
        if trainer.settings.sharded:
            raise _in_parts(trainer, cause) from error
        return cause
    return None


def _told(training: TrainingSettings) -> str:
    again = ", activations recomputed" if training.gradient_checkpointing else ""
    return f"{training.batch_size} × {training.gradient_accumulation} rows{again}"


def _unwanted(trainer: AdapterTrainer, cause: str) -> TuneryError:
    text = f" at step {trainer.state.global_step + 1}, {_told(trainer.settings)}: {cause}"
    fix = "Omit training.onOutOfMemory: Fail, or lower training.batchSize"
    if trainer.state.global_step:
        fix += "; to continue from the last finished step, set resumeFrom"
    return _ran_out(text, recreate(fix, "training.onOutOfMemory", "training.batchSize"))


def _in_parts(trainer: AdapterTrainer, cause: str) -> TuneryError:
    before = trainer.settings
    text = f" at step {trainer.state.global_step + 1}, {_told(before)}, with the base spread over the devices: {cause}"
    several = before.batch_size > 1
    fix = f"Set training.batchSize below {before.batch_size}" if several else "Lower training.maxLength"
    fix += ", or request GPUs with more memory"
    if trainer.state.global_step:
        fix += "; to continue from the newest checkpoint, set resumeFrom"
    return _ran_out(text, recreate(fix, "training.batchSize" if several else "training.maxLength"))


def _nothing_helps(trainer: AdapterTrainer, method: Method, cause: str) -> TuneryError:
    training, step = trainer.settings, trainer.state.global_step + 1
    text = f": not even one row of up to {training.max_length} tokens fits at step {step}, {_told(training)}: {cause}"
    if not torch.cuda.is_available():
        return _ran_out(text)
    quantised = {Method.LORA: "use method: QLoRA, ", Method.DORA: "use method: QDoRA, "}.get(method, "")
    fix = f"Lower training.maxLength below {training.max_length}, {quantised}or request a GPU with more memory"
    return _ran_out(text, recreate(fix, "training.maxLength", *(["method"] if quantised else [])))


def _ran_out(text: str, *remedies: Remedy) -> TuneryError:
    """Return the failure of the GPU, where there is one, else of the process."""
    on_gpu = torch.cuda.is_available()
    reason = FailureReason.GPU_OUT_OF_MEMORY if on_gpu else FailureReason.OUT_OF_MEMORY
    what = "the GPU ran out of memory" if on_gpu else "memory ran out"
    return TuneryError(reason, shorten(f"{what}{text}", 900), *remedies)
