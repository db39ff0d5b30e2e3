"""The plan of a run on several devices: each with the whole base where it fits, else with the base spread over them."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import LlamaConfig, Qwen2Config

from tunery_api.methods import Method
from tunery_api.training import Precision
from tunery_common.inputs.digests import FolderDigest
from tunery_trainer.model.load import load_tokenizer
from tunery_trainer.model.memory import weights_bytes
from tunery_trainer.model.outline import Outline, outline
from tunery_trainer.plan import method_table
from tunery_trainer.plan import wont_fit as wont_fit_module
from tunery_trainer.plan.training_plan import TrainingPlan, plan_training
from tunery_trainer.plan.wont_fit import check_memory
from tunery_trainer.settings.memory import MemoryEstimate, needed_for
from tunery_trainer.settings.types import DeviceFacts, DeviceKind
from tunery_trainer.tasks.ready import Ready, decided
from unit.trainer.plan.test_planning import SHAPES, basis_of, dataset, wont_fit

from kit.shown import ROOT
from kit.training import spec_of

GPU = DeviceFacts(DeviceKind.CUDA, None, bfloat16=True)
ONE_ROW: dict[str, Any] = {"batchSize": 1, "gradientCheckpointing": True, "optimizer": "AdamW"}
LAYERS = 16
QWEN_32B: dict[str, Any] = {
    "vocab_size": 152_064,
    "hidden_size": 5120,
    "intermediate_size": 27_648,
    "num_hidden_layers": 64,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
}
"""Of Qwen2.5-32B's config.json."""


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory, llama: Path) -> Path:
    """The folder of a model whose layers are nearly all of it, without weights."""
    folder = tmp_path_factory.mktemp("deep")
    shape = {"hidden_size": 4096, "intermediate_size": 16_384, "num_attention_heads": 8, "num_key_value_heads": 8}
    LlamaConfig(**shape, num_hidden_layers=LAYERS, vocab_size=1000, tie_word_embeddings=False).save_pretrained(folder)
    load_tokenizer(llama).save_pretrained(folder)
    return folder


def planned(folder: Path, device: DeviceFacts, method: str = "LoRA", **training: Any) -> TrainingPlan:
    asked = {"precision": "BFloat16", "packing": False, **training}
    basis = basis_of(spec_of({"method": method, "training": asked}), folder, device)
    return plan_training(basis, 20_000, dataset(4000, packed=False, length=64))


def memory_of(
    folder: Path, devices: int, parallelism: str = "DDP", method: str = "LoRA", **training: Any
) -> MemoryEstimate:
    """Return what one row takes of each of so many GPUs."""
    asked = {"parallelism": parallelism, **ONE_ROW, **training}
    found = planned(folder, replace(GPU, devices=devices), method, **asked).memory
    assert found is not None
    return found


def reason_of(plan: TrainingPlan) -> tuple[str, str]:
    (value,) = (value for value in plan.settings.values if value.name == "training.parallelism")
    return value.value, value.reason or ""


def in_turn(shape: Outline) -> tuple[int, int, int]:
    """Return the numbers of parameters of the model, of a layer, and of what is no layer."""
    every = sum(weight.numel for weight in shape.weights)
    layer = sum(weight.numel for weight in shape.weights if weight.path.startswith(f"{shape.layers}.0."))
    return every, layer, every - LAYERS * layer


def test_a_base_that_is_spread_takes_its_part_and_what_is_whole_for_a_while(deep: Path) -> None:
    shape = outline(deep)
    every, layer, outside = in_turn(shape)
    assert weights_bytes(shape, None, Precision.BFLOAT16) == 2 * every
    for devices in (2, 4, 8):
        spread = weights_bytes(shape, None, Precision.BFLOAT16, devices)
        assert spread == pytest.approx(2 * every / devices + 2 * 2 * layer + 2 * outside, abs=1)


def test_of_a_base_in_4_bits_the_constants_stay_whole(deep: Path) -> None:
    quantization = planned(deep, GPU, "QLoRA", **ONE_ROW).settings.quantization
    shape = outline(deep)
    whole, *spread = (weights_bytes(shape, quantization, Precision.BFLOAT16, devices) for devices in (1, 2, 4, 10**9))
    linear = sum(weight.numel for weight in shape.weights if weight.linear and "lm_head" not in weight.path)
    constants = linear * (1 / 64 + 4 / (64 * 256))
    layer = (linear * 0.5 + 2 * sum(w.numel for w in shape.weights if ".layers." in w.path and not w.linear)) / LAYERS
    outside = 2 * in_turn(shape)[2]
    assert spread[-1] == pytest.approx(constants + 2 * layer + outside, abs=2), "hardly any part of its own"
    for devices, found in zip((2, 4), spread, strict=False):
        assert found == pytest.approx((whole - constants) / devices + spread[-1], abs=2)


@pytest.mark.slow
def test_several_devices_take_a_message_of_the_gradients_and_nccl_more(deep: Path) -> None:
    alone, two = memory_of(deep, 1), memory_of(deep, 2)
    assert (two.weights, two.adapter, two.optimizer) == (alone.weights, alone.adapter, alone.optimizer)
    assert two.gradients == 2 * alone.gradients
    assert two.overhead - alone.overhead == 2**30
    cpus = [planned(deep, DeviceFacts(DeviceKind.CPU, None, True, nodes=nodes), **ONE_ROW).memory for nodes in (1, 2)]
    first, more = (found for found in cpus if found)
    assert (more.overhead, more.gradients) == (first.overhead, 2 * first.gradients), "NCCL is of GPUs"


@pytest.mark.slow
def test_the_base_is_spread_only_where_the_whole_of_it_does_not_fit(deep: Path) -> None:
    whole, spread = (memory_of(deep, 4, each).total for each in ("DDP", "FSDP"))
    assert spread < whole
    roomy, tight, too_tight = (needed_for(total) for total in (whole, (whole + spread) // 2, spread * 9 // 10))
    device = replace(GPU, devices=4)
    plan = planned(deep, replace(device, memory_bytes=roomy), **ONE_ROW)
    assert (plan.settings.training.sharded, plan.fits) == (False, True)
    assert reason_of(plan) == ("DDP", "Each GPU has room for the whole base.")
    plan = planned(deep, replace(device, memory_bytes=tight), **ONE_ROW)
    assert (plan.settings.training.sharded, plan.fits) == (True, True)
    name, reason = reason_of(plan)
    assert name == "FSDP"
    assert re.fullmatch(
        r"With the whole base each GPU would need about [\d.]+ GiB of its [\d.]+ GiB; it is spread over the 4 GPUs of "
        r"a node\.",
        reason,
    )
    asked = planned(deep, replace(device, memory_bytes=tight), parallelism="DDP", **ONE_ROW)
    assert (asked.settings.training.sharded, asked.fits) == (False, False)
    none = planned(deep, replace(device, memory_bytes=too_tight), **ONE_ROW)
    assert (none.settings.training.sharded, none.fits) == (True, False)


@pytest.mark.slow(only=["device2-LoRA-On CPUs each process has the whole base."])
@pytest.mark.parametrize(
    ("device", "method", "reason"),
    [
        (replace(GPU, devices=8), "LoRA", "The memory of the GPUs is not known."),
        (
            replace(GPU, memory_bytes=2**29, nodes=2),
            "LoRA",
            "Each node has one GPU, and a base is spread within a node",
        ),
        (DeviceFacts(DeviceKind.CPU, 2**29, True, nodes=2), "LoRA", "On CPUs each process has the whole base."),
    ],
)
def test_where_nothing_can_be_spread_each_device_has_the_whole_base(
    deep: Path, device: DeviceFacts, method: str, reason: str
) -> None:
    plan = planned(deep, device, method, **ONE_ROW)
    assert not plan.settings.training.sharded
    name, told = reason_of(plan)
    assert name == "DDP"
    assert told.startswith(reason)


@pytest.mark.slow
def test_a_base_in_8_bits_is_whole_however_little_memory_there_is(deep: Path) -> None:
    spec = spec_of({"method": "QLoRA", "quantization": {"type": "Int8"}, "training": {"precision": "BFloat16"}})
    device = replace(GPU, memory_bytes=2**29, devices=8)
    plan = plan_training(basis_of(spec, deep, device), 20_000, dataset(4000))
    assert (plan.fits, reason_of(plan)) == (False, ("DDP", "A base in 8 bits cannot be spread."))


@pytest.mark.slow
def test_a_refusal_names_the_fewest_gpus_that_the_base_can_be_spread_over(
    deep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And they fit: with so many the same job is not refused, with fewer it is."""
    monkeypatch.setattr(wont_fit_module, "_others", lambda _: iter(()))  # what else would fit is tried plan by plan
    memory = needed_for((memory_of(deep, 2, "FSDP").total + memory_of(deep, 4, "FSDP").total) // 2)
    device = replace(GPU, memory_bytes=memory)
    refused = planned(deep, device, optimizer="AdamW")
    change = "Recreate: Set resources.gpus to 4"
    for plan in (refused, planned(deep, replace(device, devices=2), optimizer="AdamW")):
        named, gpu = wont_fit(plan)
        assert named == change
        assert re.fullmatch(r"Recreate: Request a GPU with \d+ GiB of memory", gpu)
    check_memory(planned(deep, replace(device, devices=4), optimizer="AdamW"))
    shared = planned(deep, device, optimizer="AdamW", gradientAccumulation=24)
    assert change in wont_fit(shared)
    asked = planned(deep, device, optimizer="AdamW", gradientAccumulation=6)
    assert change not in wont_fit(asked), "4 GPUs could not share 6 passes"
    assert change not in wont_fit(refused, local=True), "no manifest adds GPUs to this machine"


@pytest.mark.slow
def test_a_base_that_is_quantised_before_it_is_spread_has_to_fit_into_the_container(deep: Path) -> None:
    """Each process makes all of it there: the remedy names what is enough; if nothing is spread none is needed."""
    whole, spread = (memory_of(deep, 4, each, "QLoRA").total for each in ("DDP", "FSDP"))
    tight = replace(GPU, devices=4, memory_bytes=needed_for((whole + spread) // 2))
    roomy = replace(tight, memory_bytes=needed_for(whole))

    def plan(device: DeviceFacts, memory: str, **training: Any) -> TrainingPlan:
        asked = {"precision": "BFloat16", "packing": False, **ONE_ROW, **training}
        spec = spec_of({"method": "QLoRA", "training": asked, "resources": {"gpus": 4, "memory": memory}})
        return plan_training(basis_of(spec, deep, device), 20_000, dataset(4000, packed=False, length=64))

    small = plan(tight, "8Gi")
    assert (small.settings.training.sharded, small.fits) == (True, True)
    weights = 4 * weights_bytes(outline(deep), small.settings.quantization, Precision.BFLOAT16)
    assert small.container is not None
    assert small.container.needed > weights
    (memory,) = wont_fit(small)
    named = re.fullmatch(r"Edit: Raise resources\.memory to (\d+)Gi", memory)
    assert named, memory
    check_memory(plan(tight, f"{named[1]}Gi"))
    check_memory(small, local=True)
    whole_base = plan(roomy, "8Gi")
    assert whole_base.container is None
    check_memory(whole_base)
    asked = plan(replace(tight, memory_bytes=None), "8Gi", parallelism="FSDP")
    assert wont_fit(asked) == [memory], "what the GPUs have is another question"


def test_what_nodes_have_to_come_to_alike_has_the_base_in_it(deep: Path) -> None:
    """Of a bucket, where it may be replaced between two downloads; of a claim it is read while training goes on."""
    plan = planned(deep, GPU, **ONE_ROW)
    data: Any = SimpleNamespace(report=SimpleNamespace(sha256="d"))

    def found(base: FolderDigest | None) -> dict[str, Any]:
        basis = replace(plan.basis, base=replace(plan.basis.base, files=base))
        return decided(Ready(replace(plan, basis=basis), data))

    one, same, other = (found(FolderDigest({"model.safetensors": name})) for name in "aab")
    assert one == same != other
    assert {name for name in one if one[name] != other[name]} == {"base"}
    assert found(FolderDigest.begin(deep, ["config.json"])) == found(None)


def test_who_asks_for_the_whole_base_is_told_to_leave_that_out(deep: Path) -> None:
    whole, spread = (memory_of(deep, 4, each).total for each in ("DDP", "FSDP"))
    device = replace(GPU, devices=4, memory_bytes=needed_for((whole + spread) // 2))
    change, _ = wont_fit(planned(deep, device, parallelism="DDP", optimizer="AdamW"))
    assert change == "Recreate: Omit training.parallelism"
    check_memory(planned(deep, device, optimizer="AdamW"))


@pytest.mark.slow
def test_the_table_of_methods_is_of_the_devices_of_the_job(deep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(method_table, "_METHODS", (Method.LORA,))
    rows = []
    for parallelism in ("Auto", "FSDP"):
        spec = spec_of(
            {"training": {"precision": "BFloat16", "parallelism": parallelism, "gradientCheckpointing": True}}
        )
        basis = basis_of(spec, deep, replace(GPU, devices=4))
        table = list(method_table.method_table(basis, dataset(4000, length=64)))
        whole = {row.quantization for row in table if row.spread is None}
        assert whole == ({"Int8"} if parallelism == "Auto" else {row.quantization for row in table})
        rows.append({row.quantization: row.estimate for row in table})
    each, spread = rows
    assert each[""].overhead > 2**30, "NCCL's among them"
    assert set(each) - set(spread) == {"Int8"}, "which cannot be spread"
    for name in ("", "NF4", "NF4 double"):
        assert spread[name].weights < each[name].weights
    assert spread["NF4"].weights > spread["NF4 double"].weights


@pytest.mark.slow
def test_the_table_of_distributed_md_is_what_is_computed(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "distributed.md").read_text()
    shown = re.findall(r"^\| (\d+B) \| (\d+) \| (\d+) \| (\d+) / (\d+) \| (\d+) / (\d+) \|$", page, re.MULTILINE)
    configs = {"8B": LlamaConfig(**SHAPES["8B"]), "32B": Qwen2Config(**QWEN_32B), "70B": LlamaConfig(**SHAPES["70B"])}
    assert [name for name, *_ in shown] == list(configs)
    for name, *cells in shown:
        folder = tmp_path / name
        configs[name].tie_word_embeddings = False
        configs[name].save_pretrained(folder)
        computed: list[list[int]] = []
        for method in ("LoRA", "QLoRA"):
            asked = {"precision": "BFloat16", "packing": False, **ONE_ROW, "optimizer": "AdamW8bit", "maxLength": 2048}
            spec = spec_of({"method": method, "lora": {"rank": 16}, "training": asked})
            basis = replace(basis_of(spec, folder, replace(GPU, devices=2)), config_only=True)
            plan = plan_training(basis, 20_000, dataset(4000, packed=False, length=2048))
            each = (plan.memory, plan.if_spread(2), plan.if_spread(8))
            computed.append([-(-found.total // 2**30) for found in each if found])
        plain, quantised = computed
        assert [int(cell) for cell in cells] == [plain[0], quantised[0], *plain[1:], *quantised[1:]], name


def test_the_table_of_methods_spreads_the_base_where_auto_does(deep: Path) -> None:
    """Of each kind of GPU it says what a plan for that says: whether the base is spread, and whether a row fits."""
    device = replace(GPU, devices=4)
    basis = basis_of(spec_of({"training": {"precision": "BFloat16", "packing": False, **ONE_ROW}}), deep, device)
    row = next(iter(method_table.method_table(basis, dataset(4000, packed=False, length=64))))
    assert (row.method, row.quantization) == (Method.LORA, "")
    assert row.spread is not None
    whole, spread = row.estimate.total, row.spread.total
    told = {}
    for name, size in {"none": spread * 9 // 10, "spread": (whole + spread) // 2, "whole": whole}.items():
        gpu = method_table.GpuClass(name, needed_for(size))
        plan = planned(deep, replace(device, memory_bytes=gpu.memory_bytes), **ONE_ROW)
        told[name] = (row.largest_batch(gpu) is not None, row.is_spread(gpu))
        assert told[name] == (plan.fits, plan.fits and plan.settings.training.sharded)
    assert told == {"none": (False, False), "spread": (True, True), "whole": (True, False)}
