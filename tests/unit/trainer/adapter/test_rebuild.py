"""What a checkpoint holds is published without the base's weights, in the very bytes that training would write."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunery_api.reasons import FailureReason
from tunery_common.errors import TuneryError
from tunery_trainer.adapter.attach import training_hooks
from tunery_trainer.adapter.rebuild import first_delta, rebuilt, recipe_of
from tunery_trainer.adapter.save import published_rank, save_published
from tunery_trainer.model.load import meta_model
from tunery_trainer.training.weights import trained_state

from kit.models_of_today import write_mixture
from kit.training import train

METHODS = [
    pytest.param("llama", {"method": "LoRA", "lora": {"useRslora": True, "rankPattern": {"q_proj": 4}}}, id="LoRA"),
    pytest.param("llama", {"method": "QLoRA"}, id="QLoRA"),
    pytest.param("llama", {"method": "DoRA"}, id="DoRA"),
    pytest.param("llama", {"method": "QDoRA"}, id="QDoRA"),
    pytest.param("llama", {"method": "AdaLoRA"}, id="AdaLoRA"),
    pytest.param("llama", {"method": "IA3"}, id="IA3"),
    pytest.param("llama", {"method": "PromptTuning"}, id="PromptTuning"),
    pytest.param("llama", {"method": "PrefixTuning"}, id="PrefixTuning"),
    pytest.param("llama", {"method": "PrefixTuning", "prefixTuning": {"projection": True}}, id="projection"),
    pytest.param("llama", {"method": "LoRA", "lora": {"init": "PiSSA"}}, id="PiSSA"),
    pytest.param("llama", {"method": "LoRA", "lora": {"init": "OLoRA"}}, id="OLoRA"),
    pytest.param("llama", {"method": "LoRA", "lora": {"init": "EVA"}}, id="EVA"),
    pytest.param("llama", {"method": "QLoRA", "lora": {"init": "LoftQ"}}, id="LoftQ"),
    pytest.param("llama", {"method": "LoRA", "lora": {"modulesToSave": ["lm_head", "embed_tokens"]}}, id="modules"),
    pytest.param("gpt2", {"method": "LoRA"}, id="Conv1D"),
]


@pytest.mark.slow(only=["EVA"])
@pytest.mark.parametrize(("family", "blocks"), METHODS)
def test_the_same_bytes(
    family_folder: Callable[[str], Path], tmp_path: Path, family: str, blocks: dict[str, Any]
) -> None:
    check_bytes(family_folder(family), tmp_path, blocks)


def test_the_same_bytes_of_a_mixtures_experts(tmp_path: Path) -> None:
    check_bytes(write_mixture(tmp_path / "model", "mixtral"), tmp_path, {"method": "LoRA"})


def check_bytes(folder: Path, tmp_path: Path, blocks: dict[str, Any]) -> None:
    """Train, and compare what training would publish with what is made of a checkpoint's parts on a meta model."""
    run = train(folder, blocks, steps=8)
    save_published(run.model, tmp_path / "trained", "base")
    tensors = trained_state(run.model) | first_delta(run.model)
    again = rebuilt(meta_model(folder), recipe_of(run.model), tensors)
    hooks = training_hooks(run.model, run.resolved)
    if hooks:
        kept = training_hooks(again, run.resolved)
        assert kept is not None
        kept.load_state(hooks.state())
    save_published(again, tmp_path / "again", "base")
    assert published_rank(again) == published_rank(run.model)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "trained" / name).read_bytes(), name
    assert all(parameter.is_meta for name, parameter in again.named_parameters() if name not in tensors)


def test_what_is_of_another_base_is_refused(family_folder: Callable[[str], Path]) -> None:
    run = train(family_folder("llama"), {"method": "LoRA"}, steps=2)
    tensors = trained_state(run.model)
    name = next(iter(tensors))
    tensor = tensors.pop(name)
    base, recipe = meta_model(family_folder("llama")), recipe_of(run.model)
    with pytest.raises(TuneryError, match="it lacks") as lacking:
        rebuilt(base, recipe, tensors)
    assert lacking.value.reason is FailureReason.ADAPTER_CORRUPT
    base = meta_model(family_folder("llama"))
    with pytest.raises(TuneryError, match="the base has no"):
        rebuilt(base, recipe, {**tensors, name: tensor, "base_model.other.weight": tensor})
