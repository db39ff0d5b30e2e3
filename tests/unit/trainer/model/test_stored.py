"""A checkpoint that bitsandbytes has quantised is trained on as it is; every other kind is refused by its name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from tunery_api.methods import Method, QuantizationType
from tunery_api.reasons import FailureReason
from tunery_api.training import Optimizer
from tunery_common.errors import TuneryError
from tunery_trainer.adapter.attach import attach
from tunery_trainer.adapter.save import save_published
from tunery_trainer.model.load import load_base, load_config, load_tokenizer, model_facts
from tunery_trainer.model.memory import MemoryPlan, estimate_memory
from tunery_trainer.model.outline import outline
from tunery_trainer.settings.auto_method import method_choices

from kit.tiny_models import write_family
from kit.training import CPU, logits_of, resolved_for, spec_of, start_for, train

Folder = Callable[[str], Path]
STORED: dict[str, dict[str, Any]] = {
    "NF4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "FP4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    "Int8": {"load_in_8bit": True},
    "skipped": {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "llm_int8_skip_modules": ["lm_head", "model.layers.1.mlp"],
    },
}
OTHERS = [
    pytest.param({"quant_method": "gptq", "bits": 4}, "GPTQ", id="gptq"),
    pytest.param({"quant_method": "awq", "bits": 4}, "AWQ", id="awq"),
    pytest.param({"quant_method": "fp8", "weight_block_size": [128, 128]}, "FP8", id="fp8"),
    pytest.param({"quant_method": "mxfp4"}, "MXFP4", id="mxfp4"),
    pytest.param({"quant_method": "compressed-tensors"}, "compressed-tensors", id="compressed-tensors"),
    pytest.param({"quant_method": "torchao"}, "torchao", id="torchao"),
]


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """Returns the folder of a Llama that was quantised and then saved, as `*-bnb-4bit` repositories are."""
    folders: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in folders:
            source = write_family(tmp_path_factory.mktemp("source"), "llama")
            model = AutoModelForCausalLM.from_pretrained(
                source,
                quantization_config=BitsAndBytesConfig(bnb_4bit_compute_dtype="bfloat16", **STORED[kind]),
                dtype=torch.bfloat16,
                device_map={"": "cpu"},
            )
            folders[kind] = tmp_path_factory.mktemp(kind)
            model.save_pretrained(folders[kind])
            load_tokenizer(source).save_pretrained(folders[kind])
        return folders[kind]

    return folder


def as_users_load_it(folder: Path) -> Any:
    """The model by plain transformers, without bitsandbytes' layout for some CPUs, which takes no width of 96."""
    model = AutoModelForCausalLM.from_pretrained(folder, device_map={"": "cpu"})
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


@pytest.mark.parametrize("precision", ["Float32", "BFloat16"])
@pytest.mark.parametrize("kind", STORED)
def test_it_is_loaded_as_it_is_stored(folder_of: Folder, kind: str, precision: str) -> None:
    folder = folder_of(kind)
    resolved = resolved_for(folder, {"method": "QLoRA", "training": {"precision": precision}})
    model = load_base(folder, resolved, "cpu")
    again = as_users_load_it(folder)
    path, dtype = "model.layers.0.self_attn.q_proj", getattr(torch, precision.lower())
    assert torch.equal(model.get_submodule(path).weight, again.get_submodule(path).weight)
    assert model.get_submodule(path).weight.dtype is (torch.int8 if kind == "Int8" else torch.uint8)
    if kind != "Int8":
        assert model.get_submodule(path).compute_dtype is dtype
    assert model.get_input_embeddings().weight.dtype is dtype
    left = model.get_submodule("model.layers.1.mlp.up_proj").weight.dtype
    assert (left is dtype) is (kind == "skipped")
    # The stored types round in bfloat16; in Float32 only the stored weights do.
    expected, found = logits_of(again).float(), logits_of(model).float()
    assert (found - expected).norm() / expected.norm() < 0.05


@pytest.mark.slow(only=["NF4-QDoRA"])
@pytest.mark.parametrize("method", ["QLoRA", "QDoRA", "AdaLoRA", "IA3", "PromptTuning", "PrefixTuning"])
@pytest.mark.parametrize("kind", ["NF4", "Int8"])
def test_it_trains_and_plain_peft_loads_what_is_published_on_it(
    folder_of: Folder, tmp_path: Path, kind: str, method: str
) -> None:
    if (kind, method) == ("Int8", "QDoRA"):
        return
    folder = folder_of(kind)
    run = train(folder, {"method": method})
    assert run.losses[-1] < run.losses[0]
    save_published(run.model, tmp_path, "owner/base-bnb-4bit")
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"].endswith("bnb-4bit")
    published = PeftModel.from_pretrained(load_base(folder, run.resolved, "cpu"), str(tmp_path))
    assert (logits_of(published) - run.logits()).abs().max() <= 1e-5
    if method in ("QLoRA", "QDoRA"):  # PEFT's others ask for autocast on a base in 16 bits
        seen = logits_of(PeftModel.from_pretrained(as_users_load_it(folder), str(tmp_path))).float()
        assert (seen - run.logits()).norm() / run.logits().norm() < 0.05


def test_the_facts_and_the_settings_say_it(folder_of: Folder) -> None:
    stored = model_facts(folder_of("NF4")).stored
    assert stored is not None
    assert (stored.type, stored.double_quant) == (QuantizationType.NF4, True)
    resolved = resolved_for(folder_of("FP4"), {"method": "QLoRA", "quantization": {"type": "FP4"}})
    told = {value.name: (value.value, value.source) for value in resolved.values}
    assert told["quantization.type"] == ("FP4", "Model")
    assert told["quantization.doubleQuant"] == ("false", "Model")
    assert told["quantization.computeType"] == ("Float32", "Rule")


def test_auto_takes_qlora_there(folder_of: Folder) -> None:
    stored = model_facts(folder_of("NF4")).stored
    spec = spec_of({"method": "Auto"})
    assert [choice.method for choice in method_choices(spec, 500, CPU, stored)] == [Method.QLORA]
    few = method_choices(spec, 50, CPU, stored)
    assert [choice.method for choice in few] == [Method.PROMPT_TUNING, Method.QLORA]


@pytest.mark.parametrize(
    ("kind", "blocks", "said"),
    [
        (
            "NF4",
            {"method": "LoRA"},
            "spec.method: LoRA trains on an unquantised base, this one's weights are NF4; use QLoRA",
        ),
        ("NF4", {"method": "DoRA"}, "spec.method: DoRA trains on an unquantised base"),
        ("Int8", {"method": "QDoRA"}, "spec.method: QDoRA works on 4 bits, this base's weights are Int8; use QLoRA"),
        ("NF4", {"method": "QLoRA", "lora": {"init": "LoftQ"}}, "spec.lora.init: LoftQ makes up for"),
        (
            "NF4",
            {"method": "QLoRA", "quantization": {"type": "Int8"}},
            "spec.quantization.type: is Int8, but the base is quantised already, with NF4; leave it out",
        ),
        (
            "FP4",
            {"method": "IA3", "quantization": {"type": "FP4", "doubleQuant": True}},
            "spec.quantization.doubleQuant: is true, but the base is quantised already, with false; leave it out",
        ),
    ],
)
def test_what_it_cannot_do_is_refused(folder_of: Folder, kind: str, blocks: dict[str, Any], said: str) -> None:
    with pytest.raises(TuneryError) as caught:
        resolved_for(folder_of(kind), blocks)
    assert caught.value.reason is FailureReason.INVALID_SPEC
    assert caught.value.message.startswith(said)


@pytest.mark.slow
@pytest.mark.parametrize("kind", STORED)
def test_the_estimate_counts_what_is_stored(folder_of: Folder, kind: str) -> None:
    folder = folder_of(kind)
    resolved = resolved_for(folder, {"method": "QLoRA", "training": {"precision": "BFloat16"}})
    plan = MemoryPlan(2, 64, resolved.quantization, Optimizer.ADAMW, gradient_checkpointing=True, on_gpu=False)
    shape = outline(folder)
    estimate = estimate_memory(attach(shape.fresh(), resolved, start_for(folder)).train(), shape, plan)
    files = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    # In the files are headers, too, and for each layer a code book of 16 or 256 numbers.
    assert files * 0.6 < estimate.weights < files
    loaded = load_base(folder, resolved, "cpu").state_dict()
    held = sum(
        t.numel() * t.element_size() for n, t in loaded.items() if "quant_map" not in n and "quant_state" not in n
    )
    assert estimate.weights == pytest.approx(held, rel=0.02)


@pytest.mark.parametrize(("block", "name"), OTHERS)
@pytest.mark.parametrize("nested", [False, True])
def test_every_other_kind_is_refused_by_its_name(
    tmp_path: Path, llama: Path, block: dict[str, Any], name: str, nested: bool
) -> None:
    config = json.loads((llama / "config.json").read_text())
    config |= {"text_config": {"quantization_config": block}} if nested else {"quantization_config": block}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(TuneryError) as caught:
        load_config(tmp_path)
    assert caught.value.reason is FailureReason.MODEL_UNSUPPORTED
    assert f"already quantised by {name}, which no adapter is trained on here" in caught.value.message
    assert "name the 16-bit model" in caught.value.message
