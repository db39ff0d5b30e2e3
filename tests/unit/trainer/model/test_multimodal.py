"""A checkpoint that reads images, too, gets an adapter on its language model only, and plain PEFT loads it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from tunery_api.reasons import FailureReason
from tunery_api.training import Optimizer
from tunery_common.errors import TuneryError
from tunery_trainer.adapter.attach import attach, trainable_parameters
from tunery_trainer.adapter.save import save_published
from tunery_trainer.model.language_part import TEXT_OF_IMAGE_TEXT, auto_class, decoder_layers
from tunery_trainer.model.load import load_base, load_config, meta_model, model_facts
from tunery_trainer.model.memory import MemoryPlan, estimate_memory, trained_number
from tunery_trainer.model.outline import outline
from tunery_trainer.model.targets import check_modules_to_save, linear_layers, resolve_targets

from kit.models_of_today import MULTIMODAL, TEXT_CLASSES, write_multimodal
from kit.training import logits_of, loop, resolved_for, start_for, token_rows, train

Folder = Callable[[str], Path]
PLAN = MemoryPlan(2, 64, None, Optimizer.ADAMW, gradient_checkpointing=True, on_gpu=False)


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    folders: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in folders:
            folders[kind] = write_multimodal(tmp_path_factory.mktemp(kind), kind)
        return folders[kind]

    return folder


def test_what_is_allowed_is_what_is_tested() -> None:
    assert MULTIMODAL.keys() >= TEXT_OF_IMAGE_TEXT


@pytest.mark.slow
@pytest.mark.parametrize("kind", MULTIMODAL)
def test_no_tower_is_adapted_and_plain_peft_loads_it(folder_of: Folder, tmp_path: Path, kind: str) -> None:
    folder = folder_of(kind)
    model, before, after = loop(folder, tmp_path / "loop", {"method": "LoRA"})
    assert after < before
    published = tmp_path / "published"
    save_published(model, published, "owner/base")
    tensors = load_file(published / "adapter_model.safetensors")
    assert all(".language_model." in name for name in tensors)
    assert all(bool(tensor.any()) for name, tensor in tensors.items() if "lora_B" in name)
    config = json.loads((published / "adapter_config.json").read_text())
    assert {"q_proj", "k_proj", "v_proj", "o_proj"} <= set(config["target_modules"])
    plain = auto_class(AutoConfig.from_pretrained(folder)).from_pretrained(folder, dtype=torch.float32)
    unadapted = logits_of(plain)
    loaded = logits_of(PeftModel.from_pretrained(plain, str(published)))
    assert (loaded - logits_of(model)).abs().max() <= 1e-5
    assert (loaded - unadapted).abs().max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("kind", TEXT_CLASSES)
def test_where_there_is_a_class_for_text_alone_it_is_taken(folder_of: Folder, tmp_path: Path, kind: str) -> None:
    folder = folder_of(kind)
    tower = [name for name in load_file(folder / "model.safetensors") if "vision" in name or "visual" in name]
    model, before, after = loop(folder, tmp_path / "loop", {"method": "LoRA"})
    assert tower
    assert after < before
    save_published(model, tmp_path / "published", "owner/base")
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert not any("vision" in name or "visual" in name for name, _ in plain.named_parameters())
    published = PeftModel.from_pretrained(plain, str(tmp_path / "published"))
    assert (logits_of(published) - logits_of(model)).abs().max() <= 1e-5


@pytest.mark.parametrize("blocks", [{"method": "AdaLoRA"}, {"method": "QLoRA"}, {"method": "IA3"}, {"method": "DoRA"}])
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gemma3", "mistral3", "qwen2_5_vl"])
def test_other_methods_work_there(folder_of: Folder, tmp_path: Path, kind: str, blocks: dict[str, Any]) -> None:
    model, before, after = loop(folder_of(kind), tmp_path / "loop", blocks)
    assert after < before
    save_published(model, tmp_path / "published", "owner/base")
    assert all(".language_model." in name for name in load_file(tmp_path / "published" / "adapter_model.safetensors"))


@pytest.mark.parametrize("method", ["PromptTuning", "PrefixTuning"])
@pytest.mark.parametrize("kind", ["gemma3", "mistral3"])
def test_virtual_tokens_work_there(folder_of: Folder, tmp_path: Path, kind: str, method: str) -> None:
    run = train(folder_of(kind), {"method": method}, steps=4)
    assert run.losses[-1] < run.losses[0]
    save_published(run.model, tmp_path, "owner/base")
    published = PeftModel.from_pretrained(load_base(folder_of(kind), run.resolved, "cpu"), str(tmp_path))
    assert (logits_of(published) - run.logits()).abs().max() <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("kind", MULTIMODAL)
def test_the_estimate_finds_the_language_models_layers(folder_of: Folder, kind: str) -> None:
    model = meta_model(folder_of(kind))
    layers = decoder_layers(model)
    assert len(layers) == 2
    assert any(path.startswith("self_attn.q_proj") for path, _ in layers[0].named_modules())
    resolved = resolved_for(folder_of(kind), {"method": "LoRA"})
    shape = outline(folder_of(kind))
    adapted = attach(shape.fresh(), resolved, start_for(folder_of(kind))).train()
    estimate = estimate_memory(adapted, shape, PLAN)
    assert 0 < estimate.recomputing.kept.per_row < estimate.plain.kept.per_row
    real = attach(load_base(folder_of(kind), resolved, "cpu"), resolved, start_for(folder_of(kind)))
    assert trained_number(adapted, shape) == trainable_parameters(real)


@pytest.mark.parametrize("kind", ["gemma3", "mistral3", "llava", "internvl", "aya_vision"])
def test_what_is_called_packable_gives_the_same_logits_packed(folder_of: Folder, kind: str) -> None:
    folder = folder_of(kind)
    assert model_facts(folder).packable
    model = load_base(folder, resolved_for(folder, {"method": "LoRA"}), "cpu").train()
    rows = token_rows(3)
    with torch.no_grad():
        single = model(input_ids=rows).logits.reshape(32, -1)
        packed = model(input_ids=rows.reshape(1, 32), position_ids=torch.arange(16).repeat(2)[None]).logits[0]
    assert (single - packed).abs().max() <= 1e-4


def test_names_of_the_tower_are_refused(folder_of: Folder) -> None:
    model = meta_model(folder_of("mistral3"))
    assert any("vision_tower" in path for path, _ in model.named_modules())
    assert all(path.startswith("model.language_model.") for path in linear_layers(model))
    with pytest.raises(TuneryError, match="'linear_1' matches no module"):
        resolve_targets(model, ["linear_1"])
    check_modules_to_save(model, ["embed_tokens", "language_model.norm", "lm_head"])
    with pytest.raises(TuneryError, match=r"modulesToSave\[0\]: 'norm' is also the ending of .*multi_modal_projector"):
        check_modules_to_save(model, ["norm"])


def test_a_tower_that_needs_a_library_of_its_own_is_refused(tmp_path: Path) -> None:
    AutoConfig.for_model("gemma3n").save_pretrained(tmp_path)
    with pytest.raises(TuneryError, match=r"model type 'gemma3n' needs a library that is not here: .*timm") as caught:
        meta_model(tmp_path)
    assert caught.value.reason is FailureReason.MODEL_UNSUPPORTED


def test_what_is_not_known_to_train_on_text_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "paligemma"}))
    with pytest.raises(TuneryError, match=r"'paligemma' reads images, .* those of aya_vision, ") as caught:
        load_config(tmp_path)
    assert caught.value.reason is FailureReason.MODEL_UNSUPPORTED
