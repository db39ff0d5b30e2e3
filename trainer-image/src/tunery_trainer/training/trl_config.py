"""TRL's configuration of a run: every field that matters is set, whatever TRL's defaults are this month."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from trl import SFTConfig

from tunery_api.training import Optimizer, Precision, Scheduler
from tunery_trainer.settings.types import TrainingSettings
from tunery_trainer.team.team import ALONE, Team

_SCHEDULERS: Final = {
    Scheduler.COSINE: "cosine",
    Scheduler.LINEAR: "linear",
    Scheduler.CONSTANT: "constant_with_warmup",
    Scheduler.POLYNOMIAL: "polynomial",
    Scheduler.INVERSE_SQRT: "inverse_sqrt",
}
_OPTIMIZERS: Final = {
    Optimizer.ADAMW: "adamw_torch",
    Optimizer.ADAMW_8BIT: "adamw_bnb_8bit",
    Optimizer.PAGED_ADAMW_32BIT: "paged_adamw_32bit",
    Optimizer.PAGED_ADAMW_8BIT: "paged_adamw_8bit",
}
_LOGGED_POINTS: Final = 1000
"""Points of a loss curve that are enough for a picture, and do not swell the checkpoints of a long run."""


@dataclass(frozen=True)
class LoopSettings:
    """The resolved training settings, and what the run itself adds to them."""

    training: TrainingSettings
    total_steps: int
    keep_checkpoints: int
    on_gpu: bool
    evaluated_after: frozenset[int] = frozenset()
    """The steps after which the held-out rows are measured while training."""


def sft_config(loop: LoopSettings, folder: Path, team: Team = ALONE) -> SFTConfig:
    """Return TRL's configuration with every field that matters set, whatever TRL's defaults are this month."""
    training = loop.training
    return SFTConfig(
        output_dir=str(folder),
        num_train_epochs=training.epochs or 1.0,
        max_steps=training.max_steps or -1,
        learning_rate=training.learning_rate,
        lr_scheduler_type=_SCHEDULERS[training.scheduler],
        warmup_steps=training.warmup if training.warmup < 1 else int(training.warmup),
        per_device_train_batch_size=training.batch_size,
        per_device_eval_batch_size=training.batch_size,
        gradient_accumulation_steps=training.gradient_accumulation // team.world,
        train_sampling_strategy="group_by_length" if training.group_by_length else "random",
        optim=_optimizer(training),
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        bf16=training.precision is Precision.BFLOAT16,
        fp16=training.precision is Precision.FLOAT16,
        use_cpu=not loop.on_gpu,
        gradient_checkpointing=training.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if training.gradient_checkpointing else None,
        neftune_noise_alpha=training.neftune_noise_alpha,
        seed=training.seed,
        data_seed=training.seed,
        logging_strategy="steps",
        logging_steps=max(1, loop.total_steps // _LOGGED_POINTS),
        logging_nan_inf_filter=False,
        # EvaluationCallback asks for evaluations.
        eval_strategy="no",
        prediction_loss_only=True,
        save_strategy="no",
        # Those of preference tasks are not the model's arguments: the objective knows them.
        remove_unused_columns=False,
        save_total_limit=loop.keep_checkpoints,
        enable_jit_checkpoint=False,
        dataloader_pin_memory=loop.on_gpu,
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
        packing=False,
        padding_free=False,
        completion_only_loss=False,
        assistant_only_loss=False,
        pad_to_multiple_of=None,
        loss_type="nll",
        # Balances a mixture's routers, which are frozen; and fails where a configuration has no `num_experts`.
        router_aux_loss_coef=0.0,
        torch_compile=False,
        report_to=[],
        disable_tqdm=True,
        push_to_hub=False,
    )


def _optimizer(training: TrainingSettings) -> str:
    """Return transformers' name; one kernel for all parameters, but where a gradient scaler must see skipped steps."""
    if training.optimizer is Optimizer.ADAMW and training.precision is not Precision.FLOAT16:
        return "adamw_torch_fused"
    return _OPTIMIZERS[training.optimizer]
