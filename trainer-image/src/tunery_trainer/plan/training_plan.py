"""The plan of a run, made alike in preflight and in training: settings first, then what data and memory decide."""

from __future__ import annotations

import dataclasses
import logging
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

from peft import PeftModel

from tunery_api.lorajob import LoRAJobSpec
from tunery_api.methods import LoraInit, Method
from tunery_api.training import Optimizer
from tunery_trainer.adapter.attach import attach, target_modules, trainable_parameters
from tunery_trainer.adapter.methods.base import Start
from tunery_trainer.adapter.methods.lora_init import check_init
from tunery_trainer.data.options import DatasetReport, TokenReport
from tunery_trainer.inputs.adapter import PreviousAdapter, continued
from tunery_trainer.losses.answers import sequences_per_row
from tunery_trainer.model.load import load_tokenizer, meta_model, model_facts
from tunery_trainer.model.memory import MemoryEstimate, MemoryPlan, estimate_memory, human_bytes
from tunery_trainer.resuming.inherited import NOTHING, Taken
from tunery_trainer.settings.auto_method import MethodChoice, method_choices
from tunery_trainer.settings.resolve import DEFAULT_BATCH_SIZE, Chosen, resolve
from tunery_trainer.settings.sizing import DataFacts, total_steps
from tunery_trainer.settings.types import DeviceFacts, DeviceKind, ModelFacts, Resolved

_BUSY_TOKENS: Final = 4096
"""Tokens of a forward pass that keep a GPU busy: where fewer fit, activations are recomputed. Assumed, not measured."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Basis:
    """What a plan is made from, beside the data."""

    spec: LoRAJobSpec
    folder: Path
    """The base model's; without weights is enough."""
    devices: DeviceFacts
    previous: PreviousAdapter | None
    """The adapter that is trained on."""
    taken: Taken = NOTHING
    """What `spec` has from the checkpoint of resumeFrom."""

    @cached_property
    def facts(self) -> ModelFacts:
        """What config.json tells; raises TrainerError(ModelUnsupported)."""
        return model_facts(self.folder)


@dataclass(frozen=True)
class Plan:
    """Everything that is decided before training begins."""

    resolved: Resolved
    steps: int
    target_modules: list[str]
    trainable_parameters: int
    memory: MemoryEstimate | None
    """None where no estimate can be made."""

    def fits(self, devices: DeviceFacts) -> bool:
        """Tell whether the estimate stays within the device's memory; True where one of the two is not known."""
        available = devices.memory_bytes
        return self.memory is None or available is None or self.memory.total <= available


def before_data(basis: Basis, rows: int) -> Resolved:
    """Return the settings as far as they do not depend on tokens: what the data layer is asked for.

    `rows` counts the rows of the data set. Raises TrainerError(InvalidSpec).
    """
    return _settings(basis, _choices(basis, rows)[0], None)


def make_plan(basis: Basis, rows: int, dataset: DatasetReport) -> Plan:
    """Return the plan for the first method that fits into the memory, or for the last one if none does.

    Raises TrainerError(InvalidSpec) for what the manifest names and the model does not have.
    """
    tokens = dataset.tokens
    if tokens is None:
        raise ValueError("the data set is not tokenised")
    choices = _choices(basis, rows)
    for choice in choices[:-1]:
        plan = _plan(basis, choice, tokens)
        if plan.fits(basis.devices):
            return _with_numbers(basis, plan)
    return _with_numbers(basis, _plan(basis, choices[-1], tokens))


def _choices(basis: Basis, rows: int) -> tuple[MethodChoice, ...]:
    return method_choices(basis.spec, rows, basis.devices, basis.facts.stored)


def _settings(basis: Basis, choice: MethodChoice, chosen: Chosen | None) -> Resolved:
    resolved = basis.taken.marked(resolve(basis.spec, basis.facts, basis.devices, choice, chosen))
    return continued(resolved, basis.spec, basis.folder, basis.previous) if basis.previous else resolved


def _with_numbers(basis: Basis, plan: Plan) -> Plan:
    """Add to the reason the numbers that Auto has decided by."""
    available = basis.devices.memory_bytes
    if basis.spec.method is not Method.AUTO or plan.memory is None or available is None:
        return plan
    reason = (
        f"{plan.resolved.method_reason} It takes about {human_bytes(plan.memory.total)} of {human_bytes(available)}."
    )
    return dataclasses.replace(plan, resolved=dataclasses.replace(plan.resolved, method_reason=reason))


def _plan(basis: Basis, choice: MethodChoice, tokens: TokenReport) -> Plan:
    """Return the plan of one method, with the largest batch and the least recomputing that fit."""
    resolved = _settings(basis, choice, Chosen(_facts(basis, tokens)))
    steps = total_steps(tokens.sequences, resolved.training)
    # How the adapter starts changes neither its shape nor its memory, and would need the weights.
    plain = dataclasses.replace(resolved, adapter=dataclasses.replace(resolved.adapter, init=LoraInit.DEFAULT))
    model = attach(meta_model(basis.folder), plain, Start(load_tokenizer(basis.folder), steps)).train()
    check_init(model, resolved)
    plan = _sized(basis, choice, model, tokens, Optimizer.ADAMW)
    on_gpu = basis.devices.kind is DeviceKind.CUDA  # on a CPU bitsandbytes' optimizers only cost time
    if on_gpu and basis.spec.training.optimizer is None and not plan.fits(basis.devices):
        return _sized(basis, choice, model, tokens, Optimizer.PAGED_ADAMW_8BIT)
    return plan


def _facts(basis: Basis, tokens: TokenReport) -> DataFacts:
    return DataFacts(tokens.sequences, tokens.packed, basis.taken.rows)


def _sized(basis: Basis, choice: MethodChoice, model: PeftModel, tokens: TokenReport, optimizer: Optimizer) -> Plan:
    """Return the plan with `optimizer`, unless the manifest names one, in batches that fit."""
    chosen = Chosen(_facts(basis, tokens), optimizer=optimizer)
    resolved = _settings(basis, choice, chosen)
    estimate = _estimate(model, resolved, basis.devices, row_length(resolved, tokens))
    if estimate is not None and basis.devices.memory_bytes is not None:
        resolved = _settings(basis, choice, _largest(basis, resolved, estimate, chosen))
        estimate = estimate.of(resolved.training.batch_size, resolved.training.gradient_checkpointing)
    return Plan(
        resolved=resolved,
        steps=total_steps(tokens.sequences, resolved.training),
        target_modules=target_modules(model),
        trainable_parameters=trainable_parameters(model),
        memory=estimate,
    )


def _largest(basis: Basis, resolved: Resolved, estimate: MemoryEstimate, chosen: Chosen) -> Chosen:
    """Return `chosen` with the largest batch that fits, without recomputing activations where enough tokens do.

    A CPU gains nothing from more rows at once than the default.
    """
    training, available = resolved.training, basis.devices.memory_bytes or 0
    rows = training.batch_size * training.gradient_accumulation
    most = rows if basis.devices.kind is DeviceKind.CUDA else min(rows, DEFAULT_BATCH_SIZE)
    wanted = min(most, basis.spec.training.batch_size or math.ceil(_BUSY_TOKENS / estimate.length))
    kept, recomputed = (estimate.of(1, again).largest_batch(available) or 0 for again in (False, True))
    again = kept < wanted
    fitting = max(1, min(most, recomputed if again else kept))
    # A power of two, as the rows of a step are: the same rows make a step whatever fits.
    return dataclasses.replace(chosen, batch_size=2 ** int(math.log2(fitting)), gradient_checkpointing=again)


def row_length(resolved: Resolved, tokens: TokenReport) -> int:
    """Return the tokens of the longest sequence that training will see, or a little more."""
    longest = resolved.training.max_length if tokens.packed else 2 * tokens.p99_length
    return max(1, min(resolved.training.max_length, longest))


def _estimate(model: object, resolved: Resolved, devices: DeviceFacts, length: int) -> MemoryEstimate | None:
    training = resolved.training
    plan = MemoryPlan(
        batch_size=training.batch_size,
        length=length,
        quantization=resolved.quantization,
        optimizer=training.optimizer,
        gradient_checkpointing=training.gradient_checkpointing,
        on_gpu=devices.kind is DeviceKind.CUDA,
        sequences=sequences_per_row(resolved.task),
    )
    try:
        return estimate_memory(model, plan)  # type: ignore[arg-type]
    except Exception as error:  # noqa: BLE001 (an estimate that cannot be made must not refuse a job that would run)
        _log.warning("no memory estimate for this architecture: %s: %s", type(error).__name__, error)
        return None
