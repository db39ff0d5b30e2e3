"""The plan: Auto takes what fits by the estimate, and the batch and recomputing follow from the memory."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig

from tunery_api.inputs import DatasetFormat
from tunery_api.lorajob import LoRAJobSpec
from tunery_api.methods import Method
from tunery_api.reasons import FailureReason
from tunery_api.runspec import RunIdentity
from tunery_api.training import Optimizer
from tunery_common.errors import TuneryError
from tunery_common.inputs.location import FetchedModel
from tunery_trainer.data.options import DatasetReport, TokenReport
from tunery_trainer.model.load import load_tokenizer
from tunery_trainer.plan.basis import Basis
from tunery_trainer.plan.training_plan import TrainingPlan, plan_training
from tunery_trainer.plan.wont_fit import check_memory
from tunery_trainer.resuming.taken_settings import NOTHING, Taken
from tunery_trainer.settings.memory import needed_for
from tunery_trainer.settings.types import DeviceFacts, DeviceKind

from kit.training import spec_of

GIB = 2**30
SHAPES: dict[str, dict[str, int]] = {
    "small": {
        "vocab_size": 49_152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
    },
    "8B": {
        "vocab_size": 128_256,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "14B": {
        "vocab_size": 151_936,
        "hidden_size": 5120,
        "intermediate_size": 17_408,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
        "num_key_value_heads": 8,
    },
    "70B": {
        "vocab_size": 128_256,
        "hidden_size": 8192,
        "intermediate_size": 28_672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
    },
}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory, llama: Path) -> dict[str, Path]:
    """Folders with the configuration of real sizes, without weights."""
    folders = {}
    for name, shape in SHAPES.items():
        folder = folders[name] = tmp_path_factory.mktemp(name)
        LlamaConfig(**shape, tie_word_embeddings=False, max_position_embeddings=8192).save_pretrained(folder)
        load_tokenizer(llama).save_pretrained(folder)
    return folders


def dataset(sequences: int, *, packed: bool = True, length: int = 400) -> DatasetReport:
    """Return the report of a data set of so many sequences."""
    counts = dict.fromkeys(TokenReport.__dataclass_fields__, 0)
    tokens = TokenReport(
        **counts | {"longest": length, "template": "tokenizer", "sequences": sequences, "packed": packed}
    )
    return DatasetReport(sequences, 0, 0, (), 0, 0, "", DatasetFormat.MESSAGES, (), tokens)


def basis_of(spec: LoRAJobSpec, folder: Path, device: DeviceFacts, taken: Taken = NOTHING) -> Basis:
    """Return what the plan of a job on the model in `folder` is made from."""
    run = RunIdentity(kind="LoRAJob", namespace="team", name="x", uid="u")
    return Basis(run, spec, FetchedModel(folder, None, 0), device, taken=taken)


def planned(folder: Path, gibibytes: float | None, data: DatasetReport | None = None, **blocks: Any) -> TrainingPlan:
    training = {"precision": "BFloat16", **blocks.pop("training", {})}
    device = DeviceFacts(DeviceKind.CUDA, gibibytes and int(gibibytes * GIB), bfloat16=True)
    basis = basis_of(spec_of({**blocks, "training": training}), folder, device)
    return plan_training(basis, 20_000, data or dataset(4000))


@pytest.mark.slow(fast=["14B-40-LoRA", "8B-24-LoRA", "8B-80-LoRA"])
@pytest.mark.parametrize(
    ("shape", "gibibytes", "method"),
    [
        ("8B", 12, Method.QLORA),
        ("8B", 16, Method.QLORA),
        ("8B", 24, Method.LORA),
        ("8B", 80, Method.LORA),
        ("14B", 24, Method.QLORA),
        ("14B", 32, Method.QLORA),
        ("14B", 40, Method.LORA),
        ("70B", 48, Method.QLORA),
        ("70B", 80, Method.QLORA),
    ],
)
def test_auto_takes_what_fits(shapes: dict[str, Path], shape: str, gibibytes: int, method: Method) -> None:
    plan = planned(shapes[shape], gibibytes)
    assert plan.settings.method is method
    assert plan.memory is not None
    assert plan.memory.total <= gibibytes * GIB
    assert f"of {gibibytes}.0 GiB" in plan.settings.method_reason
    training = plan.settings.training
    assert training.batch_size * training.gradient_accumulation == 16


def test_activations_are_recomputed_where_they_would_not_fit(shapes: dict[str, Path]) -> None:
    large, small = (planned(shapes["8B"], gibibytes, method="LoRA").settings.training for gibibytes in (80, 24))
    assert not large.gradient_checkpointing
    assert large.batch_size * large.max_length >= 4096
    assert small.gradient_checkpointing


def test_what_the_manifest_says_of_batch_and_recomputing_stays(shapes: dict[str, Path]) -> None:
    asked = {"batchSize": 3, "gradientAccumulation": 5, "gradientCheckpointing": True}
    training = planned(shapes["8B"], 80, method="LoRA", training=asked).settings.training
    assert (training.batch_size, training.gradient_accumulation, training.gradient_checkpointing) == (3, 5, True)


@pytest.mark.slow
def test_a_batch_that_the_manifest_names_is_recomputed_where_it_would_not_fit_otherwise(
    shapes: dict[str, Path],
) -> None:
    """On a CPU, too, where more rows than the default are never chosen: more memory takes no fit away."""
    asked, data = {"batchSize": 8, "gradientAccumulation": 1}, dataset(4000, packed=False, length=1500)
    device = DeviceFacts(DeviceKind.CPU, None, bfloat16=True)
    spec = spec_of({"method": "QLoRA", "resources": {"gpus": 0}, "training": asked})
    needed = plan_training(basis_of(spec, shapes["8B"], device), 20_000, data).memory
    assert needed is not None
    least, most = (needed.of(8, again).total for again in (True, False))
    for memory in range(int(least * 1.07), int(most * 1.2), (most - least) // 12):
        plan = plan_training(basis_of(spec, shapes["8B"], replace(device, memory_bytes=memory)), 20_000, data)
        assert (plan.settings.training.batch_size, plan.fits) == (8, True), memory / GIB


@pytest.mark.slow
def test_one_long_row_among_many_is_counted(shapes: dict[str, Path]) -> None:
    """Some step trains on it, however few such rows there are."""
    few_long = dataset(4000, packed=False, length=1900)
    assert few_long.tokens is not None
    few_long = replace(few_long, tokens=replace(few_long.tokens, p50_length=40, p99_length=45))
    plan = planned(shapes["8B"], 80, few_long)
    assert plan.row_length == 1900
    assert plan.memory is not None
    assert plan.memory.length == 1900
    cut = planned(shapes["8B"], 80, few_long, training={"maxLength": 512})
    assert cut.row_length == 512


@pytest.mark.slow
def test_the_optimizers_state_is_in_8_bits_only_where_nothing_else_fits(shapes: dict[str, Path]) -> None:
    saved = {"lora": {"modulesToSave": ["embed_tokens", "lm_head"]}, "method": "LoRA"}
    roomy, tight = planned(shapes["8B"], 80, **saved), planned(shapes["8B"], 34, **saved)
    assert roomy.settings.training.optimizer is Optimizer.ADAMW
    assert tight.settings.training.optimizer is Optimizer.PAGED_ADAMW_8BIT
    assert tight.fits
    asked = planned(shapes["8B"], 34, training={"optimizer": "AdamW"}, **saved)
    assert asked.settings.training.optimizer is Optimizer.ADAMW
    assert not asked.fits


@pytest.mark.slow
def test_a_cpu_never_gets_bitsandbytes_optimizer(shapes: dict[str, Path]) -> None:
    device = DeviceFacts(DeviceKind.CPU, 8 * GIB, bfloat16=True)
    plan = plan_training(basis_of(spec_of({"method": "LoRA"}), shapes["8B"], device), 20_000, dataset(4000))
    assert not plan.fits
    assert plan.settings.training.optimizer is Optimizer.ADAMW


def test_without_a_known_memory_it_is_careful(shapes: dict[str, Path]) -> None:
    plan = planned(shapes["8B"], None)
    assert plan.settings.method is Method.QLORA
    assert plan.settings.training.gradient_checkpointing
    assert plan.settings.training.batch_size == 4


@pytest.mark.slow
def test_what_cannot_fit_is_planned_and_does_not_fit(shapes: dict[str, Path]) -> None:
    plan = planned(shapes["70B"], 24)
    assert plan.settings.method is Method.QLORA
    assert not plan.fits
    assert plan.settings.training.batch_size == 1


def wont_fit(plan: TrainingPlan, *, local: bool = False) -> list[str]:
    """Return the remedies of a plan that is rejected, each with its action."""
    with pytest.raises(TuneryError) as refused:
        check_memory(plan, local=local)
    assert refused.value.reason is FailureReason.WONT_FIT
    return [f"{each.action}: {each.text}" for each in refused.value.remedies]


@pytest.mark.parametrize("asked", [{}, {"gradientCheckpointing": False}])
def test_the_batch_that_a_refusal_names_fits_and_so_does_none(shapes: dict[str, Path], asked: dict[str, Any]) -> None:
    change, _ = wont_fit(planned(shapes["8B"], 48, method="LoRA", training={"batchSize": 256} | asked))
    named = re.fullmatch(r"Recreate: Set training\.batchSize to (\d+), or omit it", change)
    assert named is not None
    check_memory(planned(shapes["8B"], 48, method="LoRA", training={"batchSize": int(named[1])} | asked))
    left_out = planned(shapes["8B"], 48, method="LoRA", training=asked)
    check_memory(left_out)
    value = next(each for each in left_out.settings.values if each.name == "training.batchSize")
    assert (value.source, int(value.value)) == ("Rule", left_out.settings.training.batch_size)


@pytest.mark.slow
def test_the_length_that_a_refusal_names_fits(shapes: dict[str, Path]) -> None:
    long, data = {"maxLength": 8192}, dataset(4000, length=8192)
    change, gpu = wont_fit(planned(shapes["70B"], 56, data, method="QLoRA", training=long))
    named = re.fullmatch(r"Recreate: Set training\.maxLength to (\d+) or set resources\.gpus to 2", change)
    assert named is not None
    assert re.fullmatch(r"Recreate: Request a GPU with \d+ GiB of memory", gpu)
    check_memory(planned(shapes["70B"], 56, data, method="QLoRA", training={"maxLength": int(named[1])}))


@pytest.mark.slow
def test_without_a_hope_only_a_larger_gpu_is_named_and_holds_it(shapes: dict[str, Path]) -> None:
    (only,) = wont_fit(planned(shapes["70B"], 8))
    named = re.match(r"Recreate: Request a GPU with (\d+) GiB of memory: nothing else fits", only)
    assert named is not None
    check_memory(planned(shapes["70B"], int(named[1])))


def on_cpu(folder: Path, gibibytes: float, *, length: int = 400, processes: int = 1, **blocks: Any) -> TrainingPlan:
    """Return the plan of a job without a GPU, of 60 rows that are packed; all its processes share the memory."""
    device = DeviceFacts(DeviceKind.CPU, int(gibibytes * GIB), bfloat16=False).together(processes, 1)
    spec = spec_of({"method": "LoRA", "resources": {"gpus": 0}, **blocks})
    return plan_training(basis_of(spec, folder, device), 60, dataset(60, length=length))


KEPT: dict[str, Any] = {"batchSize": 32, "gradientAccumulation": 2, "maxLength": 2048, "gradientCheckpointing": False}


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_on_a_cpu_more_memory_takes_no_new_job_and_no_gpu_is_named(shapes: dict[str, Path], processes: int) -> None:
    small = partial(on_cpu, shapes["small"], processes=processes)
    change, memory = wont_fit(small(4 * processes, training=KEPT))
    assert change == "Recreate: Omit training.gradientCheckpointing and training.batchSize"
    named = re.fullmatch(r"Edit: Raise resources\.memory to (\d+)Gi", memory)
    assert named is not None, memory
    check_memory(small(int(named[1]), training=KEPT))
    wont_fit(small(int(named[1]) - 1, training=KEPT))
    check_memory(small(4 * processes, training={"gradientAccumulation": 2, "maxLength": 2048}))


def test_what_a_refusal_compares_reads_apart(shapes: dict[str, Path]) -> None:
    """A job may take little more than is counted on: 1.9 GiB of 1.9 GiB says nothing."""
    most = on_cpu(shapes["small"], 4, training=KEPT).memory
    assert most is not None
    tight = on_cpu(shapes["small"], needed_for(most.total - 2**20) / GIB, training=KEPT)
    with pytest.raises(TuneryError) as refused:
        check_memory(tight)
    numbers = re.findall(r"([\d,.]+) (?:MiB|GiB)", refused.value.message)
    assert len(set(numbers)) == len(numbers) == 3, refused.value.message


@pytest.mark.slow
def test_nothing_is_named_that_would_not_fit_either(shapes: dict[str, Path]) -> None:
    quantised = on_cpu(shapes["small"], 4, training={**KEPT, "batchSize": None}, method="QLoRA")
    assert not quantised.fits, "which is why QLoRA is not in the hint above"


@pytest.mark.slow
@pytest.mark.parametrize("gibibytes", [2.8, 3.6])
def test_each_change_that_is_named_fits(shapes: dict[str, Path], gibibytes: float) -> None:
    changes, _ = wont_fit(on_cpu(shapes["small"], gibibytes, training={"maxLength": 8192, "batchSize": 2}))
    named = re.fullmatch(r"Recreate: Omit training\.batchSize, and (.*)", changes)
    assert named is not None, changes
    for change in named[1].split(" or "):
        length = re.fullmatch(r"set training\.maxLength to (\d+)", change)
        assert length or change == "use method: QLoRA"
        training = {"maxLength": int(length[1]) if length else 8192}
        check_memory(on_cpu(shapes["small"], gibibytes, method="LoRA" if length else "QLoRA", training=training))


@pytest.mark.slow
def test_on_this_machine_it_is_the_machine_that_has_too_little(shapes: dict[str, Path]) -> None:
    change, machine = wont_fit(on_cpu(shapes["small"], 4, training=KEPT), local=True)
    assert change == "Recreate: Omit training.gradientCheckpointing and training.batchSize"
    assert re.fullmatch(r"Retry: Use a machine with \d+ GiB of memory", machine)
    (only,) = wont_fit(on_cpu(shapes["8B"], 4), local=True)
    assert re.match(r"Retry: Use a machine with \d+ GiB of memory: nothing else fits", only), only


def test_auto_names_what_the_others_would_have_taken(shapes: dict[str, Path]) -> None:
    plan = planned(shapes["8B"], 16)
    reason = plan.settings.method_reason
    assert re.search(r"It takes about [\d.]+ GiB of 16\.0 GiB; LoRA would take [\d.]+ GiB\.$", reason)


@pytest.mark.slow
def test_a_manifest_that_names_single_layers_gets_all_of_them(shapes: dict[str, Path]) -> None:
    lora = {"targetModules": ["model.layers.5.self_attn.q_proj", "model.layers.30.self_attn.q_proj"], "rank": 8}
    plan = planned(shapes["8B"], 80, method="LoRA", lora=lora)
    assert plan.trainable_parameters == 2 * 8 * (4096 + 4096)


@pytest.mark.slow(fast=["KTO-1", "SFT-1"])
@pytest.mark.parametrize(("task", "sequences"), [("SFT", 1), ("KTO", 1), ("DPO", 2), ("ORPO", 2)])
def test_a_pair_counts_twice_in_the_estimate(shapes: dict[str, Path], task: str, sequences: int) -> None:
    asked: dict[str, Any] = {"batchSize": 2, "gradientCheckpointing": True}
    plain = {"method": "LoRA", "lora": {"dropout": 0}}  # SFT's own keeps a mask of each input
    data = dataset(4000, packed=False)
    plan, single = (planned(shapes["8B"], 80, data, task=name, training=asked, **plain) for name in (task, "SFT"))
    assert plan.memory is not None
    assert single.memory is not None
    assert plan.memory.recomputing.kept.per_row == pytest.approx(sequences * single.memory.recomputing.kept.per_row)


@pytest.mark.slow
def test_small_data_is_not_packed_and_has_small_steps(shapes: dict[str, Path]) -> None:
    plan = planned(shapes["8B"], 80, dataset(190, packed=False), method="LoRA")
    training = plan.settings.training
    assert (training.packing, training.epochs, plan.steps) == (False, 3.0, 144)


@pytest.mark.slow
@pytest.mark.parametrize(("init", "method"), [("PiSSA", "LoRA"), ("OLoRA", "LoRA"), ("LoftQ", "QLoRA")])
def test_a_rank_above_a_weights_directions_is_refused_where_the_start_needs_them(
    tmp_path: Path, llama: Path, init: str, method: str
) -> None:
    shape = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8, "num_key_value_heads": 1}
    LlamaConfig(**shape, num_hidden_layers=2, vocab_size=64).save_pretrained(tmp_path)
    load_tokenizer(llama).save_pretrained(tmp_path)
    lora: dict[str, Any] = {"rank": 64, "init": init}
    with pytest.raises(TuneryError, match=r"spec\.lora\.rank: 64, but k_proj is 32 x 256: .* lower lora.rank to 32"):
        planned(tmp_path, 24, method=method, lora=lora)
    assert planned(tmp_path, 24, method=method, lora=lora | {"rank": 32}).steps
    assert planned(tmp_path, 24, method=method, lora=lora | {"rankPattern": {"k_proj": 32, "v_proj": 32}}).steps
    assert planned(tmp_path, 24, method=method, lora=lora | {"init": "Default"}).steps
    assert planned(tmp_path, 24, method=method, lora=lora | {"init": "EVA"}).steps, "only the inputs count"
    with pytest.raises(TuneryError, match=r"spec\.lora\.rank: 300, but .* EVA finds 256 directions there"):
        planned(tmp_path, 24, method=method, lora={"rank": 300, "init": "EVA"})
