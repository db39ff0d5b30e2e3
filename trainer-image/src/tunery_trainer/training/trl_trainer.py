"""The training loop; beside `head` the only module that calls TRL, whose interface changes monthly."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedTokenizerBase, PrinterCallback, TrainerCallback
from transformers.integrations.neftune import deactivate_neftune
from trl import SFTTrainer

from tunery_api.training import Precision
from tunery_trainer.adapter.methods.base import Hooks
from tunery_trainer.losses.lm_head import add_head, autocast
from tunery_trainer.losses.objectives import IDLE, Batch, Objective, Sft, Tally, is_idle
from tunery_trainer.model.attention import computes_by_example
from tunery_trainer.model.collator import Collator
from tunery_trainer.model.quantization import dtype_of
from tunery_trainer.resuming.memo import PassSplit
from tunery_trainer.settings.types import TrainingSettings
from tunery_trainer.team.team import ALONE, Team
from tunery_trainer.training.callbacks import EvaluationCallback
from tunery_trainer.training.row_order import Share, order_of
from tunery_trainer.training.shared_steps import SharedSteps
from tunery_trainer.training.trl_config import LoopSettings, sft_config
from tunery_trainer.training.weights import WEIGHTS_FILE, load_trained, trained_state

_RANDOM_FILE: Final = "rng_state.pth"
"""transformers' name for it in a checkpoint of one process; the leader's."""

Compare = Callable[[list[Batch], PassSplit | None], list[Batch]]
"""Adds `reference` to the batches of an optimizer step, in passes as small as memory has made those of training."""


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
    team: Team = ALONE


class AdapterTrainer(SFTTrainer):  # type: ignore[misc]  # TRL is not typed for us
    """SFTTrainer on ready-made rows, with the method's hooks, our evaluation, and exact checkpoints."""

    waited = 0.0
    """Seconds until the rows of all steps were there."""
    padding: torch.Tensor | int = 0
    """Tokens of the newest step that are padding; on the device, where nobody has asked yet."""

    in_pass = False
    """A forward or backward pass is under way, or was cut off."""
    _share: Share | None = None
    """The rows of this process; None: all of them are."""
    _passes = 0
    """Of the newest step, in all processes together."""

    def __init__(self, model: torch.nn.Module, loop: LoopSettings, parts: LoopParts) -> None:
        before = {name: parameter.data for name, parameter in model.named_parameters() if parameter.requires_grad}
        self._hooks = parts.hooks
        self._held_out = parts.held_out
        self._objective = self._at = parts.objective
        self._compared = parts.compared
        self._tally = Tally()
        self._team = parts.team
        self._steps = SharedSteps(parts.team, lambda: filter(_is_trained, model.parameters()))
        self._precision = loop.training.precision
        self.tokens_seen = 0
        self.settings = loop.training
        """As they are now: of smaller passes than at first where memory ran out."""
        self.split: PassSplit | None = None
        """What memory has made of the passes; None: they are as planned."""
        self.lr_scheduler: Any
        self.optimizer: Any
        collate = Collator(int(parts.tokenizer.pad_token_id), by_example=computes_by_example(model))
        super().__init__(
            model=model,
            args=sft_config(loop, parts.folder, parts.team),
            train_dataset=parts.rows,
            processing_class=parts.tokenizer,
            data_collator=parts.objective.collator(collate, parts.rows),
            callbacks=[
                _EpochCallback(lambda: self._share),
                _IntervalsCallback(),
                EvaluationCallback(loop.evaluated_after, self.evaluate),
            ],
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
        idle = inputs.pop(IDLE, False)
        outcome = self._at.outcome(model, inputs)
        counts = self._at.counts(inputs).sum(0) if num_items_in_batch is None else num_items_in_batch
        loss = (outcome.sums / counts.clamp(min=1)).sum()
        if idle:
            return 0 * loss
        self._tally.add(outcome)
        extra = self._hooks.extra_loss(self.model) if self._hooks and self.model.training else None
        if extra is None:
            return loss
        # With num_items_in_batch the Trainer leaves the mean over accumulated batches to the loss.
        return loss + extra / (self._passes if num_items_in_batch is not None else 1)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Batch], torch.Tensor | None]:
        """Return the batches of an optimizer step, and what its loss is the mean over, however they are split."""
        began = time.monotonic()
        batches, _ = super().get_batch_samples(*args, **kwargs)
        self.waited += time.monotonic() - began
        if not batches:
            return batches, None
        if self._share and self._share.idles and self.accelerator.gradient_state.end_of_dataloader:
            batches[-1] = {**batches[-1], IDLE: True}
        counted = [batch for batch in batches if not is_idle(batch)]
        self._count(counted)
        self.in_pass = True
        if self._compared:
            batches = self._compared(batches, self.split)
        taken = batches if self._team.sharded else batches[: len(counted)]
        with autocast(self.args.device, dtype_of(self._precision)):
            self._at = self._objective.at(self._steps.together(lambda: self._objective.totals(self.model, taken)))
        self.in_pass = False
        counts = torch.stack([self._objective.counts(batch).sum(0) for batch in batches])
        counts[len(counted) :] = 0
        return batches, self._team.add(counts.sum(0).to(self.args.device))

    def _count(self, batches: list[Batch]) -> None:
        """Note what a step is of, all processes together: passes, tokens, and how many of them are padding."""
        self._steps.begin()
        tokens = sum(batch["input_ids"].numel() for batch in batches)
        self._passes, tokens = self._team.add(torch.tensor([len(batches), tokens])).tolist()
        self.tokens_seen += tokens
        masks = [batch["attention_mask"] for batch in batches if "attention_mask" in batch]
        padding = sum((mask.numel() - mask.sum() for mask in masks), start=torch.zeros((), device=self.args.device))
        self.padding = self._team.add(padding)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, beside the training loss, what the model has preferred in training since the last time."""
        if "loss" in logs:
            logs |= self._tally.rewards(self._team)
            self._tally = Tally()
        super().log(logs, start_time)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        order = order_of(self.train_dataset, self.settings)
        if self._team.alone:
            return order
        self._share = Share(order, self.settings.batch_size, self._team)
        return self._share

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Make the schedule such that the rate is above 0 at every step: transformers' begins and ends with 0 rates.

        Its curve over one step more, from its second point on.
        """
        if self.lr_scheduler is None:
            inner = super().create_scheduler(num_training_steps + 1, optimizer)
            self.lr_scheduler = LambdaLR(inner.optimizer, [_shifted(rate) for rate in inner.lr_lambdas])
        return self.lr_scheduler

    def training_step(self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Do one forward and backward pass; after the last one of a step its gradient is that of all processes.

        Several of them log the loss of a step with its last pass, so that each logs the same.
        """
        self.in_pass = True
        compute = partial(super().training_step, model, inputs, *args, **kwargs)
        if self._team.alone:
            loss: torch.Tensor = compute()
        else:
            self._steps.take(inputs, compute)
            last, device = self.accelerator.sync_gradients, self.args.device
            loss = self._steps.end(device) if last else torch.zeros((), device=device)
        self.in_pass = False
        return loss

    def save_now(self) -> Path:
        """Write a checkpoint of the last finished optimizer step, hand it on, and return its folder.

        Of a step that was cut off nothing stays: weights and moments change at its end only. Each process of a team has
        one of its own then.
        """
        self.model.zero_grad(set_to_none=True)
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        # Files that are there may be linked by an upload: they are replaced, not written over.
        shutil.rmtree(folder, ignore_errors=True)
        self._write_checkpoint()
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
        self.args.gradient_accumulation_steps = training.gradient_accumulation // self._team.world
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
        self._write_checkpoint(elsewhere=not self._team.leader)

    def _write_checkpoint(self, *, elsewhere: bool = False) -> None:
        """Write one for all processes: they differ in their random numbers alone. `elsewhere`: another one does it."""
        states = self._team.gather(self._random_numbers())
        if elsewhere:
            return
        # Bypass TRL, which would write a model card into every checkpoint.
        super(SFTTrainer, self)._save_checkpoint(self.model, None)
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        for rank, state in enumerate(states[1:], 1):
            (folder / _random_file(rank)).write_bytes(state)

    def _random_numbers(self) -> bytes:
        """Return where this process is in its random numbers, as transformers writes it."""
        if self._team.leader:
            return b""
        with TemporaryDirectory() as folder:
            self._save_rng_state(folder)
            return (Path(folder) / _RANDOM_FILE).read_bytes()

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Go on in this process's own random numbers, where a run of as many processes has kept them."""
        if checkpoint is None or self._team.leader:
            super()._load_rng_state(checkpoint)
            return
        stored = Path(checkpoint) / _random_file(self._team.rank)
        if stored.exists():
            with TemporaryDirectory() as folder:
                shutil.copy(stored, Path(folder) / _RANDOM_FILE)
                super()._load_rng_state(folder)

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


def _random_file(rank: int) -> str:
    """Return the name of another process's file: transformers' own for those of several processes."""
    return f"rng_state_{rank}.pth"


def _is_trained(parameter: torch.nn.Parameter) -> bool:
    return parameter.requires_grad


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


class _EpochCallback(TrainerCallback):  # type: ignore[misc]  # transformers is not typed for us
    """Tells how far an epoch is by the passes of all processes: the Trainer counts this one's, idle ones too."""

    def __init__(self, share: Callable[[], Share | None]) -> None:
        self._share = share

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Set it before anybody reads it."""
        share = self._share()
        if share is not None:
            state.epoch = share.epoch_of_all(state.epoch)


class _HooksCallback(TrainerCallback):  # type: ignore[misc]
    """Calls `after_step`, which nobody else would."""

    def __init__(self, hooks: Hooks) -> None:
        self._after_step = hooks.after_step

    def on_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Run between the optimizer's step and the clearing of the gradients."""
        self._after_step(model, state.global_step + 1)
