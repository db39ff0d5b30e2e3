"""Words become the guide's module names in each family it lists, and the right ones in families it does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunery_api.reasons import FailureReason
from tunery_common.errors import TuneryError
from tunery_common.inputs import name_patterns
from tunery_trainer.adapter.attach import attach
from tunery_trainer.model.load import load_base, meta_model
from tunery_trainer.model.targets import check_modules_to_save, check_patterns, ia3_targets, resolve_targets

from kit.tiny_models import FAMILIES
from kit.training import resolved_for, start_for

Folder = Callable[[str], Path]

SPLIT_ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
SPLIT_MLP = {"gate_proj", "up_proj", "down_proj"}
FUSED = {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"}

# COMMON_TARGET_MODULES of the guide, name for name.
GUIDE = [
    pytest.param("llama", "all-linear", SPLIT_ATTENTION | SPLIT_MLP, id="llama"),
    pytest.param("llama", "attention", SPLIT_ATTENTION, id="llama_attention_only"),
    pytest.param("llama", "query-value", {"q_proj", "v_proj"}, id="llama_qv_only"),
    pytest.param("mistral", "all-linear", SPLIT_ATTENTION | SPLIT_MLP, id="mistral"),
    pytest.param("gpt2", "all-linear", {"c_attn", "c_proj", "c_fc"}, id="gpt2"),
    pytest.param("falcon", "all-linear", FUSED, id="falcon"),
    pytest.param("bloom", "all-linear", FUSED, id="bloom"),
]

BY_STRUCTURE = [
    pytest.param("llama", "mlp", SPLIT_MLP, id="llama-mlp"),
    pytest.param("mistral", "attention", SPLIT_ATTENTION, id="mistral-attention"),
    pytest.param("mistral", "query-value", {"q_proj", "v_proj"}, id="mistral-query-value"),
    pytest.param("gpt2", "attention", {"c_attn", "attn.c_proj"}, id="gpt2-attention"),
    pytest.param("gpt2", "mlp", {"c_fc", "mlp.c_proj"}, id="gpt2-mlp"),
    pytest.param("gpt2", "query-value", {"c_attn"}, id="gpt2-query-value"),
    pytest.param("falcon", "attention", {"query_key_value", "dense"}, id="falcon-attention"),
    pytest.param("falcon", "mlp", {"dense_h_to_4h", "dense_4h_to_h"}, id="falcon-mlp"),
    pytest.param("falcon", "query-value", {"query_key_value"}, id="falcon-query-value"),
    pytest.param("bloom", "attention", {"query_key_value", "dense"}, id="bloom-attention"),
    pytest.param("bloom", "mlp", {"dense_h_to_4h", "dense_4h_to_h"}, id="bloom-mlp"),
    pytest.param("bloom", "query-value", {"query_key_value"}, id="bloom-query-value"),
    pytest.param("qwen3", "all-linear", SPLIT_ATTENTION | SPLIT_MLP, id="qwen3"),
    pytest.param("qwen3", "attention", SPLIT_ATTENTION, id="qwen3-attention"),
    pytest.param("gemma", "mlp", SPLIT_MLP, id="gemma-mlp"),
    pytest.param("gemma", "query-value", {"q_proj", "v_proj"}, id="gemma-query-value"),
    pytest.param("phi", "all-linear", {"q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"}, id="phi"),
    pytest.param("phi", "attention", {"q_proj", "k_proj", "v_proj", "dense"}, id="phi-attention"),
    pytest.param("phi", "mlp", {"fc1", "fc2"}, id="phi-mlp"),
]

IA3 = [
    pytest.param("llama", {"k_proj", "v_proj", "down_proj"}, {"down_proj"}, id="llama"),
    pytest.param("mistral", {"k_proj", "v_proj", "down_proj"}, {"down_proj"}, id="mistral"),
    pytest.param("gpt2", {"c_attn", "mlp.c_proj"}, {"mlp.c_proj"}, id="gpt2"),
    pytest.param("falcon", {"query_key_value", "dense_4h_to_h"}, {"dense_4h_to_h"}, id="falcon"),
    pytest.param("bloom", {"query_key_value", "dense_4h_to_h"}, {"dense_4h_to_h"}, id="bloom"),
    pytest.param("qwen3", {"k_proj", "v_proj", "down_proj"}, {"down_proj"}, id="qwen3"),
    pytest.param("gemma", {"k_proj", "v_proj", "down_proj"}, {"down_proj"}, id="gemma"),
    pytest.param("phi", {"k_proj", "v_proj", "fc2"}, {"fc2"}, id="phi"),
]


@pytest.mark.parametrize(("family", "word", "names"), GUIDE + BY_STRUCTURE)
def test_words_become_names(family_folder: Folder, family: str, word: str, names: set[str]) -> None:
    assert set(resolve_targets(meta_model(family_folder(family)), [word])) == names


@pytest.mark.parametrize(("family", "names", "feedforward"), IA3)
def test_ia3_scales_keys_values_and_the_second_layer(
    family_folder: Folder, family: str, names: set[str], feedforward: set[str]
) -> None:
    targets, inner = ia3_targets(meta_model(family_folder(family)), None)
    assert (set(targets), set(inner)) == (names, feedforward)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_output_layer_never_carries_an_adapter(family_folder: Folder, family: str) -> None:
    assert "lm_head" not in resolve_targets(meta_model(family_folder(family)), ["all-linear"])


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_quantised_model_gives_the_same_names(family_folder: Folder, family: str) -> None:
    folder = family_folder(family)
    quantised = load_base(folder, resolved_for(folder, {"method": "QLoRA"}), "cpu")
    assert resolve_targets(quantised, ["all-linear"]) == resolve_targets(meta_model(folder), ["all-linear"])


def test_names_are_taken_as_they_are(llama: Path) -> None:
    model = meta_model(llama)
    assert resolve_targets(model, ["v_proj", "q_proj"]) == ("q_proj", "v_proj")
    assert resolve_targets(model, ["layers.1.self_attn.q_proj"]) == ("layers.1.self_attn.q_proj",)


@pytest.mark.parametrize("name", ["q_prj", "self_attn", "lm_head", "proj"])
def test_a_name_that_matches_nothing_is_refused_with_those_that_exist(llama: Path, name: str) -> None:
    with pytest.raises(TuneryError) as caught:
        resolve_targets(meta_model(llama), ["q_proj", name])
    assert caught.value.reason is FailureReason.INVALID_SPEC
    assert caught.value.message == (
        f"spec.lora.targetModules[1]: '{name}' matches no module of LlamaForCausalLM; it has: down_proj, gate_proj, "
        "k_proj, o_proj, q_proj, up_proj, v_proj"
    )


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        pytest.param("up_proj", "matches no target module; they are k_proj, q_proj", id="not-a-target"),
        pytest.param("q_(proj", "is no regular expression", id="not-a-regex"),
        pytest.param("q_proj{99999999999}", "is no regular expression", id="too-large-a-repeat"),
    ],
)
def test_a_pattern_must_match_a_target(llama: Path, pattern: str, said: str) -> None:
    with pytest.raises(TuneryError, match=said) as caught:
        check_patterns(meta_model(llama), ["q_proj", "k_proj"], ["layers.0.self_attn.q_proj", pattern], "spec.x")
    assert caught.value.message.startswith("spec.x: ")


@pytest.mark.parametrize("field", ["rankPattern", "alphaPattern"])
@pytest.mark.parametrize("method", ["LoRA", "DoRA"])
def test_a_pattern_that_takes_too_long_is_refused_before_peft_matches_it(
    llama: Path, monkeypatch: pytest.MonkeyPatch, method: str, field: str
) -> None:
    monkeypatch.setattr(name_patterns, "SECONDS", 0.5)
    slow = r"(\w+\.?)+!"
    resolved = resolved_for(llama, {"method": method, "lora": {field: {"q_proj": 4, slow: 4}}})
    with pytest.raises(TuneryError) as caught:
        attach(meta_model(llama), resolved, start_for(llama))
    assert caught.value.reason is FailureReason.INVALID_SPEC
    assert caught.value.message == (
        f"spec.lora.{field}: {slow!r} takes too long on the names of modules; write it without repeats within repeats"
    )


def test_modules_to_save_must_exist(llama: Path) -> None:
    model: Any = meta_model(llama)
    check_modules_to_save(model, ["embed_tokens", "lm_head", "norm"])
    with pytest.raises(TuneryError, match=r"spec\.lora\.modulesToSave\[1\]: 'embed' matches no module"):
        check_modules_to_save(model, ["norm", "embed"])
