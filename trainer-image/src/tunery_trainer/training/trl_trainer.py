"""The training loop; beside `head` the only module that calls TRL, whose interface changes monthly."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedTokenizerBase, PrinterCallback, TrainerCallback
from transformers.integrations.neftune import deactivate_neftune
from trl import SFTConfig, SFTTrainer

from tunery_api.training import Optimizer, Precision, Scheduler
from tunery_trainer.adapter.methods.base import Hooks
from tunery_trainer.losses.lm_head import add_head, autocast
from tunery_trainer.losses.objectives import Batch, Objective, Sft, Tally
from tunery_trainer.model.attention import computes_by_example
from tunery_trainer.model.collator import Collator
from tunery_trainer.model.quantization import dtype_of
from tunery_trainer.resuming.memo import PassSplit
from tunery_trainer.settings.types import TrainingSettings
from tunery_trainer.training.callbacks import EvaluationCallback
from tunery_trainer.training.row_order import order_of

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
WEIGHTS_FILE: Final = "trainable.safetensors"
"""The adapter in a checkpoint: every parameter that is not the base's, under its full name, in its own type."""

Compare = Callable[[list[Batch], PassSplit | None], list[Batch]]
"""Adds `reference` to the batches of an optimizer step, in passes as small as memory has made those of training."""
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


@dataclass(frozen=True)
class LoopParts:
    """What the loop works with."""

    rows: Any
    """A datasets.Dataset with input_ids, labels and, if packed, seq_lengths; beside them what the objective wants."""
    tokenizer: PreTrainedTokenizerBase
    folder: Path
    """Where checkpoints are written."""
    held_out: Callable[[int], dict[str, float]] | None
    """Measures `loss`, and a preference task's rewards, on the held-out rows after so many steps."""
    hooks: Hooks | None = None
    objective: Objective = field(default_factory=Sft)
    compared: Compare | None = None
    """None: the objective has no reference."""


def sft_config(loop: LoopSettings, folder: Path) -> SFTConfig:
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
        gradient_accumulation_steps=training.gradient_accumulation,
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


class AdapterTrainer(SFTTrainer):  # type: ignore[misc]  # TRL is not typed for us
    """SFTTrainer on ready-made rows, with the method's hooks, our evaluation, and exact checkpoints."""

    waited = 0.0
    """Seconds until the rows of all steps were there."""
    padding: torch.Tensor | int = 0
    """Tokens of the newest step that are padding; on the device, where nobody has asked yet."""

    def __init__(self, model: torch.nn.Module, loop: LoopSettings, parts: LoopParts) -> None:
        before = {name: parameter.data for name, parameter in model.named_parameters() if parameter.requires_grad}
        self._hooks = parts.hooks
        self._held_out = parts.held_out
        self._objective = self._at = parts.objective
        self._compared = parts.compared
        self._tally = Tally()
        self._precision = loop.training.precision
        self.tokens_seen = 0
        self.settings = loop.training
        """As they are now: of smaller passes than at first where memory ran out."""
        self.split: PassSplit | None = None
        """What memory has made of the passes; None: they are as planned."""
        self.in_pass = False
        """A forward or backward pass is under way, or was cut off."""
        self.lr_scheduler: Any
        self.optimizer: Any
        collate = Collator(int(parts.tokenizer.pad_token_id), by_example=computes_by_example(model))
        super().__init__(
            model=model,
            args=sft_config(loop, parts.folder),
            train_dataset=parts.rows,
            processing_class=parts.tokenizer,
            data_collator=parts.objective.collator(collate, parts.rows),
            callbacks=[_IntervalsCallback(), EvaluationCallback(loop.evaluated_after, self.evaluate)],
        )
        self.remove_callback(PrinterCallback)
        if self._hooks:
            self.add_callback(_HooksCallback(self._hooks))
        # TRL casts the adapter of a quantised base to bfloat16, whose steps are wider than what a late step changes:
        # IA3's vectors froze at half-time, and QLoRA learned less (decision 35).
        for name, parameter in model.named_parameters():
            if name in before:
                parameter.data = before[name]
        add_head(model)
        if loop.training.precision is not Precision.FLOAT32:
            _leave_inputs_alone(model)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return the objective's mean loss plus the method's own term.

        Without what TRL's computes beside it for its log: entropy and accuracy of each token.
        """
        outcome = self._at.outcome(model, inputs)
        counts = self._at.counts(inputs).sum(0) if num_items_in_batch is None else num_items_in_batch
        loss = (outcome.sums / counts.clamp(min=1)).sum()
        if outcome.rewards:
            self._tally.add(outcome)
        extra = self._hooks.extra_loss(self.model) if self._hooks and self.model.training else None
        if extra is None:
            return loss
        # With num_items_in_batch the Trainer leaves the mean over accumulated batches to the loss.
        return loss + extra / (self.current_gradient_accumulation_steps if num_items_in_batch is not None else 1)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Batch], torch.Tensor | None]:
        """Return the batches of an optimizer step, and what its loss is the mean over, however they are split."""
        began = time.monotonic()
        batches, _ = super().get_batch_samples(*args, **kwargs)
        self.waited += time.monotonic() - began
        masks = [batch["attention_mask"] for batch in batches if "attention_mask" in batch]
        self.padding = sum((mask.numel() - mask.sum() for mask in masks), start=0)
        if not batches:
            return batches, None
        self.in_pass = True
        if self._compared:
            batches = self._compared(batches, self.split)
        with autocast(self.args.device, dtype_of(self._precision)):
            self._at = self._objective.at(self.model, batches)
        self.in_pass = False
        counts = [self._objective.counts(batch).sum(0) for batch in batches]
        return batches, torch.stack(counts).sum(0).to(self.args.device)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, beside the training loss, what the model has preferred in training since the last time."""
        if "loss" in logs:
            logs |= self._tally.rewards()
            self._tally = Tally()
        super().log(logs, start_time)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return order_of(self.train_dataset, self.settings)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Make the schedule such that the rate is above 0 at every step: transformers' begins and ends with 0 rates.

        Its curve over one step more, from its second point on.
        """
        if self.lr_scheduler is None:
            inner = super().create_scheduler(num_training_steps + 1, optimizer)
            self.lr_scheduler = LambdaLR(inner.optimizer, [_shifted(rate) for rate in inner.lr_lambdas])
        return self.lr_scheduler

    def training_step(self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Count the tokens, and do one forward and backward pass."""
        self.tokens_seen += inputs["input_ids"].numel()
        self.in_pass = True
        loss: torch.Tensor = super().training_step(model, inputs, *args, **kwargs)
        self.in_pass = False
        return loss

    def save_now(self) -> Path:
        """Write a checkpoint of the last finished optimizer step, hand it on, and return its folder.

        Of a step that was cut off nothing stays: weights and moments change at its end only.
        """
        self.model.zero_grad(set_to_none=True)
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        # Files that are there may be linked by an upload: they are replaced, not written over.
        shutil.rmtree(folder, ignore_errors=True)
        self._save_checkpoint(self.model, None)
        self.callback_handler.on_save(self.args, self.state, self.control)
        return folder

    def shrink(self, training: TrainingSettings, reason: str) -> Path:
        """Take smaller passes from now on, and return the checkpoint that the next `train` goes on from.

        `training` has the same rows in an optimizer step, or other batches would be skipped.
        """
        self.in_pass, self.settings = False, training
        self.split = PassSplit(
            batch_size=training.batch_size,
            gradient_accumulation=training.gradient_accumulation,
            gradient_checkpointing=training.gradient_checkpointing,
            reason=reason,
        )
        folder = self.save_now()
        # `train` makes them anew, from the checkpoint.
        self.optimizer = self.lr_scheduler = self.callback_handler.optimizer = self.callback_handler.lr_scheduler = None
        if self.neftune_noise_alpha is not None:
            deactivate_neftune(self.model, self.neftune_hook_handle, self.accelerator)
        self._train_batch_size = self.args.per_device_train_batch_size = training.batch_size
        self.args.gradient_accumulation_steps = training.gradient_accumulation
        if training.gradient_checkpointing and not self.args.activation_checkpointing:
            self.args.activation_checkpointing = self.args.gradient_checkpointing = True
            self.args.activation_checkpointing_kwargs = {"use_reentrant": False}
            self.model.enable_input_require_grads()
        return folder

    def evaluate(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> dict[str, float]:
        """Return and log how the model does on the held-out rows, measured as before and after training."""
        if self._held_out is None:
            return {}
        found = self._held_out(self.state.global_step)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        # Bypass TRL's log(), which mixes its running training metrics in.
        super(SFTTrainer, self).log(dict(metrics))
        # on_evaluate changes the control in place, and returns it.
        self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the trained weights for a resume; publishing is not this class's business."""
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(trained_state(self.model), folder / WEIGHTS_FILE)
        if self._hooks:
            torch.save(self._hooks.state(), folder / "hooks.pt")

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        # Bypass TRL, which would write a model card into every checkpoint.
        super(SFTTrainer, self)._save_checkpoint(model, trial)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Take the moments and the step of a checkpoint, and keep the rates and the decay of this run.

        Those in a checkpoint are the same, but where it is another run's, of a job that had others.
        """
        fresh = [{name: value for name, value in group.items() if name != "params"} for group in self._groups()]
        super()._load_optimizer_and_scheduler(checkpoint)
        for group, settings in zip(self._groups(), fresh, strict=True):
            group.update(settings)
        schedule = self.lr_scheduler
        schedule.base_lrs = [group["initial_lr"] for group in self._groups()]
        for group, base, rate in zip(self._groups(), schedule.base_lrs, schedule.lr_lambdas, strict=True):
            group["lr"] = base * rate(schedule.last_epoch)
        schedule._last_lr = [group["lr"] for group in self._groups()]

    def _groups(self) -> list[dict[str, Any]]:
        groups: list[dict[str, Any]] = self.optimizer.param_groups
        return groups

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        load_trained(self.model, Path(resume_from_checkpoint), self._hooks)


def _shifted(rate: Callable[[int], float]) -> Callable[[int], float]:
    return lambda step: rate(step + 1)


def _leave_inputs_alone(model: torch.nn.Module) -> None:
    """Keep PEFT from copying each layer's input to the adapter's float32: autocast would take it back at once."""
    for module in model.modules():
        if isinstance(module, BaseTunerLayer) and hasattr(module, "cast_input_dtype_enabled"):
            module.cast_input_dtype_enabled = False


class _IntervalsCallback(TrainerCallback):  # type: ignore[misc]  # transformers is not typed for us
    """Logs as this run asks: transformers takes its intervals from the state in a checkpoint."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Set them anew, once that state is loaded."""
        state.compute_steps(args, state.max_steps)


class _HooksCallback(TrainerCallback):  # type: ignore[misc]
    """Calls `after_step`, which nobody else would."""

    def __init__(self, hooks: Hooks) -> None:
        self._after_step = hooks.after_step

    def on_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Run between the optimizer's step and the clearing of the gradients."""
        self._after_step(model, state.global_step + 1)


def trained_state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return every parameter that training changes or that a method steers (AdaLoRA's rank counts), by full name."""
    return {
        name: parameter.detach().to("cpu").contiguous().clone()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad or "ranknum" in name
    }


def put_state(model: torch.nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Put back what `trained_state` returned; raises KeyError when it is of another adapter."""
    parameters = dict(model.named_parameters())
    for name, saved in state.items():
        parameter = parameters[name]
        parameter.data = saved.to(parameter.device, copy=True)


def load_trained(model: torch.nn.Module, checkpoint: Path, hooks: Hooks | None) -> None:
    """Put the weights of a checkpoint back, in the type they were trained in, so that a resume is exact.

    Raises KeyError when the checkpoint is of another adapter.
    """
    put_state(model, load_file(checkpoint / WEIGHTS_FILE))
    if hooks and (checkpoint / "hooks.pt").exists():
        hooks.load_state(torch.load(checkpoint / "hooks.pt", weights_only=True, map_location="cpu"))
