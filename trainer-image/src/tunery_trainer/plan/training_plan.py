"""The plan of a run, made alike in preflight and in training: settings first, then what data and memory decide."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from peft import PeftModel

from tunery_api.fields import parse_quantity
from tunery_api.findings import CheckStatus
from tunery_api.lorajob import LoRAJobSpec
from tunery_api.methods import LoraInit, Method
from tunery_api.training import Optimizer, Parallelism, Precision
from tunery_common.errors import TuneryError
from tunery_trainer.adapter.attach import attach, target_modules
from tunery_trainer.adapter.methods.lora_init import check_init
from tunery_trainer.data.options import DataOptions, DatasetReport, TokenReport
from tunery_trainer.diagnosis.checks import Planned, planned_checks
from tunery_trainer.losses.answers import sequences_per_row
from tunery_trainer.model.memory import MemoryPlan, estimate_memory, trained_number, weights_bytes, with_others
from tunery_trainer.model.outline import Outline
from tunery_trainer.plan.basis import Basis
from tunery_trainer.resuming.may_resume import base_of, rows_of, settings_of
from tunery_trainer.resuming.memo import Origin
from tunery_trainer.resuming.taken_settings import manifest_of
from tunery_trainer.settings.auto_method import MethodChoice
from tunery_trainer.settings.loop import DEFAULT_BATCH_SIZE, Chosen
from tunery_trainer.settings.memory import ContainerMemory, MemoryEstimate
from tunery_trainer.settings.parallelism import WHOLE, Spread, no_choice, spread_over, with_reason
from tunery_trainer.settings.sizing import DataFacts, total_steps
from tunery_trainer.settings.types import RunSettings
from tunery_trainer.settings.units import compared

_BUSY_TOKENS: Final = 4096
"""Tokens of a forward pass that keep a GPU busy: where fewer fit, activations are recomputed. Assumed, not measured."""
_PROCESS_BYTES: Final = 2 * 2**30
"""What a process takes of its container's memory beside weights: torch and CUDA's libraries. Assumed, not measured."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingPlan:
    """Everything that is decided before training begins; made once, in preflight and in training alike."""

    basis: Basis
    data: DatasetReport
    """Of the rows, tokenised."""
    settings: RunSettings
    steps: int
    """Optimizer steps of the whole run."""
    target_modules: list[str]
    trainable_parameters: int
    memory: MemoryEstimate | None
    """None where no estimate can be made."""

    def checklist(self, held_out: int | None = None) -> list[CheckStatus]:
        """Return the checklist as it is before training; `held_out` counts the held-out rows, where they are known."""
        return planned_checks(
            Planned(
                settings=self.settings,
                steps=self.steps,
                targets=self.target_modules,
                trainable=self.trainable_parameters,
                data=self.data,
                held_out=held_out,
                fraction=self.fraction,
                needed=self.memory.total if self.memory else None,
                memory_known=self.basis.device.memory_bytes is not None or not self.basis.on_gpu,
            )
        )

    @property
    def fraction(self) -> float | None:
        """What share of the rows is held out; None: they are a set of their own."""
        held = self.basis.spec.dataset.evaluation
        if held is not None and (held.uri is not None or held.split is not None):
            return None
        return held.fraction if held and held.fraction is not None else DataOptions().evaluation_fraction

    @property
    def fits(self) -> bool:
        """Whether the estimate stays within the device's memory; True where one of the two is not known."""
        available = self.basis.device.memory_bytes
        return self.memory is None or available is None or self.memory.fits(available)

    @property
    def container(self) -> ContainerMemory | None:
        """The container's own memory where a quantised base is spread, and what it has to hold.

        None for any other base: one in 16 bits is mapped from its files, a whole one is made on the GPU.
        """
        settings = self.settings
        if not settings.training.sharded or settings.quantization is None:
            return None
        whole = weights_bytes(self.basis.outline, settings.quantization, settings.training.precision)
        needed = self.basis.device.devices * (whole + _PROCESS_BYTES)
        return ContainerMemory(needed, int(parse_quantity(self.basis.spec.resources.memory)))

    @property
    def row_length(self) -> int:
        """Tokens of the longest sequence that training will see."""
        return row_length(self.settings, required(self.data))

    @property
    def packed(self) -> bool:
        """Whether a sequence to train on holds several examples."""
        return required(self.data).packed

    @property
    def tokens(self) -> int | None:
        """Tokens that all steps see, about: rows of the mean length; None where the rows were not read.

        Of pairs both answers count.
        """
        found, training = required(self.data), self.settings.training
        if not found.sequences or not found.tokens:
            return None
        rows = self.steps * training.batch_size * training.gradient_accumulation
        if training.epochs is not None:  # the last step of a pass is of what is left
            rows = math.ceil(training.epochs * found.sequences)
        return round(found.tokens / (1 + (found.held_out_share or 0.0)) / found.sequences * rows)

    @cached_property
    def origin(self) -> Origin:
        """What is trained, but for the digest of the base, which may still be read."""
        basis, settings = self.basis, self.settings
        return Origin(
            run=basis.run,
            base=base_of(basis.spec.model.uri, basis.base),
            settings={**rows_of(basis.spec, self.data), **settings_of(settings, self.target_modules, self.steps)},
            manifest=manifest_of(settings),
            steps=self.steps,
        )

    def whole_origin(self) -> Origin:
        """Return what is trained; waits for the digest of a base in a claim."""
        return self.origin.with_digest(self.basis.base.digest)

    def if_spread(self, devices: int) -> MemoryEstimate | None:
        """Return what each device takes where the base is spread over so many, of which there may be fewer now."""
        if self.memory is None:
            return None
        precision, outline = self.settings.training.precision, self.basis.outline
        weights = weights_bytes(outline, self.settings.quantization, precision, devices)
        spread = dataclasses.replace(self.memory, weights=weights)
        return spread if self.basis.device.world > 1 else with_others(spread)

    def with_settings(self, settings: RunSettings) -> TrainingPlan:
        """Return the plan with other settings of the same steps."""
        return dataclasses.replace(self, settings=settings)

    def of_another(self, spec: LoRAJobSpec, method: Method) -> TrainingPlan | None:
        """Return the plan of the same rows by another manifest; None where the model cannot do what that asks for."""
        return plan_if_possible(self.basis.planned_for(spec, self.basis.device), method, self.data)


def plan_training(basis: Basis, rows: int | None, data: DatasetReport) -> TrainingPlan:
    """Return the plan for the first method that fits into the memory, or for the last one if none does.

    `rows` counts the rows of the data set (DataRequest.rows; None: not known), `data` is what was found in them. Raises
    TuneryError(InvalidSpec) for what the manifest names and the model does not have.
    """
    tried: list[TrainingPlan] = []
    for choice in basis.choices(rows):
        tried.append(plan_method(basis, choice, data))
        if tried[-1].fits:
            break
    return _with_numbers(tried)


def _with_numbers(tried: Sequence[TrainingPlan]) -> TrainingPlan:
    """Return the last of the plans that Auto has made, and add to its reason the numbers that it has decided by."""
    plan = tried[-1]
    available = plan.basis.device.memory_bytes
    if plan.basis.spec.method is not Method.AUTO or plan.memory is None or available is None:
        return plan
    counted = [(each.settings.method, each.memory.total) for each in tried[:-1] if each.memory]
    taken, there, *others = compared(plan.memory.total, available, *(total for _, total in counted))
    would = "".join(f"; {method} would take {total}" for (method, _), total in zip(counted, others, strict=True))
    reason = f"{plan.settings.method_reason} It takes about {taken} of {there}{would}."
    return plan.with_settings(dataclasses.replace(plan.settings, method_reason=reason))


def plan_method(basis: Basis, choice: MethodChoice, data: DatasetReport) -> TrainingPlan:
    """Return the plan of one method, with the largest batch and the least recomputing that fit.

    The base is spread over the devices of a node only where it does not fit otherwise: gathering it takes time.
    Raises TuneryError(InvalidSpec) for what the manifest names and the model does not have.
    """
    candidate = _candidate(basis, choice, data)
    plan = candidate.fitting(WHOLE)
    if basis.spec.training.parallelism is not Parallelism.AUTO or basis.device.world == 1:
        return plan
    why = no_choice(basis.device, plan.settings.quantization)
    if why is None and not plan.fits:
        return candidate.fitting(Spread(sharded=True, reason=_why_spread(plan)), plan.memory)
    roomy = "Each GPU has room for the whole base." if plan.memory else "What it takes is not known."
    return plan.with_settings(with_reason(plan.settings, why or roomy))


def _why_spread(plan: TrainingPlan) -> str:
    """Return why the base of a plan that does not fit with the whole of it is spread: gathering it takes time."""
    device = plan.basis.device
    needed, there = compared(plan.memory.total if plan.memory else 0, device.memory_bytes or 0)
    return (
        f"With the whole base each GPU would need about {needed} of its {there}; it is "
        f"spread over the {device.devices} GPUs of a node."
    )


def plan_if_possible(basis: Basis, method: Method, data: DatasetReport) -> TrainingPlan | None:
    """Return what `plan_method` does; None where the model cannot do what the manifest asks for."""
    try:
        return plan_method(basis, MethodChoice(method, ""), data)
    except TuneryError:
        return None


def _candidate(basis: Basis, choice: MethodChoice, data: DatasetReport) -> _Candidate:
    """Return a method with its adapter on a model without weights; raises TuneryError(InvalidSpec)."""
    tokens = required(data)
    facts = DataFacts(tokens.sequences, tokens.packed, tokens.held_out_share, basis.taken.rows)
    resolved = basis.settings(choice, Chosen(facts))
    steps = total_steps(tokens.sequences, resolved.training)
    # How the adapter starts changes neither its shape nor its memory, and would need the weights.
    plain = dataclasses.replace(resolved, adapter=dataclasses.replace(resolved.adapter, init=LoraInit.DEFAULT))
    outline = basis.outline_for(resolved)
    model = attach(outline.fresh(), plain, basis.context(steps)).train()
    check_init(model, resolved)
    return _Candidate(basis, choice, data, facts, outline, model)


@dataclass(frozen=True)
class _Candidate:
    """One method that may be taken, and its adapter on a model without weights."""

    basis: Basis
    choice: MethodChoice
    data: DatasetReport
    facts: DataFacts
    outline: Outline
    model: PeftModel
    """On a few layers."""

    @property
    def tokens(self) -> TokenReport:
        """What the rows are once they are tokenised."""
        return required(self.data)

    def fitting(self, spread: Spread, alike: MemoryEstimate | None = None) -> TrainingPlan:
        """Return the plan with the base `spread` so or not, unless the manifest says it, and the optimizer that fits.

        The last one that there is where none does. `alike` is the estimate of another one of its plans.
        """
        plan = self._plan(Optimizer.ADAMW, spread, alike)
        # On a CPU bitsandbytes' optimizers only cost time.
        if self.basis.on_gpu and self.basis.spec.training.optimizer is None and not plan.fits:
            return self._plan(Optimizer.PAGED_ADAMW_8BIT, spread, plan.memory)
        return plan

    def _plan(self, optimizer: Optimizer, spread: Spread, alike: MemoryEstimate | None) -> TrainingPlan:
        """Return the plan with `optimizer`, unless the manifest names one, in batches that fit."""
        chosen = Chosen(self.facts, optimizer=optimizer, spread=spread)
        settings = self.basis.settings(self.choice, chosen)
        estimate = self._estimate(settings, alike)
        if estimate is not None and self.basis.device.memory_bytes is not None:
            settings = self.basis.settings(self.choice, _largest(self.basis, settings, estimate, chosen))
            estimate = estimate.of(settings.training.batch_size, settings.training.gradient_checkpointing)
        return TrainingPlan(
            basis=self.basis,
            data=self.data,
            settings=settings,
            steps=total_steps(self.tokens.sequences, settings.training),
            target_modules=target_modules(self.model),
            trainable_parameters=trained_number(self.model, self.outline),
            memory=estimate,
        )

    def _estimate(self, settings: RunSettings, alike: MemoryEstimate | None) -> MemoryEstimate | None:
        training = settings.training
        plan = MemoryPlan(
            batch_size=training.batch_size,
            length=row_length(settings, self.tokens),
            quantization=settings.quantization,
            optimizer=training.optimizer,
            gradient_checkpointing=training.gradient_checkpointing,
            on_gpu=self.basis.on_gpu,
            sequences=sequences_per_row(settings.task),
            precision=training.precision,
            masked=not (training.packing and self.basis.on_gpu and training.precision is Precision.BFLOAT16),
            recomputable=settings.method is not Method.PREFIX_TUNING,
            keepable=self.basis.device.memory_bytes is not None or not training.gradient_checkpointing,
            world=training.devices,
            spread_over=spread_over(settings, self.basis.device),
        )
        try:
            return estimate_memory(self.model, self.outline, plan, alike)
        except Exception as error:  # noqa: BLE001 (an estimate that cannot be made must not refuse a job that would run)
            _log.warning("no memory estimate for this architecture: %s: %s", type(error).__name__, error)
            return None


def _largest(basis: Basis, resolved: RunSettings, estimate: MemoryEstimate, chosen: Chosen) -> Chosen:
    """Return `chosen` with the largest batch that fits, without recomputing activations where enough tokens do.

    A CPU gains nothing from more rows at once than the default. What the manifest asks for is tried as it is.
    """
    training, available = resolved.training, basis.device.memory_bytes or 0
    rows = max(1, training.batch_size * training.gradient_accumulation // training.devices)  # of each of them
    most = rows if basis.on_gpu else min(rows, DEFAULT_BATCH_SIZE)
    wanted = basis.spec.training.batch_size or min(most, math.ceil(_BUSY_TOKENS / estimate.length))
    kept, recomputed = (estimate.of(1, again).largest_batch(available) or 0 for again in (False, True))
    asked = basis.spec.training.gradient_checkpointing
    again = kept < wanted if asked is None else asked
    fitting = max(1, min(most, recomputed if again else kept))
    # A power of two, as the rows of a step are: the same rows make a step whatever fits.
    return dataclasses.replace(chosen, batch_size=2 ** int(math.log2(fitting)), gradient_checkpointing=again)


def required(data: DatasetReport) -> TokenReport:
    """Return what the rows are once they are tokenised; raises ValueError where they are not."""
    if data.tokens is None:
        raise ValueError("the data set is not tokenised")
    return data.tokens


def row_length(resolved: RunSettings, tokens: TokenReport) -> int:
    """Return the tokens of the longest sequence that training will see: each row comes once in every pass."""
    longest = resolved.training.max_length if tokens.packed else tokens.longest
    return max(1, min(resolved.training.max_length, longest))
