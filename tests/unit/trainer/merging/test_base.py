"""Into the base model: bit-equal to PEFT where PEFT is right, and right where it is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel
from safetensors.torch import load_file

from tunery_common.errors import TuneryError
from tunery_common.inputs.misfit import OTHER_BASE
from tunery_trainer.merging import merged_blocks
from tunery_trainer.merging.adapter_files import open_adapter
from tunery_trainer.merging.base_model import open_checkpoint
from tunery_trainer.merging.files import LocalFiles
from tunery_trainer.merging.into_base import IntoBase, merge_into_base

from kit.adapters import factors, logits, logits_of, relative, trained_adapter, with_adapter, write_adapter
from kit.tiny_models import Tiny, load, save_tiny


def merge(base: Path, adapter: Path, target: Path, dtype: torch.dtype | None = None) -> Path:
    target.mkdir(parents=True, exist_ok=True)
    merge_into_base(
        open_checkpoint(LocalFiles(base)), open_adapter(LocalFiles(adapter)), target, IntoBase(dtype, verify=True)
    )
    return target


def merge_by_peft(base: Path, adapter: Path, target: Path) -> Path:
    with_adapter(base, adapter).merge_and_unload().save_pretrained(target)
    return target


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: t for path in sorted(folder.glob("*.safetensors")) for name, t in load_file(path).items()}


def differing(one: Path, two: Path) -> list[str]:
    first, second = tensors(one), tensors(two)
    assert first.keys() == second.keys()
    same = {n: first[n].dtype == second[n].dtype and torch.equal(first[n], second[n]) for n in first}
    return [name for name, equal in same.items() if not equal]


LLAMA_LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
GPT2_LAYERS = ["c_attn", "c_proj", "c_fc"]


def layers(kind: Tiny) -> list[str]:
    return GPT2_LAYERS if kind == Tiny.GPT2 else LLAMA_LAYERS


BIT_EQUAL: dict[str, Callable[[Tiny], Any]] = {
    "lora": lambda k: LoraConfig(r=4, lora_alpha=8, target_modules=layers(k)),
    "patterns": lambda k: LoraConfig(
        r=4, target_modules=layers(k), rank_pattern={layers(k)[0]: 7}, alpha_pattern={layers(k)[1]: 3}, use_rslora=True
    ),
    "dora": lambda k: LoraConfig(r=4, target_modules=layers(k), use_dora=True),
    "bias": lambda k: LoraConfig(r=4, target_modules=[layers(k)[0]], lora_bias=True),
    "ia3": lambda k: IA3Config(target_modules=layers(k), feedforward_modules=layers(k)[-1:]),
}


@pytest.mark.slow(fast=["lora-*", "*-float32"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("kind", list(Tiny))
@pytest.mark.parametrize("method", list(BIT_EQUAL))
def test_bit_equal_to_peft(tmp_path: Path, method: str, kind: Tiny, dtype: torch.dtype) -> None:
    base = save_tiny(tmp_path / "base", kind, dtype)
    adapter = trained_adapter(base, BIT_EQUAL[method](kind), tmp_path / "adapter", seed=3)
    ours = merge(base, adapter, tmp_path / "ours")
    theirs = merge_by_peft(base, adapter, tmp_path / "theirs")
    assert differing(ours, theirs) == []
    assert differing(ours, base) != []


@pytest.mark.slow(only=["gpt2"])
@pytest.mark.parametrize("kind", list(Tiny))
def test_bit_equal_over_many_blocks(tmp_path: Path, kind: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merged_blocks, "BLOCK_ELEMENTS", 1)
    width = {"n_embd": 640} if kind == Tiny.GPT2 else {"hidden_size": 640, "intermediate_size": 1100}
    base = save_tiny(tmp_path / "base", kind, torch.bfloat16, **width)
    adapter = trained_adapter(base, BIT_EQUAL["dora"](kind), tmp_path / "adapter", seed=3)
    ours = merge(base, adapter, tmp_path / "ours")
    assert differing(ours, merge_by_peft(base, adapter, tmp_path / "theirs")) == []


LOGITS: dict[str, Callable[[], Any]] = {
    "lora": lambda: LoraConfig(r=4, target_modules=LLAMA_LAYERS),
    "head": lambda: LoraConfig(r=4, target_modules=["q_proj", "lm_head"]),
    "embedding": lambda: LoraConfig(r=4, target_modules=["q_proj", "embed_tokens"]),
    "dora on the embedding": lambda: LoraConfig(r=4, target_modules=["q_proj", "embed_tokens"], use_dora=True),
    "both embeddings": lambda: LoraConfig(r=4, target_modules=["embed_tokens", "lm_head"]),
    "head saved": lambda: LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"]),
    "embedding saved": lambda: LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["embed_tokens"]),
    "both saved": lambda: LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"]),
    "norm saved": lambda: LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["norm"]),
    "tokens": lambda: LoraConfig(r=4, target_modules=["q_proj"], trainable_token_indices=[2, 7, 14]),
    "biases": lambda: LoraConfig(r=4, target_modules=["q_proj", "v_proj"], bias="all"),
}


@pytest.mark.parametrize("kind", [Tiny.LLAMA_TIED, Tiny.LLAMA_UNTIED])
@pytest.mark.parametrize("change", list(LOGITS))
def test_logits_equal_base_and_adapter(tmp_path: Path, change: str, kind: Tiny) -> None:
    base = save_tiny(tmp_path / "base", kind)
    adapter = trained_adapter(base, LOGITS[change](), tmp_path / "adapter", seed=5)
    expected = logits(base, adapter)
    assert relative(expected, logits(base)) > 1e-3, "the adapter changes nothing"
    assert float((logits(merge(base, adapter, tmp_path / "out")) - expected).abs().max()) <= 1e-5


@pytest.mark.parametrize(
    ("change", "tied"),
    [("lora", True), ("tokens", True), ("head", False), ("embedding", False), ("head saved", False)],
)
def test_embeddings_stay_tied_only_where_they_are_equal(tmp_path: Path, change: str, tied: bool) -> None:
    base = save_tiny(tmp_path / "base", Tiny.LLAMA_TIED)
    out = merge(base, trained_adapter(base, LOGITS[change](), tmp_path / "adapter", seed=5), tmp_path / "out")
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is tied
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert ("lm_head.weight" in index["weight_map"]) is not tied
    assert index["weight_map"].keys() == tensors(out).keys()
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors(out).values())


@pytest.mark.parametrize("kind", [Tiny.LLAMA_TIED, Tiny.LLAMA_UNTIED])
def test_a_resized_vocabulary_comes_along(tmp_path: Path, kind: Tiny) -> None:
    base = save_tiny(tmp_path / "base", kind)
    config = LoraConfig(r=4, target_modules=["q_proj"])
    adapter = trained_adapter(base, config, tmp_path / "adapter", seed=5, grow_by=8)
    out = merge(base, adapter, tmp_path / "out")
    model = load(base)
    model.resize_token_embeddings(104)
    expected = logits_of(PeftModel.from_pretrained(model, adapter).eval())
    assert json.loads((out / "config.json").read_text())["vocab_size"] == 104
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is (kind == Tiny.LLAMA_TIED)
    assert float((logits(out) - expected).abs().max()) <= 1e-5


def test_another_type_is_rounded_once(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", Tiny.LLAMA_UNTIED)
    adapter = trained_adapter(base, LOGITS["lora"](), tmp_path / "adapter", seed=5)
    exact, rounded = merge(base, adapter, tmp_path / "32"), merge(base, adapter, tmp_path / "16", torch.bfloat16)
    one, two = tensors(exact), tensors(rounded)
    assert all(torch.equal(one[name].bfloat16(), two[name]) for name in one)
    assert json.loads((rounded / "config.json").read_text())["dtype"] == "bfloat16"
    assert load(rounded).dtype == torch.bfloat16


def test_shards_tokenizer_and_generation_config_come_along(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", Tiny.LLAMA_UNTIED)
    (base / "tokenizer.json").write_text('{"base": true}')
    (base / "chat_template.jinja").write_text("{{ base }}")
    (base / "pytorch_model.bin").write_text("a pickle")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "bitsandbytes"}}))
    adapter = trained_adapter(base, LOGITS["lora"](), tmp_path / "adapter", seed=5, quantization_config=None)
    (adapter / "chat_template.jinja").write_text("{{ adapter }}")
    (adapter / "manifest.json").write_text("{}")
    out = merge(base, adapter, tmp_path / "out")
    names = {path.name for path in base.iterdir()} - {"pytorch_model.bin"}
    assert {path.name for path in out.iterdir()} == names
    assert (out / "tokenizer.json").read_text() == '{"base": true}'
    assert (out / "chat_template.jinja").read_text() == "{{ adapter }}"
    assert "quantization_config" not in json.loads((out / "config.json").read_text())


def test_shards_can_be_moved_away_as_soon_as_they_are_done(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", Tiny.LLAMA_TIED)
    adapter = trained_adapter(base, LOGITS["head"](), tmp_path / "adapter", seed=5)
    order, largest = [], 0

    def take(name: str) -> None:
        nonlocal largest
        largest = max(largest, len(list((tmp_path / "scratch").iterdir())))
        order.append(name)
        (tmp_path / "scratch" / name).rename(tmp_path / "out" / name)

    (tmp_path / "out").mkdir()
    (tmp_path / "scratch").mkdir()
    checkpoint, opened = open_checkpoint(LocalFiles(base)), open_adapter(LocalFiles(adapter))
    merge_into_base(checkpoint, opened, tmp_path / "scratch", IntoBase(done=take))
    assert largest == 1
    assert order[-2:] == ["config.json", "model.safetensors.index.json"]
    assert logits(tmp_path / "out").shape == (2, 12, 96)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("model.layers.9.self_attn.q_proj", (32, 32), r"the base model has no model\.layers\.9\.self_attn\.q_proj"),
        ("model.layers.0.self_attn.q_proj", (64, 32), r"q_proj.lora_B.weight is 64 x 4, the base.s q_proj gives 32"),
    ],
    ids=["no such module", "another shape"],
)
def test_an_adapter_for_another_base_is_refused(
    tmp_path: Path, name: str, shape: tuple[int, int], message: str
) -> None:
    base = save_tiny(tmp_path / "base", Tiny.LLAMA_TIED)
    adapter = write_adapter(tmp_path / "adapter", {name: factors(4, *shape, 1)})
    with pytest.raises(TuneryError, match=message) as caught:
        merge(base, adapter, tmp_path / "out")
    assert caught.value.reason == "InvalidSpec"
    assert caught.value.remedies == (OTHER_BASE,)
    assert list((tmp_path / "out").iterdir()) == []
