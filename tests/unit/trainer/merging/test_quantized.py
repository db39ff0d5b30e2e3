"""A QLoRA adapter belongs to the dequantised base: merged there, the model computes what was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from peft.utils.integrations import dequantize_bnb_weight
from transformers import BitsAndBytesConfig

from tunery_api.methods import QuantizationType
from tunery_trainer.merging.adapter_files import open_adapter
from tunery_trainer.merging.base_model import open_checkpoint
from tunery_trainer.merging.files import LocalFiles
from tunery_trainer.merging.into_base import IntoBase, merge_into_base
from tunery_trainer.merging.quantized import Quantization

from kit.adapters import logits, relative, trained_adapter, with_adapter
from kit.tiny_models import Tiny, load, save_tiny


def four_bit(settings: Quantization) -> BitsAndBytesConfig:
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=settings.type.lower(),
        bnb_4bit_use_double_quant=settings.double,
        bnb_4bit_compute_dtype=settings.dtype,
    )


def merge(
    base: Path, adapter: Path, target: Path, quantization: Quantization | None, dtype: torch.dtype = torch.float32
) -> Path:
    target.mkdir()
    checkpoint, opened = open_checkpoint(LocalFiles(base)), open_adapter(LocalFiles(adapter))
    merge_into_base(checkpoint, opened, target, IntoBase(dtype, quantization, verify=True))
    return target


CASES = {
    "NF4": Quantization(QuantizationType.NF4, double=False, dtype=torch.float32),
    "NF4 double": Quantization(QuantizationType.NF4, double=True, dtype=torch.float32),
    "FP4": Quantization(QuantizationType.FP4, double=True, dtype=torch.float32),
}


def layers(kind: Tiny) -> list[str]:
    return ["c_attn", "c_fc"] if kind == Tiny.GPT2 else ["q_proj", "down_proj"]


def sizes(kind: Tiny) -> dict[str, Any]:
    return {"n_embd": 128} if kind == Tiny.GPT2 else {"hidden_size": 128, "intermediate_size": 256}


@pytest.mark.slow(fast=["NF4-llama-*"])
@pytest.mark.parametrize("dora", [False, True], ids=["qlora", "qdora"])
@pytest.mark.parametrize("kind", list(Tiny))
@pytest.mark.parametrize("case", list(CASES))
def test_logits_equal_the_quantised_base_with_its_adapter(tmp_path: Path, case: str, kind: Tiny, dora: bool) -> None:
    settings = CASES[case]
    base = save_tiny(tmp_path / "base", kind, torch.float32, **sizes(kind))
    config = LoraConfig(r=4, target_modules=layers(kind), use_dora=dora)
    quantized = {"quantization_config": four_bit(settings)}
    adapter = trained_adapter(base, config, tmp_path / "adapter", seed=2, **quantized)
    expected = logits(base, adapter, **quantized)
    error = relative(logits(merge(base, adapter, tmp_path / "merged", settings)), expected)
    wrong = relative(logits(merge(base, adapter, tmp_path / "original", None)), expected)
    # What is left is bitsandbytes' own: its CPU kernels for inference multiply in bfloat16.
    assert error <= 0.01
    assert wrong > 2 * error


def test_bfloat16_stays_within_a_hundredth(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", Tiny.LLAMA_TIED, torch.bfloat16, **sizes(Tiny.LLAMA_TIED))
    settings = Quantization()
    quantized = {"quantization_config": four_bit(settings)}
    adapter = trained_adapter(
        base, LoraConfig(r=4, target_modules=layers(Tiny.LLAMA_TIED)), tmp_path / "a", seed=2, **quantized
    )
    merged = merge(base, adapter, tmp_path / "merged", settings, torch.bfloat16)
    assert relative(logits(merged), logits(base, adapter, **quantized)) <= 0.01


@pytest.mark.slow(only=["FP4-gpt2"])
@pytest.mark.parametrize("kind", [Tiny.LLAMA_TIED, Tiny.GPT2])
@pytest.mark.parametrize("case", [*CASES, "Int8"])
def test_weights_equal_what_the_quantised_base_holds(tmp_path: Path, case: str, kind: Tiny) -> None:
    """Exact where logits cannot be: with Int8 even the activations are quantised."""
    settings = CASES.get(case, Quantization(QuantizationType.INT8, dtype=torch.float32))
    base = save_tiny(tmp_path / "base", kind, torch.float32, **sizes(kind))
    make = four_bit(settings) if case in CASES else BitsAndBytesConfig(load_in_8bit=True)
    adapter = trained_adapter(
        base, LoraConfig(r=4, target_modules=layers(kind)), tmp_path / "adapter", seed=2, quantization_config=make
    )
    merged = load(merge(base, adapter, tmp_path / "merged", settings))
    checked = 0
    for name, module in with_adapter(base, adapter, quantization_config=make).named_modules():
        if hasattr(module, "get_delta_weight"):
            layer = module.get_base_layer()
            held = dequantize_bnb_weight(layer.weight, state=getattr(layer, "state", None)).float()
            weight = merged.get_submodule(name.removeprefix("base_model.model.")).weight
            expected = held + module.get_delta_weight("default")
            assert relative(weight.T if kind == Tiny.GPT2 else weight, expected) <= 1e-6
            checked += 1
    assert checked == 4
