"""AdaLoRA (Zhang et al. 2023): ranks are pruned while training, and the factors kept orthogonal."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Final
from unittest.mock import patch

import torch
from peft import AdaLoraConfig, LoraConfig, PeftModel
from torch.nn.functional import pad
from transformers import PreTrainedModel

from tunery_api.reasons import FailureReason
from tunery_common.errors import TuneryError
from tunery_trainer.adapter.methods.base import MethodContext, TrainingMethod
from tunery_trainer.adapter.methods.lora import common_options
from tunery_trainer.adapter.methods.lora_init import ADAPTER, lora_layers
from tunery_trainer.model.targets import lora_targets
from tunery_trainer.settings.types import AdaLoraSettings, RunSettings

ORTHOGONALITY_WEIGHT: Final = 0.5
"""PEFT's default; the paper uses 0.1 to 0.5."""


PEFT_EPSILON: Final = 1e-5
"""PEFT divides the scaling by the rank plus this much."""
_TRIPLET: Final = (".lora_A", ".lora_B", ".lora_E")
_COMMON: Final = ("task_type", "target_modules", "modules_to_save", "bias", "fan_in_fan_out")
"""Fields that mean the same in both configurations."""


@dataclass(frozen=True)
class Schedule:
    """When ranks are pruned, in optimizer steps."""

    warmup: int
    final: int
    every: int


def schedule(settings: AdaLoraSettings, total_steps: int) -> Schedule:
    """Return the steps of each phase: as asked, else a tenth before, a third after, a hundred prunings between.

    Raises TuneryError(InvalidSpec) when nothing is left between the first and the last phase.
    """
    warmup = total_steps // 10 if settings.warmup_steps is None else settings.warmup_steps
    final = total_steps // 3 if settings.final_steps is None else settings.final_steps
    every = max(1, total_steps // 100) if settings.update_every_steps is None else settings.update_every_steps
    if warmup >= total_steps - final:
        raise TuneryError(
            FailureReason.INVALID_SPEC,
            f"spec.adalora: warmupSteps ({warmup}) and finalSteps ({final}) leave none of the {total_steps} steps to "
            "prune in; lower them, or train longer",
        )
    return Schedule(warmup, final, every)


def adalora_config(model: PreTrainedModel, resolved: RunSettings, start: MethodContext) -> AdaLoraConfig:
    """Return PEFT's configuration; raises TuneryError(InvalidSpec) for names or a schedule that cannot be."""
    settings = resolved.adalora
    if settings is None:
        raise ValueError("AdaLoRA needs its settings")
    steps = schedule(settings, start.total_steps)
    # As LoRA takes them, which is what it is published as: PEFT's LoRA reads some names in a mixture as its experts'.
    targets, _ = lora_targets(model, resolved.adapter.target_modules or ("all-linear",), experts=False)
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


def _freeze_rank_counts(model: PeftModel, resolved: RunSettings, start: MethodContext) -> None:
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
        """Weigh each triplet by the gradients of step number `step` (from 1), and prune when it is time.

        Gradients that overflowed, as the first ones in Float16 do, weigh nothing: one of them would make the smoothed
        importance NaN for good. The optimizer has left that step out, too.
        """
        weigh: AbstractContextManager[Any] = (
            nullcontext() if _finite(model) else patch.object(self._tuner.rankallocator, "update_ipt")
        )
        with weigh:
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


def largest_rank(model: PeftModel) -> int:
    """Return the most triplets that a layer has left; at least 1."""
    return max([int(layer.lora_E[ADAPTER].count_nonzero()) for _, layer in lora_layers(model)] + [1])


def plain_lora(
    model: PeftModel, config: AdaLoraConfig, tensors: Mapping[str, torch.Tensor]
) -> tuple[LoraConfig, dict[str, torch.Tensor]]:
    """Return the plain LoRA of the same effect: its configuration, and `tensors` by the names of PEFT's state dict.

    Pruned triplets are left out, singular values and scaling stand in B, and each layer is filled up with zeros to the
    largest rank: servers read one rank for all layers.
    """
    rank = largest_rank(model)
    plain = {name: tensor for name, tensor in tensors.items() if not name.endswith(_TRIPLET)}
    for path, layer in lora_layers(model):
        a, e, b = (getattr(layer, part)[ADAPTER].detach().float().cpu() for part in ("lora_A", "lora_E", "lora_B"))
        kept = e[:, 0] != 0
        # As PEFT's forward: by the rank that training began with, whatever was pruned since.
        factor = e[kept].T * float(layer.scaling[ADAPTER] / (layer.ranknum[ADAPTER] + PEFT_EPSILON))
        missing = rank - int(kept.sum())
        plain[f"{path}.lora_A.weight"] = pad(a[kept], (0, 0, 0, missing))
        plain[f"{path}.lora_B.weight"] = pad(b[:, kept] * factor, (0, missing))
    common = {name: getattr(config, name) for name in _COMMON}
    return LoraConfig(r=rank, lora_alpha=rank, lora_dropout=config.lora_dropout, **common), plain


def _finite(model: torch.nn.Module) -> bool:
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return all(bool(torch.isfinite(gradient).all()) for gradient in gradients)


def _gram(name: str, parameter: torch.Tensor) -> torch.Tensor:
    factor = parameter.float()
    return factor @ factor.T if "lora_A" in name else factor.T @ factor


ADALORA: Final = TrainingMethod(config=adalora_config, begin=_freeze_rank_counts, hooks=AdaLoraHooks)
