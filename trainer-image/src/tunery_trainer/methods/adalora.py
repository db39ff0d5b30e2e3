"""AdaLoRA (Zhang et al. 2023): ranks are pruned while training, and the factors kept orthogonal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch
from peft import AdaLoraConfig, PeftModel
from transformers import PreTrainedModel

from tunery_api.reasons import FailureReason
from tunery_trainer.errors import TrainerError
from tunery_trainer.methods.base import MethodParts, Start
from tunery_trainer.methods.initialization import ADAPTER
from tunery_trainer.methods.lora import common_options
from tunery_trainer.resolved import AdaLoraSettings, Resolved
from tunery_trainer.targets import resolve_targets

ORTHOGONALITY_WEIGHT: Final = 0.5
"""PEFT's default; the paper uses 0.1 to 0.5."""


@dataclass(frozen=True)
class Schedule:
    """When ranks are pruned, in optimizer steps."""

    warmup: int
    final: int
    every: int


def schedule(settings: AdaLoraSettings, total_steps: int) -> Schedule:
    """Return the steps of each phase: as asked, else a tenth before, a third after, a hundred prunings between.

    Raises TrainerError(InvalidSpec) when nothing is left between the first and the last phase.
    """
    warmup = total_steps // 10 if settings.warmup_steps is None else settings.warmup_steps
    final = total_steps // 3 if settings.final_steps is None else settings.final_steps
    every = max(1, total_steps // 100) if settings.update_every_steps is None else settings.update_every_steps
    if warmup >= total_steps - final:
        raise TrainerError(
            FailureReason.INVALID_SPEC,
            f"spec.adalora: warmupSteps ({warmup}) and finalSteps ({final}) leave none of the {total_steps} steps to "
            "prune in; lower them, or train longer",
        )
    return Schedule(warmup, final, every)


def adalora_config(model: PreTrainedModel, resolved: Resolved, start: Start) -> AdaLoraConfig:
    """Return PEFT's configuration; raises TrainerError(InvalidSpec) for names or a schedule that cannot be."""
    settings = resolved.adalora
    if settings is None:
        raise ValueError("AdaLoRA needs its settings")
    steps = schedule(settings, start.total_steps)
    targets = resolve_targets(model, resolved.adapter.target_modules or ("all-linear",))
    return AdaLoraConfig(
        init_r=settings.initial_rank,
        target_r=settings.target_rank,
        tinit=steps.warmup,
        tfinal=steps.final,
        deltaT=steps.every,
        total_step=start.total_steps,
        orth_reg_weight=ORTHOGONALITY_WEIGHT,
        target_modules=list(targets),
        **common_options(model, resolved, targets),
    )


def _freeze_rank_counts(model: PeftModel, resolved: Resolved, start: Start) -> None:
    """Undo what PEFT does on a base in bfloat16: its cast to float32 makes the counts of ranks trainable."""
    for name, parameter in model.named_parameters():
        if "ranknum" in name:
            parameter.requires_grad = False


class AdaLoraHooks:
    """The half of AdaLoRA that a training loop must do itself: the orthogonality term, and the pruning."""

    def __init__(self, model: PeftModel) -> None:
        self._tuner = model.base_model

    def extra_loss(self, model: torch.nn.Module) -> torch.Tensor | None:
        """Return the weighted mean of ||A A' - I|| and ||B' B - I|| over all layers, a scalar in float32."""
        terms = [
            torch.linalg.matrix_norm(_gram(name, parameter) - torch.eye(min(parameter.shape), device=parameter.device))
            for name, parameter in model.named_parameters()
            if f"lora_A.{ADAPTER}" in name or f"lora_B.{ADAPTER}" in name
        ]
        return ORTHOGONALITY_WEIGHT * torch.stack(terms).mean()

    def after_step(self, model: torch.nn.Module, step: int) -> None:
        """Weigh each triplet by the gradients of step number `step` (from 1), and prune when it is time."""
        self._tuner.update_and_allocate(step)

    def state(self) -> dict[str, Any]:
        """Return the smoothed importances and the ranks so far."""
        allocator = self._tuner.rankallocator
        return {
            "sensitivity": dict(allocator.exp_avg_ipt),
            "uncertainty": dict(allocator.exp_avg_unc),
            "rank_pattern": self._tuner.peft_config[ADAPTER].rank_pattern,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what `state` returned, on the adapter's device."""
        allocator = self._tuner.rankallocator
        device = next(self._tuner.parameters()).device
        allocator.exp_avg_ipt = {name: tensor.to(device) for name, tensor in state["sensitivity"].items()}
        allocator.exp_avg_unc = {name: tensor.to(device) for name, tensor in state["uncertainty"].items()}
        # PEFT fills the momentary importance before it reads it, but asks here whether a weight is known.
        allocator.ipt = {name: torch.zeros_like(tensor) for name, tensor in allocator.exp_avg_ipt.items()}
        self._tuner.peft_config[ADAPTER].rank_pattern = state["rank_pattern"]


def _gram(name: str, parameter: torch.Tensor) -> torch.Tensor:
    factor = parameter.float()
    return factor @ factor.T if "lora_A" in name else factor.T @ factor


ADALORA: Final = MethodParts(config=adalora_config, begin=_freeze_rank_counts, hooks=AdaLoraHooks)
