"""The experts of a mixture carry the adapter, routers never do, and plain PEFT loads what is published."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tunery_api.reasons import FailureReason
from tunery_api.training import Optimizer
from tunery_common.errors import TuneryError
from tunery_trainer.adapter.attach import attach, target_modules, trainable_parameters
from tunery_trainer.adapter.continue_from import attach_published, settings_from
from tunery_trainer.adapter.save import save_published
from tunery_trainer.model.load import load_base, meta_model, model_facts
from tunery_trainer.model.memory import MemoryPlan, estimate_memory
from tunery_trainer.model.outline import outline
from tunery_trainer.model.targets import expert_names, linear_layers, lora_targets
from tunery_trainer.settings.memory import MemoryEstimate

from kit.models_of_today import MIXTURES, write_mixture
from kit.training import logits_of, loop, resolved_for, start_for, train

Folder = Callable[[str], Path]
NAMES = ("experts.down_proj", "experts.gate_up_proj")


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    folders: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in folders:
            folders[kind] = write_mixture(tmp_path_factory.mktemp(kind), kind)
        return folders[kind]

    return folder


def check_published(folder: Path, place: Path, run: Any) -> dict[str, torch.Tensor]:
    """Publish the adapter, load it in plain PEFT on the same kind of base, compare, and return its tensors."""
    save_published(run.model, place, "owner/base")
    base = load_base(folder, run.resolved, "cpu")
    unadapted = logits_of(base)
    loaded = logits_of(PeftModel.from_pretrained(base, str(place)))
    assert (loaded - run.logits()).abs().max() <= 1e-5
    assert (loaded - unadapted).abs().max() > 1e-3
    return load_file(place / "adapter_model.safetensors")


@pytest.mark.parametrize("kind", MIXTURES)
def test_all_linear_adapts_the_experts(folder_of: Folder, tmp_path: Path, kind: str) -> None:
    folder = folder_of(kind)
    run = train(folder, {"method": "LoRA"})
    assert run.losses[-1] < run.losses[0]
    assert run.resolved.adapter.dropout == 0
    assert set(NAMES) <= set(target_modules(run.model))
    tensors = check_published(folder, tmp_path, run)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["target_parameters"] == list(NAMES)
    experts = {name: tensor for name, tensor in tensors.items() if ".experts." in name}
    assert len(experts) == 4 * sum(".experts.lora_A" in name for name in experts) > 0
    assert all(bool(tensor.any()) for name, tensor in experts.items())
    assert not any(part in name.split(".") for name in tensors for part in ("gate", "router", "shared_expert_gate"))


@pytest.mark.parametrize("kind", ["qwen3_moe", "deepseek_v3", "gpt_oss"])
def test_it_loads_on_the_model_as_users_load_it(folder_of: Folder, tmp_path: Path, kind: str) -> None:
    run = train(folder_of(kind), {"method": "LoRA"}, steps=4)
    save_published(run.model, tmp_path, "owner/base")
    plain = AutoModelForCausalLM.from_pretrained(folder_of(kind), dtype=torch.float32)
    assert (logits_of(PeftModel.from_pretrained(plain, str(tmp_path))) - run.logits()).abs().max() <= 1e-5


@pytest.mark.slow(fast=["*mixtral*", "*gpt_oss*"])
@pytest.mark.parametrize("kind", ["qwen3_moe", "mixtral", "deepseek_v3", "llama4_text"])
@pytest.mark.parametrize("method", ["QLoRA", "DoRA", "QDoRA", "AdaLoRA", "IA3", "PromptTuning"])
def test_every_method_works(folder_of: Folder, tmp_path: Path, kind: str, method: str) -> None:
    run = train(folder_of(kind), {"method": method})
    assert run.losses[-1] < run.losses[0]
    assert (set(NAMES) <= set(target_modules(run.model))) is (method == "QLoRA")
    check_published(folder_of(kind), tmp_path, run)


@pytest.mark.parametrize(
    ("kind", "asked", "modules", "experts"),
    [
        ("qwen3_moe", ["all-linear"], {"q_proj", "k_proj", "v_proj", "o_proj"}, set(NAMES)),
        ("qwen3_moe", ["mlp"], set(), set(NAMES)),
        ("qwen3_moe", ["attention"], {"q_proj", "k_proj", "v_proj", "o_proj"}, set()),
        ("qwen3_moe", ["q_proj", "experts.down_proj"], {"q_proj"}, {"experts.down_proj"}),
        ("qwen3_moe", ["down_proj"], set(), {"experts.down_proj"}),
        ("llama4_text", ["mlp"], {"gate_proj", "up_proj", "down_proj"}, set(NAMES)),
    ],
)
def test_words_and_names_become_modules_and_parameters(
    folder_of: Folder, kind: str, asked: list[str], modules: set[str], experts: set[str]
) -> None:
    found = lora_targets(meta_model(folder_of(kind)), asked, experts=True)
    assert ({name.rsplit(".", 1)[-1] for name in found[0]}, set(found[1])) == (modules, experts)


@pytest.mark.parametrize("kind", MIXTURES)
def test_routers_are_left_alone(folder_of: Folder, kind: str) -> None:
    model = meta_model(folder_of(kind))
    assert expert_names(model) == NAMES == model_facts(folder_of(kind)).experts
    assert not any({"router", "gate", "shared_expert_gate"} & set(path.split(".")) for path in linear_layers(model))


def test_experts_alone_can_be_adapted(folder_of: Folder, tmp_path: Path) -> None:
    run = train(folder_of("qwen3_moe"), {"method": "LoRA", "lora": {"targetModules": ["mlp"], "rankPattern": PATTERN}})
    tensors = check_published(folder_of("qwen3_moe"), tmp_path, run)
    assert all(".experts." in name for name in tensors)
    assert {tensor.shape[0] for name, tensor in tensors.items() if "lora_A" in name} == {4 * 16, 4 * 2}


PATTERN = {"experts.down_proj": 2}


@pytest.mark.slow
@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.parametrize("kind", ["qwen3_moe", "gpt_oss", "llama4_text"])
def test_the_loop_trains_them_in_16_bits(folder_of: Folder, tmp_path: Path, kind: str, recompute: bool) -> None:
    training = {"precision": "BFloat16", "gradientCheckpointing": recompute}
    model, before, after = loop(folder_of(kind), tmp_path / "loop", {"method": "QLoRA", "training": training})
    assert after < before
    factors = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {parameter.dtype for parameter in factors.values()} == {torch.float32}
    assert all(bool(factor.any()) for name, factor in factors.items() if ".experts." in name and "lora_B" in name)


def test_preflight_counts_what_training_will_train(folder_of: Folder) -> None:
    for kind in ("qwen3_moe", "gpt_oss"):
        resolved = resolved_for(folder_of(kind), {"method": "QLoRA"})
        unreal = attach(meta_model(folder_of(kind)), resolved, start_for(folder_of(kind)))
        real = attach(load_base(folder_of(kind), resolved, "cpu"), resolved, start_for(folder_of(kind)))
        assert trainable_parameters(unreal) == trainable_parameters(real) > 0
        assert target_modules(unreal) == target_modules(real)


def test_a_published_one_is_trained_on(folder_of: Folder, tmp_path: Path) -> None:
    folder = folder_of("qwen3_moe")
    run = train(folder, {"method": "LoRA"})
    save_published(run.model, tmp_path, "owner/base")
    resolved = resolved_for(folder, {"method": "LoRA"})
    resolved = settings_from(resolved, meta_model(folder), tmp_path, "owner/base")
    model = attach_published(load_base(folder, resolved, "cpu"), resolved, start_for(folder), tmp_path)
    assert torch.equal(logits_of(model), run.logits())


def test_the_status_tells_of_the_adapter_that_is_trained_on(folder_of: Folder, tmp_path: Path) -> None:
    folder = folder_of("qwen3_moe")
    run = train(folder, {"method": "LoRA", "lora": {"targetModules": ["attention"]}}, steps=2)
    save_published(run.model, tmp_path, "owner/base")
    fresh = resolved_for(folder, {"method": "LoRA"})
    inherited = settings_from(fresh, meta_model(folder), tmp_path, "owner/base")
    first, second = (next(v.value for v in each.values if v.name == "experts") for each in (fresh, inherited))
    assert first.endswith(": adapted, never quantised")
    assert second == first.replace(": adapted", ": not adapted")


@pytest.mark.parametrize(
    ("blocks", "said"),
    [
        (
            {"lora": {"dropout": 0.1}},
            "spec.lora.dropout: must be 0 where a mixture's experts are adapted, is 0.1; or ",
        ),
        ({"lora": {"init": "PiSSA"}}, "spec.lora.init: PiSSA starts from the weights of linear layers"),
        ({"lora": {"init": "EVA"}}, "spec.lora.init: EVA starts from"),
    ],
)
def test_what_does_not_go_with_experts_is_refused(folder_of: Folder, blocks: dict[str, Any], said: str) -> None:
    with pytest.raises(TuneryError) as caught:
        resolved_for(folder_of("qwen3_moe"), {"method": "LoRA"} | blocks)
    assert caught.value.reason is FailureReason.INVALID_SPEC
    assert caught.value.message.startswith(said)
    attention = {"lora": {"targetModules": ["attention"]} | blocks["lora"]}
    assert resolved_for(folder_of("qwen3_moe"), {"method": "LoRA"} | attention).method == "LoRA"


def test_names_that_peft_would_take_for_experts_are_refused(folder_of: Folder) -> None:
    with pytest.raises(TuneryError, match=r"'gate_proj' matches no module of Deepseek.*; it has: .*gate_up_proj"):
        lora_targets(meta_model(folder_of("deepseek_v3")), ["gate_proj"], experts=True)
    with pytest.raises(TuneryError, match=r"'experts\.down_proj' matches no module"):
        lora_targets(meta_model(folder_of("deepseek_v3")), ["experts.down_proj"], experts=False)


@pytest.mark.parametrize(("method", "said"), [("QLoRA", "adapted"), ("DoRA", "not adapted")])
def test_the_status_says_what_becomes_of_them(folder_of: Folder, method: str, said: str) -> None:
    folder = folder_of("qwen3_moe")
    facts, resolved = model_facts(folder), resolved_for(folder, {"method": method})
    assert facts.expert_parameters == 2 * 4 * (64 * 64 + 64 * 32)
    share = f"{facts.expert_parameters / 1e9:.3g} of {facts.parameters / 1e9:.3g} billion parameters"
    told = [value.value for value in resolved.values if value.name == "experts"]
    assert told == [f"{share}: {said}, never quantised"]


def estimate_of(folder: Path, blocks: dict[str, Any]) -> MemoryEstimate:
    resolved = resolved_for(folder, blocks | {"training": {"precision": "BFloat16"}})
    plan = MemoryPlan(2, 64, resolved.quantization, Optimizer.ADAMW, gradient_checkpointing=True, on_gpu=False)
    shape = outline(folder)
    return estimate_memory(attach(shape.fresh(), resolved, start_for(folder)).train(), shape, plan)


@pytest.mark.slow
@pytest.mark.parametrize("kind", MIXTURES)
def test_the_estimate_counts_experts_unquantised_and_once_more_with_the_adapter(folder_of: Folder, kind: str) -> None:
    facts = model_facts(folder_of(kind))
    quantised, plain = (estimate_of(folder_of(kind), {"method": method}) for method in ("QLoRA", "LoRA"))
    assert 2 * facts.expert_parameters < quantised.weights < plain.weights
    held = load_base(folder_of(kind), resolved_for(folder_of(kind), IN_16_BITS), "cpu").state_dict()
    bytes_held = sum(
        t.numel() * t.element_size() for n, t in held.items() if "quant_map" not in n and "quant_state" not in n
    )
    assert quantised.weights == pytest.approx(bytes_held, rel=0.03)
    # Without recomputing, each layer keeps its experts with the adapter in them; with it, one layer's at a time.
    assert plain.plain.kept.once >= 2 * facts.expert_parameters
    assert facts.expert_parameters <= plain.recomputing.peak.of(1) < plain.plain.peak.of(1)
    alone = estimate_of(folder_of(kind), {"method": "LoRA", "lora": {"targetModules": ["attention"]}})
    assert plain.recomputing.peak.of(1) > alone.recomputing.peak.of(1)


IN_16_BITS: dict[str, Any] = {"method": "QLoRA", "training": {"precision": "BFloat16"}}
