"""How several devices train one adapter: each with the whole base, or with the base spread over those of a node."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from tunery_api.methods import QuantizationType
from tunery_api.reasons import FailureReason
from tunery_api.remedies import recreate
from tunery_api.training import Parallelism, passes_near
from tunery_common.errors import TuneryError
from tunery_trainer.settings.decisions import Decisions
from tunery_trainer.settings.types import DeviceFacts, DeviceKind, QuantizationSettings, RunSettings, SettingSource

PARALLELISM: Final = "training.parallelism"


@dataclass(frozen=True)
class Spread:
    """What memory has decided where the manifest leaves it open."""

    sharded: bool
    """Whether the base is spread over the devices of each node."""
    reason: str | None = None
    """In a sentence."""


WHOLE: Final = Spread(sharded=False)
"""Each device has the whole base."""


def is_sharded(decisions: Decisions, devices: DeviceFacts, spread: Spread) -> bool:
    """Return whether the base is spread over the devices of each node, and record it; of one device nothing is said."""
    asked = decisions.spec.training.parallelism
    if devices.world == 1:
        return False
    if asked is Parallelism.AUTO:
        decisions.note(PARALLELISM, _named(spread.sharded), SettingSource.RULE)
        decisions.explain(spread.reason)
        return spread.sharded
    sharded = asked is Parallelism.FSDP and devices.devices > 1
    decisions.note(PARALLELISM, _named(sharded), SettingSource.MANIFEST)
    return sharded


def spread_over(resolved: RunSettings, devices: DeviceFacts) -> int:
    """Return how many devices the base is spread over; 1: each has all of it."""
    return devices.devices if resolved.training.sharded else 1


def with_reason(resolved: RunSettings, reason: str) -> RunSettings:
    """Return `resolved` with the reason why the base is spread or is not."""
    values = tuple(
        value.model_copy(update={"reason": reason}) if value.name == PARALLELISM else value for value in resolved.values
    )
    return replace(resolved, values=values)


def parallelism_of(*, sharded: bool, devices: int) -> str | None:
    """Return what status.resolved calls it; None where one device trains."""
    return _named(sharded).value if devices > 1 else None


def told_of_devices(resolved: RunSettings, devices: DeviceFacts) -> str:
    """Return how many devices train together, whether each has the whole base, and why."""
    name = _named(resolved.training.sharded)
    how = "the base is spread over those of a node" if resolved.training.sharded else "each has the whole base"
    reason = next((value.reason for value in resolved.values if value.name == PARALLELISM), None)
    return f"{devices.words}; {name}: {how}." + (f" {reason}" if reason else "")


def _named(sharded: bool) -> Parallelism:
    return Parallelism.FSDP if sharded else Parallelism.DDP


def no_choice(devices: DeviceFacts, quantization: QuantizationSettings | None) -> str | None:
    """Return why nothing but the whole base in each device can be taken, in a sentence; None where memory decides."""
    if devices.kind is DeviceKind.CPU:
        return "On CPUs each process has the whole base."
    if devices.devices < 2:
        return "Each node has one GPU, and a base is spread within a node only."
    if devices.memory_bytes is None:
        return "The memory of the GPUs is not known."
    if in_8_bits(quantization):
        return "A base in 8 bits cannot be spread."
    return None


def check_spread(devices: DeviceFacts, quantization: QuantizationSettings | None, *, sharded: bool) -> None:
    """Raise TuneryError(InvalidSpec) where a base is to be spread that cannot be."""
    if sharded and in_8_bits(quantization):
        raise TuneryError(
            FailureReason.INVALID_SPEC,
            f"spec.{PARALLELISM}: FSDP cannot spread a base in 8 bits over the {devices.devices} GPUs of a node",
            recreate(f"Omit {PARALLELISM}, or use a base that is not in 8 bits", PARALLELISM, "quantization.type"),
        )


def in_8_bits(quantization: QuantizationSettings | None) -> bool:
    """Say whether the base is in 8 bits, of which bitsandbytes keeps more than a tensor that could be cut."""
    return quantization is not None and quantization.type is QuantizationType.INT8


def check_passes(passes: int, devices: int) -> None:
    """Raise TuneryError(InvalidSpec) where the passes of a step cannot be shared by the devices."""
    if passes % devices:
        raise TuneryError(
            FailureReason.INVALID_SPEC,
            f"spec.training.gradientAccumulation: must be a multiple of the {devices} devices that share the passes, "
            f"is {passes}",
            recreate(f"Set it to {passes_near(passes, devices)}, or omit it", "training.gradientAccumulation"),
        )


def check_shared(rows: int, batch_size: int, devices: int) -> None:
    """Raise TuneryError(InvalidSpec) where the rows of a checkpoint's steps cannot be shared in passes of so many."""
    if rows % (batch_size * devices):
        passes = "" if batch_size == 1 else f" in passes of {batch_size} rows"
        raise TuneryError(
            FailureReason.INVALID_SPEC,
            f"spec.resources: {devices} devices cannot share the {rows} rows of an optimizer step of the checkpoint "
            f"that it goes on from{passes}",
            recreate("Request a number of devices that divides them", "resources.gpus"),
        )
