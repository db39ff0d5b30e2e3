"""Several devices: how they share the passes of an optimizer step, and whether they share the base."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from tunery_api.methods import QuantizationType
from tunery_api.reasons import FailureReason
from tunery_api.remedies import recreate
from tunery_common.errors import TuneryError
from tunery_trainer.resuming.memo import PassSplit
from tunery_trainer.settings.auto_method import method_choices
from tunery_trainer.settings.loop import Chosen
from tunery_trainer.settings.parallelism import WHOLE, Spread, told_of_devices
from tunery_trainer.settings.resolve import resolve
from tunery_trainer.settings.sizing import DataFacts, total_steps
from tunery_trainer.settings.types import DeviceFacts, DeviceKind, ModelFacts, RunSettings, StoredQuantization
from tunery_trainer.training.recovery import smaller, with_split

from kit.training import spec_of

ROWS = 5000
GPU = DeviceFacts(DeviceKind.CUDA, 80 * 2**30, bfloat16=True)
CPU = DeviceFacts(DeviceKind.CPU, None, bfloat16=False)
SEVEN_B = ModelFacts("LlamaForCausalLM", 7_000_000_000, 32, 4096, 32_000, 4096, tied_embeddings=False, packable=True)
EIGHT_BITS = {"type": "Int8"}


def settled(
    device: DeviceFacts, *, fits: int | None = 16, step_rows: int | None = None, spread: Spread = WHOLE, **blocks: Any
) -> RunSettings:
    """Return what a manifest is resolved to on ROWS sequences or `rows`, in passes of at most `fits` rows."""
    data = DataFacts(blocks.pop("rows", ROWS), packed=False, step_rows=step_rows)
    spec, chosen = spec_of({"method": "LoRA", **blocks}), Chosen(data, batch_size=fits, spread=spread)
    return resolve(spec, SEVEN_B, device, method_choices(spec, ROWS, device)[0], chosen)


def shown(resolved: RunSettings, name: str) -> tuple[str, str, str | None]:
    (value,) = (value for value in resolved.values if value.name == name)
    return value.value, value.source, value.reason


@pytest.mark.parametrize(
    ("gpus", "nodes", "fits", "batch", "passes"),
    [
        *((1, 1, 16, 16, 1), (1, 1, 4, 4, 4), (2, 1, 16, 8, 2), (2, 1, 4, 4, 4), (8, 1, 16, 2, 8), (8, 1, 1, 1, 16)),
        *((8, 2, 16, 1, 16), (1, 4, 4, 4, 4), (3, 1, 16, 6, 3), (3, 1, 4, 3, 6), (8, 3, 4, 1, 24), (16, 4, 4, 1, 64)),
    ],
)
def test_a_step_is_shared_evenly_and_sees_the_rows_of_one_device_where_that_is_possible(
    gpus: int, nodes: int, fits: int, batch: int, passes: int
) -> None:
    device = replace(GPU, devices=gpus, nodes=nodes)
    training = settled(device, fits=fits).training
    assert (training.batch_size, training.gradient_accumulation) == (batch, passes)
    assert (training.devices, passes % device.world) == (gpus * nodes, 0)
    alone = settled(GPU, fits=fits).training
    if 16 % device.world == 0:
        assert total_steps(ROWS, training) == total_steps(ROWS, alone)
    else:
        assert batch * passes - 16 < device.world


def test_why_a_step_has_so_many_passes_is_told_of_several_devices_only() -> None:
    name = "training.gradientAccumulation"
    assert shown(settled(GPU), name) == ("1", "Rule", None)
    two, three = (settled(replace(GPU, devices=count)) for count in (2, 3))
    assert shown(two, name) == ("2", "Rule", "The passes of all 2 devices together: 16 rows a step.")
    more = "The passes of all 3 devices together: 18 rows a step in place of 16, so that each has as many."
    assert shown(three, name) == ("3", "Rule", more)
    asked = settled(replace(GPU, devices=8), training={"batchSize": 4})
    told = "The passes of all 8 devices together: 32 rows a step in place of 16, so that each has as many."
    assert shown(asked, name) == ("8", "Rule", told)


def test_small_data_has_a_row_of_each_device_in_a_step() -> None:
    training = settled(replace(GPU, devices=8), rows=40).training
    assert (training.batch_size, training.gradient_accumulation) == (1, 8)


@pytest.mark.parametrize(("passes", "near"), [(12, "8 or 16"), (6, "8")])
def test_passes_that_the_devices_cannot_share_are_refused_with_those_that_they_can(passes: int, near: str) -> None:
    asked = {"gradientAccumulation": passes}
    assert settled(replace(GPU, devices=2, nodes=3), training=asked).training.gradient_accumulation == passes
    with pytest.raises(
        TuneryError, match=f"a multiple of the 8 devices that share the passes, is {passes}$"
    ) as refused:
        settled(replace(GPU, devices=4, nodes=2), training=asked)
    assert refused.value.reason is FailureReason.INVALID_SPEC
    (fix,) = refused.value.remedies
    assert fix == recreate(f"Set it to {near}, or omit it", "training.gradientAccumulation")


@pytest.mark.parametrize("devices", [1, 2, 3, 4, 6, 12])
@pytest.mark.parametrize("fits", [1, 4, 16])
def test_the_steps_of_a_checkpoint_keep_their_rows_on_other_devices(devices: int, fits: int) -> None:
    training = settled(replace(GPU, devices=devices), fits=fits, step_rows=12).training
    assert training.batch_size * training.gradient_accumulation == 12
    assert training.gradient_accumulation % devices == 0
    assert training.batch_size <= fits
    assert training.epochs == settled(GPU).training.epochs, "of the data, as without a checkpoint"


@pytest.mark.parametrize(
    ("devices", "asked", "said"),
    [
        (5, {}, "5 devices cannot share the 12 rows of an optimizer step of the checkpoint that it goes on from$"),
        (4, {"batchSize": 2}, "4 devices cannot share the 12 rows .* goes on from in passes of 2 rows$"),
    ],
)
def test_devices_that_cannot_share_a_checkpoints_steps_are_refused(
    devices: int, asked: dict[str, Any], said: str
) -> None:
    with pytest.raises(TuneryError, match=said) as refused:
        settled(replace(GPU, devices=devices), step_rows=12, training=asked)
    assert refused.value.reason is FailureReason.INVALID_SPEC


def test_fewer_rows_at_once_stay_shareable_and_a_split_of_other_devices_counts_where_it_can_be_shared() -> None:
    resolved = settled(replace(GPU, devices=2), step_rows=48)
    assert (resolved.training.batch_size, resolved.training.gradient_accumulation) == (12, 4)
    halved = smaller(resolved.training, recomputable=True)
    assert halved is not None
    assert (halved.batch_size, halved.gradient_accumulation) == (6, 8)
    shared, unshared = (
        PassSplit(batch_size=rows, gradient_accumulation=48 // rows, gradient_checkpointing=True, reason="r")
        for rows in (8, 16)
    )
    assert with_split(resolved, shared).training.gradient_accumulation == 6
    larger = settled(replace(GPU, devices=2), fits=24, step_rows=48)
    assert with_split(larger, unshared) is larger, "3 passes are not for 2 devices"


def test_whether_the_base_is_spread_is_told_with_its_reason() -> None:
    eight = replace(GPU, devices=8, nodes=2)
    spread = settled(eight, spread=Spread(sharded=True, reason="It would not fit."))
    assert spread.training.sharded
    assert shown(spread, "training.parallelism") == ("FSDP", "Rule", "It would not fit.")
    said = "16 GPUs on 2 nodes; FSDP: the base is spread over those of a node. It would not fit."
    assert told_of_devices(spread, eight) == said
    for asked in ("DDP", "FSDP"):
        resolved = settled(eight, training={"parallelism": asked}, spread=Spread(sharded=asked == "DDP"))
        assert resolved.training.sharded is (asked == "FSDP")
        assert shown(resolved, "training.parallelism") == (asked, "Manifest", None)


@pytest.mark.parametrize("asked", ["Auto", "DDP", "FSDP"])
def test_of_one_device_nothing_is_said(asked: str) -> None:
    resolved = settled(GPU, training={"parallelism": asked})
    assert not resolved.training.sharded
    assert "training.parallelism" not in {value.name for value in resolved.values}


def test_a_base_in_8_bits_is_not_spread_whoever_has_quantised_it() -> None:
    two = replace(GPU, devices=2)
    with pytest.raises(
        TuneryError, match=r"spec\.training\.parallelism: FSDP cannot spread a base in 8 bits"
    ) as refused:
        settled(two, method="QLoRA", quantization=EIGHT_BITS, training={"parallelism": "FSDP"})
    assert refused.value.reason is FailureReason.INVALID_SPEC
    stored = replace(SEVEN_B, stored=StoredQuantization(QuantizationType.INT8, double_quant=False))
    spec = spec_of({"method": "QLoRA", "training": {"parallelism": "FSDP"}})
    with pytest.raises(TuneryError, match="in 8 bits"):
        resolve(spec, stored, two, method_choices(spec, ROWS, two, stored.stored)[0])
    assert settled(two, method="QLoRA", training={"parallelism": "FSDP"}).training.sharded


@pytest.mark.parametrize(
    ("device", "words"),
    [
        (replace(GPU, devices=1), "1 GPU"),
        (replace(GPU, devices=8), "8 GPUs"),
        (replace(GPU, devices=4, nodes=2), "8 GPUs on 2 nodes"),
        (replace(CPU, nodes=2), "2 nodes"),
        (replace(CPU, devices=2, nodes=2), "4 processes on 2 nodes"),
    ],
)
def test_devices_in_words(device: DeviceFacts, words: str) -> None:
    assert device.words == words
    assert re.match(r"\d+ ", words)
