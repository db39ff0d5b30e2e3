"""The settings of the training loop: rate, schedule, batches, lengths, packing and precision."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from tunery_api.methods import (
    DEFAULT_LEARNING_RATE,
    PREFERENCE_TASKS,
    PROMPT_LEARNING,
    Method,
    PrefixTuningSpec,
    PromptTuningSpec,
    method_learning_rate,
)
from tunery_api.reasons import FailureReason
from tunery_api.training import Optimizer, Precision
from tunery_common.errors import TuneryError
from tunery_trainer.settings.decisions import Decisions, Fallback
from tunery_trainer.settings.parallelism import WHOLE, Spread, check_passes, check_shared, is_sharded
from tunery_trainer.settings.preference import PREFERENCE_RATE
from tunery_trainer.settings.sizing import MOST_ROWS, DataFacts, Sizing, size
from tunery_trainer.settings.types import (
    SPEC_FIELDS,
    DeviceFacts,
    DeviceKind,
    ModelFacts,
    SettingSource,
    TrainingSettings,
)

DEFAULT_WARMUP: Final = 0.1
DEFAULT_BATCH_SIZE: Final = 4
"""Rows of a forward pass where the memory of the device is not known."""
BASE_RANK: Final = 8
"""The rank at which the guide's scaled learning rate is the plain one."""
SCALED_LEARNING_RATE: Final = "training.learningRate, scaled with rank"


@dataclass(frozen=True)
class Chosen:
    """What the data and the memory of the device have decided where the manifest leaves it open."""

    data: DataFacts | None = None
    """None: not tokenised yet."""
    batch_size: int | None = None
    """Rows of a forward pass that fit; None: not known."""
    gradient_checkpointing: bool = True
    optimizer: Optimizer = Optimizer.ADAMW
    spread: Spread = WHOLE


class Given(NamedTuple):
    """What is known of model, device and data."""

    facts: ModelFacts
    devices: DeviceFacts
    chosen: Chosen


_DECIDED: Final = frozenset(
    {
        *("epochs", "max_steps", "learning_rate", "warmup", "batch_size", "gradient_accumulation", "max_length"),
        *("packing", "optimizer", "precision", "gradient_checkpointing"),
    }
)
"""Settings with a rule of their own; every other one is the field of the spec with its name."""


def training_settings(decisions: Decisions, rank: int, given: Given) -> TrainingSettings:
    """Return the settings of the loop, and record each; `rank` scales the learning rate if the spec says so."""
    block, chosen = decisions.spec.training, given.chosen
    max_length, packing = _max_length(decisions, given.facts), _packing(decisions, given)
    epochs, rows = _length(decisions, chosen.data)
    batch_size, accumulation = _batch(decisions, _step_rows(given, rows), chosen.batch_size)
    checkpointing = chosen.gradient_checkpointing and decisions.method is not Method.PREFIX_TUNING
    return TrainingSettings(
        epochs=epochs,
        max_steps=block.max_steps,
        learning_rate=_learning_rate(decisions, rank),
        warmup=_warmup(decisions),
        batch_size=batch_size,
        gradient_accumulation=accumulation,
        max_length=max_length,
        packing=packing,
        optimizer=decisions.pick(
            "training.optimizer", block.optimizer, None, Fallback(chosen.optimizer, SettingSource.RULE)
        ),
        precision=_precision(decisions, given.devices),
        gradient_checkpointing=decisions.pick(
            "training.gradientCheckpointing",
            block.gradient_checkpointing,
            None,
            Fallback(checkpointing, SettingSource.RULE),
        ),
        devices=given.devices.world,
        sharded=is_sharded(decisions, given.devices, chosen.spread),
        **_plain(decisions),
    )


def _plain(decisions: Decisions) -> dict[str, Any]:
    """Return the settings that are fields of the spec, and record each."""
    names = [name for name in SPEC_FIELDS if name not in _DECIDED]
    return {name: decisions.plain(decisions.spec.training, "training", name) for name in names}


def _length(decisions: Decisions, data: DataFacts | None) -> tuple[float | None, int]:
    """Return the epochs, None with maxSteps, and the rows that an optimizer step should see."""
    block = decisions.spec.training
    preset = decisions.preset.epochs if decisions.preset else None
    asked = preset if block.epochs is None else block.epochs
    sizing = size(data, asked, block.max_steps) if data else Sizing(MOST_ROWS, asked or 1.0)
    if block.max_steps is not None:
        decisions.note("training.maxSteps", block.max_steps, SettingSource.MANIFEST)
        return None, sizing.rows
    epochs = decisions.pick("training.epochs", block.epochs, preset, Fallback(sizing.epochs or 1.0, SettingSource.RULE))
    return epochs, sizing.rows


class _StepRows(NamedTuple):
    """The rows of an optimizer step, and how many devices share them."""

    wanted: int
    devices: int
    fixed: bool
    """Whether a checkpoint has steps of so many."""

    @property
    def shared(self) -> int:
        """The fewest rows, not below those that are wanted, of which each device has as many."""
        return _multiple(self.wanted, self.devices)


def _step_rows(given: Given, wanted: int) -> _StepRows:
    data = given.chosen.data
    return _StepRows(wanted, given.devices.world, fixed=data is not None and data.step_rows is not None)


def _batch(decisions: Decisions, rows: _StepRows, fits: int | None) -> tuple[int, int]:
    """Return the rows of a forward pass, and how many passes of all devices make an optimizer step.

    Where it is left open, a step sees the same rows on any number of devices, as far as these can share them: then
    steps, schedule and order are the same.
    """
    block = decisions.spec.training
    accumulation = block.gradient_accumulation
    each = rows.shared // rows.devices
    if accumulation is not None:
        check_passes(accumulation, rows.devices)
        each = max(1, rows.wanted // accumulation)
    largest = min(each, fits or DEFAULT_BATCH_SIZE)
    if accumulation is None:  # a checkpoint's steps may be of any number of rows
        largest = next(size for size in range(largest, 0, -1) if each % size == 0)
    batch_size = decisions.pick("training.batchSize", block.batch_size, None, Fallback(largest, SettingSource.RULE))
    passes = max(1, (rows.wanted if block.batch_size else rows.shared) // batch_size)
    passes = decisions.pick(
        "training.gradientAccumulation",
        accumulation,
        None,
        Fallback(_multiple(passes, rows.devices), SettingSource.RULE),
    )
    if rows.devices > 1:
        if rows.fixed and accumulation is None:
            check_shared(rows.wanted, block.batch_size or 1, rows.devices)
        decisions.explain(_why_so_many(batch_size * passes, rows, asked=accumulation is not None))
    return batch_size, passes


def _why_so_many(now: int, rows: _StepRows, *, asked: bool) -> str:
    more = f" in place of {rows.wanted}, so that each has as many" if not asked and now > rows.wanted else ""
    return f"The passes of all {rows.devices} devices together: {now} rows a step{more}."


def _multiple(count: int, of: int) -> int:
    """Return the smallest multiple of `of` that is not below `count`."""
    return -(-count // of) * of


def _warmup(decisions: Decisions) -> float:
    preset = decisions.preset.warmup if decisions.preset else None
    asked = decisions.spec.training.warmup
    return decisions.pick("training.warmup", asked, preset, Fallback(DEFAULT_WARMUP, SettingSource.DEFAULT))


def _learning_rate(decisions: Decisions, rank: int) -> float:
    block = decisions.spec.training
    prefix = decisions.spec.prefix_tuning
    own = method_learning_rate(decisions.method, prefix is not None and prefix.projection)
    preset = decisions.preset.learning_rate if decisions.preset and own is None else None
    otherwise = (
        Fallback(DEFAULT_LEARNING_RATE, SettingSource.DEFAULT) if own is None else Fallback(own, SettingSource.RULE)
    )
    if decisions.spec.task in PREFERENCE_TASKS:
        otherwise = Fallback(PREFERENCE_RATE * otherwise.value, SettingSource.RULE)
    rate = decisions.pick("training.learningRate", block.learning_rate, preset, otherwise)
    if not block.scale_learning_rate_with_rank or not rank:
        return rate
    scaled = rate * learning_rate_factor(rank)
    decisions.note(SCALED_LEARNING_RATE, scaled, SettingSource.RULE)
    return scaled


def _max_length(decisions: Decisions, facts: ModelFacts) -> int:
    """Return maxLength; the default shrinks to what the model has positions for, virtual tokens included."""
    block = decisions.spec.training
    room = None
    if facts.max_positions is not None:
        room = facts.max_positions - _virtual_tokens(decisions)
    if room is None or block.max_length <= room:
        length: int = decisions.plain(block, "training", "max_length")
        return length
    if "max_length" in block.model_fields_set:
        raise TuneryError(
            FailureReason.INVALID_SPEC,
            f"spec.training.maxLength: must be at most {room}, is {block.max_length}: {facts.architecture} has "
            f"{facts.max_positions} positions",
        )
    decisions.note("training.maxLength", room, SettingSource.RULE)
    return room


def _virtual_tokens(decisions: Decisions) -> int:
    spec = decisions.spec
    if decisions.method is Method.PROMPT_TUNING:
        return (spec.prompt_tuning or PromptTuningSpec()).virtual_tokens
    if decisions.method is Method.PREFIX_TUNING:
        return (spec.prefix_tuning or PrefixTuningSpec()).virtual_tokens
    return 0


def _packing(decisions: Decisions, given: Given) -> bool:
    asked, facts, data = decisions.spec.training.packing, given.facts, given.chosen.data
    if asked and not facts.packable:
        raise TuneryError(
            FailureReason.INVALID_SPEC,
            f"spec.training.packing: {facts.architecture} was not measured to keep the examples of a packed row apart; "
            "leave packing out, or use another base model",
        )
    alone = decisions.spec.task in PREFERENCE_TASKS or decisions.spec.training.group_by_length
    possible = facts.packable and decisions.method not in PROMPT_LEARNING and not alone
    return decisions.pick(
        "training.packing", asked, None, Fallback(possible and (data is None or data.packed), SettingSource.RULE)
    )


def natural_precision(devices: DeviceFacts) -> Precision:
    """Return what the device computes best in: BFloat16 where it has it, else Float16 on a GPU, Float32 on a CPU."""
    full = Precision.FLOAT32 if devices.kind is DeviceKind.CPU else Precision.FLOAT16
    return Precision.BFLOAT16 if devices.bfloat16 else full


def _precision(decisions: Decisions, devices: DeviceFacts) -> Precision:
    asked = decisions.spec.training.precision
    if asked is not Precision.AUTO:
        decisions.note("training.precision", asked, SettingSource.MANIFEST)
        return asked
    precision = natural_precision(devices)
    decisions.note("training.precision", precision, SettingSource.RULE)
    return precision


def learning_rate_factor(rank: int) -> float:
    """Return sqrt(8 / rank): the guide's scale_learning_rate."""
    return math.sqrt(BASE_RANK / rank)
