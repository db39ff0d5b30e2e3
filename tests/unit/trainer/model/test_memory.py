"""The memory estimate moves as memory does, and a few layers tell what all of them take."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model
from transformers import Gemma3TextConfig, LlamaConfig, PreTrainedConfig, Qwen3MoeConfig

from tunery_api.methods import ComputeType, QuantizationType
from tunery_api.training import Optimizer, Precision
from tunery_trainer.adapter.attach import attach
from tunery_trainer.model.load import meta_model
from tunery_trainer.model.memory import MemoryPlan, estimate_memory, trained_number
from tunery_trainer.model.outline import outline
from tunery_trainer.settings.memory import SAFETY, Activations, Bent, Line, MemoryEstimate
from tunery_trainer.settings.types import QuantizationSettings
from tunery_trainer.settings.units import compared, human_bytes

from kit.training import resolved_for, start_for

PLAN = MemoryPlan(2, 64, None, Optimizer.ADAMW, gradient_checkpointing=False, on_gpu=True)
INT8, NF4 = (
    QuantizationSettings(kind, double_quant=True, compute_type=ComputeType.BFLOAT16)
    for kind in (QuantizationType.INT8, QuantizationType.NF4)
)


def estimate(folder: Path, plan: MemoryPlan, *, whole: bool = False, **options: Any) -> MemoryEstimate:
    """Return the estimate for LoRA of rank 8 on the tiny model."""
    config = LoraConfig(**{"r": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"} | options)
    found = outline(folder, whole=whole)
    model = get_peft_model(found.fresh(), config).train()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return estimate_memory(model, found, plan)


def test_weights_and_moments_are_counted_exactly(tiny_model: Path) -> None:
    found = estimate(tiny_model, PLAN)
    trained = 2 * 8 * ((64 + 64) + (64 + 32))
    assert found.adapter == found.gradients == 4 * trained
    assert found.optimizer == 2 * 4 * trained
    assert found.weights == 2 * meta_model(tiny_model).num_parameters()
    in_32_bits = estimate(tiny_model, replace(PLAN, precision=Precision.FLOAT32))
    assert in_32_bits.weights == 2 * found.weights


@pytest.mark.slow
def test_an_embedding_that_is_the_head_too_is_not_quantised(tmp_path: Path, tiny_model: Path) -> None:
    """As bitsandbytes has it: Llama 3.2, Gemma and SmolLM2 tie them."""
    config = json.loads((tiny_model / "config.json").read_text())
    sizes = {}
    for tied in (True, False):
        folder = tmp_path / str(tied)
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": tied}))
        sizes[tied] = estimate(folder, replace(PLAN, quantization=NF4)).weights
    assert sizes[False] - sizes[True] == 2 * config["vocab_size"] * config["hidden_size"]


@pytest.mark.slow
def test_activations_grow_with_length_and_shrink_with_checkpointing(tiny_model: Path) -> None:
    plan = replace(PLAN, masked=False)  # a mask is square
    short, long = estimate(tiny_model, plan), estimate(tiny_model, replace(plan, length=128))
    assert long.plain.kept.per_row == pytest.approx(2 * short.plain.kept.per_row, rel=0.05)
    assert short.recomputing.peak.per_row < short.plain.peak.per_row
    assert short.recomputing.kept.per_row < short.plain.kept.per_row
    saving = estimate(tiny_model, replace(plan, gradient_checkpointing=True))
    assert short.of(2, gradient_checkpointing=True) == saving


@pytest.mark.slow
def test_a_mask_is_kept_and_keys_are_repeated(tiny_model: Path) -> None:
    with_mask, without = (estimate(tiny_model, replace(PLAN, masked=masked)) for masked in (True, False))
    layers, heads, key_heads, width = 2, 4, 2, 16
    mask, repeated = 2 * 64 * 64, 2 * 2 * 64 * (heads - key_heads) * width
    more = with_mask.plain.kept.per_row - without.plain.kept.per_row
    assert layers * (mask + repeated) <= more <= layers * (mask + repeated) + 64 * 64


@pytest.mark.slow
def test_int8_keeps_the_input_of_every_layer_and_4_bits_do_not(tiny_model: Path) -> None:
    plain, eight, four = (estimate(tiny_model, replace(PLAN, quantization=kind)) for kind in (None, INT8, NF4))
    assert eight.plain.kept.per_row > plain.plain.kept.per_row
    assert four.plain.kept.per_row <= plain.plain.kept.per_row
    assert four.weights < eight.weights < plain.weights


@pytest.mark.slow
def test_on_a_cpu_the_tile_of_logits_is_worked_on_in_copies(tiny_model: Path) -> None:
    gpu, cpu = (estimate(tiny_model, replace(PLAN, on_gpu=on_gpu, batch_size=16)) for on_gpu in (True, False))
    assert cpu.plain.peak.per_row > gpu.plain.peak.per_row
    assert cpu.plain.kept == gpu.plain.kept


@pytest.mark.slow
def test_a_tile_that_is_not_full_is_counted_as_it_is(tiny_model: Path) -> None:
    """It grows with the rows until it is full: a chord from one row to sixteen would lie below what four take."""
    plan = replace(PLAN, on_gpu=False, length=256)
    found = estimate(tiny_model, plan).plain.peak
    assert isinstance(found, Bent)
    assert found.rows == 4
    for rows in (1, 2, 3, 4, 5, 8, 16):
        exact = estimate(tiny_model, replace(plan, length=256 * rows, masked=False)).plain.peak.of(1)
        by_rows = estimate(tiny_model, replace(plan, masked=False)).plain.peak.of(rows)
        assert by_rows == pytest.approx(exact, rel=0.03)


@pytest.mark.slow
def test_a_pair_takes_two_sequences(tiny_model: Path) -> None:
    single, pair = estimate(tiny_model, PLAN), estimate(tiny_model, replace(PLAN, sequences=2))
    both = estimate(tiny_model, replace(PLAN, batch_size=4))
    assert pair.plain.peak.per_row == pytest.approx(2 * single.plain.peak.per_row, rel=0.02)
    assert pair.length == 2 * single.length
    assert pair.total == pytest.approx(both.total, rel=0.001)


DEEP: dict[str, PreTrainedConfig] = {
    "alike": LlamaConfig(num_hidden_layers=9, num_key_value_heads=2),
    "two kinds": Gemma3TextConfig(num_hidden_layers=13, sliding_window=16, head_dim=16, sliding_window_pattern=6),
    "dense, then a mixture": Qwen3MoeConfig(
        num_hidden_layers=8, mlp_only_layers=[0, 1], num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32
    ),
}
SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "vocab_size": 64}
METHODS: dict[str, dict[str, Any]] = {
    "LoRA": {},
    "QLoRA": {},
    "DoRA": {},
    "QDoRA": {},
    "AdaLoRA": {},
    "IA3": {},
    "PromptTuning": {"promptTuning": {"virtualTokens": 8}},
    "PrefixTuning": {"prefixTuning": {"virtualTokens": 8}},
}


@pytest.mark.slow(fast=["alike-LoRA"])
@pytest.mark.parametrize(("kind", "method"), list(product(DEEP, METHODS)))
def test_a_few_layers_tell_what_all_of_them_take(tmp_path: Path, llama: Path, kind: str, method: str) -> None:
    config = DEEP[kind]
    for name, value in SMALL.items():
        setattr(config, name, value)
    config.save_pretrained(tmp_path)
    for path in llama.glob("token*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    resolved = resolved_for(tmp_path, {"method": method, "training": {"precision": "BFloat16"}} | METHODS[method])
    plan = replace(PLAN, quantization=resolved.quantization, recomputable=method != "PrefixTuning")
    found = []
    for whole in (False, True):
        shape = outline(tmp_path, whole=whole)
        model = attach(shape.fresh(), resolved, start_for(tmp_path)).train()
        found.append((trained_number(model, shape), estimate_memory(model, shape, plan)))
        assert len(shape.times) < config.num_hidden_layers or whole
    (few, by_few), (all_of_them, by_all) = found
    assert few == all_of_them
    if kind == "alike" and method != "PrefixTuning":
        assert by_few == by_all
    assert (by_few.weights, by_few.optimizer) == (by_all.weights, by_all.optimizer)
    assert by_few.total == pytest.approx(by_all.total, rel=1e-3)
    for part in ("plain", "recomputing"):
        less, more = (getattr(each, part).peak.per_row for each in (by_few, by_all))
        # The last layer may be of another kind than the one that takes most: then it is rather too much.
        assert 0.99 * more <= less <= 1.1 * more


def made_up(**more: Any) -> MemoryEstimate:
    """Return an estimate of round numbers."""
    plain = Activations(Line(60, 120), Line(10, 100))
    parts: dict[str, Any] = {
        "weights": 1000,
        "adapter": 10,
        "gradients": 10,
        "optimizer": 20,
        "plain": plain,
        "recomputing": Activations(Line(60, 40), Line(10, 20)),
        "overhead": 500,
        "length": 64,
        "batch_size": 8,
        "gradient_checkpointing": False,
    }
    return MemoryEstimate(**parts | more)


def test_the_largest_batch_fits_and_one_more_does_not() -> None:
    found = made_up()
    room = int(found.total / (1 - SAFETY)) + 2
    largest = found.largest_batch(room)
    assert largest == 8
    assert found.fits(room)
    assert not found.of(9, gradient_checkpointing=False).fits(room)
    assert found.of(9, gradient_checkpointing=True).fits(room)
    assert not found.fits(found.total)
    assert found.largest_batch(1200) is None


def test_the_largest_batch_where_the_peak_is_bent() -> None:
    found = made_up(plain=Activations(Bent(Line(60, 120), Line(360, 20), 3), Line(10, 100)))
    for rows in (1, 2, 3, 4, 9):
        room = int(found.of(rows, gradient_checkpointing=False).total / (1 - SAFETY)) + 2
        assert found.largest_batch(room) == rows


def test_a_heap_loses_more_than_a_caching_allocator_but_where_it_gives_back() -> None:
    gpu, cpu = made_up(), made_up(on_gpu=False)
    assert cpu.total > gpu.total
    assert cpu.of(8, gradient_checkpointing=True).total == gpu.of(8, gradient_checkpointing=True).total


def test_the_parts_make_the_total() -> None:
    found = made_up()
    parts = found.in_parts(steps=5, tokens=7).to_json_dict()
    assert (parts.pop("steps"), parts.pop("tokens"), parts.pop("rowBytes")) == (5, 7, 126)
    assert sum(parts.values()) == found.total
    assert (parts["activationsBytes"], parts["workspaceBytes"]) == (810, 210)


def test_a_shorter_row_fits_where_a_long_one_does_not() -> None:
    found = made_up(batch_size=1)
    room = int((found.total - 60) / (1 - SAFETY))
    assert found.largest_batch(room) is None
    assert 0 < found.share_of_length(room) < 1
    assert found.share_of_length(500) == 0


def test_bytes_for_people() -> None:
    assert [human_bytes(count) for count in (0, 900, 1536, 3 * 2**30)] == ["0 B", "900 B", "1.5 KiB", "3.0 GiB"]


def test_amounts_that_are_compared_read_apart_where_they_differ() -> None:
    mib = 2**20
    for counts, said in (
        ((3072 * mib, 2048 * mib), ["3.0 GiB", "2.0 GiB"]),
        ((2048 * mib, 2048 * mib), ["2.0 GiB", "2.0 GiB"]),
        ((1989 * mib, 1925 * mib), ["1,989 MiB", "1,925 MiB"]),
        ((1975 * mib, 2048 * mib, 1925 * mib), ["1,975 MiB", "2,048 MiB", "1,925 MiB"]),
        ((2048 * mib + 1, 2048 * mib), ["2,147,483,649 B", "2,147,483,648 B"]),
        ((900, 1536), ["900 B", "1.5 KiB"]),
    ):
        assert compared(*counts) == said
