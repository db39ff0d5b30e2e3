"""Tensors that the model has no place for: layers of it are refused, what else there is is told and left out."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tunery_api.reasons import FailureReason
from tunery_common.errors import TuneryError
from tunery_trainer.model.load import Loading, load_base, load_frozen

from kit.models_of_today import MIXTURES, MULTIMODAL, TEXT_CLASSES, write_mixture, write_multimodal
from kit.tiny_models import FAMILIES, write_family
from kit.training import resolved_for

Weights = dict[str, torch.Tensor]
ON_CPU = Loading(torch.float32, torch.device("cpu"))
WRITERS: dict[str, Callable[[Path, str], Path]] = {
    **dict.fromkeys(FAMILIES, write_family),
    **dict.fromkeys(MIXTURES, write_mixture),
    **dict.fromkeys(MULTIMODAL, write_multimodal),
}
LAYER = re.compile(r"(?!.*(?:vision|visual))(.*\b(?:layers|h)\.)1(\..*)")


@pytest.fixture
def folder(tmp_path: Path, llama: Path) -> Path:
    return shutil.copytree(llama, tmp_path / "llama")


def add(folder: Path, tensors: Weights) -> None:
    path = folder / "model.safetensors"
    save_file(load_file(path) | tensors, path, {"format": "pt"})


def one_more_layer(folder: Path) -> Weights:
    """Return the tensors of a third layer, which is the second once more."""
    weights = load_file(folder / "model.safetensors")
    found = ((LAYER.fullmatch(name), tensor) for name, tensor in weights.items())
    return {f"{name[1]}2{name[2]}": tensor.clone() for name, tensor in found if name}


@pytest.mark.slow(only=["aya_vision", "gemma4", "glm4v", "internvl", "llava*", "mistral3", "qwen2_*vl", "qwen3_vl_moe"])
@pytest.mark.parametrize("kind", WRITERS)
def test_every_family_loads_without_a_word_and_a_layer_too_many_is_refused(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = WRITERS[kind](tmp_path, kind)
    load_frozen(folder, ON_CPU)
    assert not [record for record in caplog.records if "no place for" in record.getMessage()]
    added = one_more_layer(folder)
    assert len(added) >= 6
    add(folder, added)
    with pytest.raises(TuneryError, match=r"its files have 3 layers \(.*\.2\), and config\.json says 2: ") as caught:
        load_frozen(folder, ON_CPU)
    assert caught.value.reason is FailureReason.MODEL_UNSUPPORTED
    assert caught.value.remedies[0].text.startswith("Replace config.json by the one of these weights")


@pytest.mark.parametrize("kind", TEXT_CLASSES)
def test_a_tower_beside_a_text_model_is_left_out_and_told(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_multimodal(tmp_path, kind)
    load_frozen(folder, ON_CPU)
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert all("vis" in said for said in told if "no place for" in said)
    add(folder, one_more_layer(folder))
    with pytest.raises(TuneryError, match="its files have 3 layers"):
        load_frozen(folder, ON_CPU)


@pytest.mark.parametrize(
    ("name", "shape", "told"),
    [
        ("model.layers.0.self_attn.q_proj.bias", (64,), True),
        ("score.weight", (2, 64), True),
        ("model.layers.2.eh_proj.weight", (64, 128), True),
        ("model.layers.0.self_attn.rotary_emb.inv_freq", (8,), False),
    ],
)
def test_what_else_there_is_is_told_by_name_unless_it_is_of_no_use(
    folder: Path, name: str, shape: tuple[int, ...], told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    add(folder, {name: torch.ones(shape)})
    load_frozen(folder, ON_CPU)
    said = [record.getMessage() for record in caplog.records if "no place for" in record.getMessage()]
    assert said == ([_told("a tensor", name)] if told else [])


def _told(count: str, names: str) -> str:
    what = "that config.json gives the model no place for, and training goes without"
    return f"spec.model.uri: its files have {count} {what}: {names}"


def test_a_layer_that_predicts_further_ahead_is_left_out(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As DeepSeek's and GLM's checkpoints have it, of other depths than those that transformers knows."""
    ahead = {f"model.layers.2.{name}.weight": torch.ones(64) for name in ("enorm", "hnorm", "shared_head.norm")}
    add(folder, one_more_layer(folder) | ahead)
    load_frozen(folder, ON_CPU)
    first = "model.layers.2.enorm.weight, model.layers.2.hnorm.weight, model.layers.2.input_layernorm.weight and 9 more"
    assert _told("12 tensors", first) in caplog.text


def test_a_head_that_is_tied_may_be_stored_twice(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_family(tmp_path, "llama", tie_word_embeddings=True)
    add(folder, {"lm_head.weight": load_file(folder / "model.safetensors")["model.embed_tokens.weight"].clone()})
    model = load_frozen(folder, ON_CPU)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert "no place for" not in caplog.text


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.float8_e4m3fn])
def test_a_quantised_tensor_among_others_is_refused(folder: Path, dtype: torch.dtype) -> None:
    name = "model.layers.1.mlp.down_proj.weight"
    weights = load_file(folder / "model.safetensors")
    add(folder, {name: (weights[name] * 10).to(dtype)})
    with pytest.raises(
        TuneryError, match=rf"{re.escape(name)} in model\.safetensors is of type \w+: a quant"
    ) as caught:
        load_base(folder, resolved_for(folder, {"method": "LoRA"}), "cpu")
    assert caught.value.reason is FailureReason.MODEL_UNSUPPORTED
    assert "no quantization_config" in caught.value.message
    assert [each.fields for each in caught.value.remedies] == [[], ["model.uri"]]


def test_a_mask_may_be_of_bytes(tmp_path: Path) -> None:
    folder = write_family(tmp_path, "gpt2")
    add(folder, {"transformer.h.0.attn.bias": torch.ones(1, 1, 256, 256, dtype=torch.uint8)})
    load_frozen(folder, ON_CPU)
