"""A published adapter trained on: it starts where it ended, and what disagrees is refused by name."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tunery_api.reasons import FailureReason
from tunery_common.errors import TuneryError
from tunery_trainer.adapter.continue_from import attach_published, settings_from
from tunery_trainer.adapter.save import save_published
from tunery_trainer.model.load import load_base, meta_model

from kit.training import logits_of, resolved_for, start_for, take_steps, train

SERVED = "owner/base"


def publish(llama: Path, folder: Path, blocks: dict[str, Any]) -> torch.Tensor:
    """Train and publish; returns the logits of what was published."""
    run = train(llama, blocks, steps=6)
    save_published(run.model, folder, SERVED)
    return run.logits()


@pytest.mark.parametrize(
    "blocks",
    [
        pytest.param({"method": "LoRA", "lora": {"rank": 4, "targetModules": ["attention"]}}, id="LoRA"),
        pytest.param({"method": "LoRA", "lora": {"rank": 4, "init": "PiSSA"}}, id="PiSSA"),
        pytest.param({"method": "QDoRA", "lora": {"rankPattern": {"q_proj": 2}, "useRslora": True}}, id="QDoRA"),
        pytest.param({"method": "LoRA", "lora": {"modulesToSave": ["norm"]}}, id="modulesToSave"),
        pytest.param({"method": "IA3"}, id="IA3"),
        pytest.param({"method": "PromptTuning", "promptTuning": {"virtualTokens": 5}}, id="PromptTuning"),
        pytest.param({"method": "PrefixTuning", "prefixTuning": {"virtualTokens": 5}}, id="PrefixTuning"),
    ],
)
def test_it_goes_on_where_it_ended(llama: Path, tmp_path: Path, blocks: dict[str, Any]) -> None:
    ended = publish(llama, tmp_path, blocks)
    resolved = settings_from(resolved_for(llama, {"method": blocks["method"]}), meta_model(llama), tmp_path, SERVED)
    model = attach_published(load_base(llama, resolved, "cpu"), resolved, start_for(llama), tmp_path)
    assert (logits_of(model) - ended).abs().max() <= 1e-5
    losses = take_steps(model, resolved, steps=6, learning_rate=0.002)
    assert losses[-1] < losses[0]


def test_what_is_left_open_comes_from_the_adapter(llama: Path, tmp_path: Path) -> None:
    publish(llama, tmp_path, {"method": "LoRA", "lora": {"rank": 4, "alpha": 6, "targetModules": ["query-value"]}})
    open_spec = {"method": "QLoRA", "training": {"scaleLearningRateWithRank": True}}
    resolved = settings_from(resolved_for(llama, open_spec), meta_model(llama), tmp_path, SERVED)
    assert (resolved.adapter.rank, resolved.adapter.alpha) == (4, 6)
    assert resolved.adapter.target_modules == ("q_proj", "v_proj")
    assert resolved.training.learning_rate == pytest.approx(2e-4 * (8 / 4) ** 0.5)
    told = {value.name: (value.value, value.source) for value in resolved.values}
    assert told["lora.rank"] == ("4", "Adapter")
    assert told["lora.targetModules"] == ("q_proj, v_proj", "Adapter")


def test_a_word_that_means_the_same_modules_agrees(llama: Path, tmp_path: Path) -> None:
    publish(llama, tmp_path, {"method": "LoRA", "lora": {"rank": 4, "targetModules": ["query-value"]}})
    said = {"method": "LoRA", "lora": {"rank": 4, "targetModules": ["v_proj", "q_proj"]}}
    assert settings_from(resolved_for(llama, said), meta_model(llama), tmp_path, SERVED).adapter.rank == 4


@pytest.mark.parametrize(
    ("blocks", "served", "said"),
    [
        pytest.param(
            {"lora": {"rank": 8}}, SERVED, "spec.lora.rank: is 8, but the adapter of continueFrom has 4", id="r"
        ),
        pytest.param(
            {"lora": {"alpha": 3}}, SERVED, "spec.lora.alpha: is 3, but the adapter of continueFrom has 8", id="a"
        ),
        pytest.param(
            {"lora": {"targetModules": ["mlp"]}},
            SERVED,
            "spec.lora.targetModules: is down_proj, gate_proj, up_proj, but the adapter of continueFrom has k_proj, "
            "o_proj, q_proj, v_proj",
            id="targets",
        ),
        pytest.param(
            {"lora": {"modulesToSave": ["norm"]}},
            SERVED,
            "spec.lora.modulesToSave: is norm, but the adapter of continueFrom has none",
            id="modules-to-save",
        ),
        pytest.param(
            {"lora": {"rankPattern": {"q_proj": 2}}},
            SERVED,
            "spec.lora.rankPattern: is {'q_proj': 2}, but",
            id="pattern",
        ),
        pytest.param(
            {},
            "owner/other",
            "spec.continueFrom: the adapter is for the base model 'owner/base', this job trains 'owner/other'",
            id="base",
        ),
        pytest.param(
            {"method": "DoRA"},
            SERVED,
            "spec.method: is DoRA, but the adapter of continueFrom is LoRA; use method: LoRA or QLoRA",
            id="method",
        ),
    ],
)
def test_what_disagrees_is_named(llama: Path, tmp_path: Path, blocks: dict[str, Any], served: str, said: str) -> None:
    publish(llama, tmp_path, {"method": "LoRA", "lora": {"rank": 4, "targetModules": ["attention"]}})
    resolved = resolved_for(llama, {"method": "LoRA"} | blocks)
    with pytest.raises(TuneryError) as caught:
        settings_from(resolved, meta_model(llama), tmp_path, served)
    assert caught.value.message.startswith(said)
    assert caught.value.reason is FailureReason.INVALID_SPEC


def test_a_missing_or_broken_adapter_is_named(llama: Path, tmp_path: Path) -> None:
    resolved = resolved_for(llama, {"method": "LoRA"})
    with pytest.raises(TuneryError, match=r"there is no adapter_config\.json") as caught:
        settings_from(resolved, meta_model(llama), tmp_path, SERVED)
    assert caught.value.reason is FailureReason.ADAPTER_MISSING
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(TuneryError, match="is not JSON") as caught:
        settings_from(resolved, meta_model(llama), tmp_path, SERVED)
    assert caught.value.reason is FailureReason.ADAPTER_CORRUPT


def test_weights_of_another_shape_are_corrupt(llama: Path, tmp_path: Path) -> None:
    publish(llama, tmp_path, {"method": "LoRA", "lora": {"rank": 4}})
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"r": 5}))
    resolved = settings_from(resolved_for(llama, {"method": "LoRA"}), meta_model(llama), tmp_path, SERVED)
    with pytest.raises(TuneryError) as caught:
        attach_published(load_base(llama, resolved, "cpu"), resolved, start_for(llama), tmp_path)
    assert caught.value.reason is FailureReason.ADAPTER_CORRUPT
    words = r"spec\.continueFrom: \S+ has rank 4, adapter_config\.json says 5"
    assert re.fullmatch(words, caught.value.message), "in the words of a merge, and not in those of torch"
