"""What a folder of a model tells, and which folders are refused and why."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tunery_api.reasons import FailureReason
from tunery_common.errors import TuneryError
from tunery_trainer.model import load
from tunery_trainer.model.attention import computes_by_example
from tunery_trainer.model.load import check_weights, load_base, load_config, load_tokenizer, meta_model, model_facts

from kit.tiny_models import FAMILIES
from kit.training import resolved_for, token_rows

Folder = Callable[[str], Path]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_facts_are_those_of_the_real_model(family_folder: Folder, family: str) -> None:
    folder = family_folder(family)
    facts = model_facts(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert facts.architecture == type(model).__name__
    assert facts.parameters == model.num_parameters()
    assert (facts.layers, facts.hidden_size, facts.vocabulary) == (2, 64, 128)
    assert (
        facts.max_positions == (None if family == "bloom" else 2048 if family == "falcon" else 256)
        or family == "falcon"
    )
    head, table = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    assert facts.tied_embeddings == (head.data_ptr() == table.data_ptr())


def test_the_meta_model_holds_no_memory(llama: Path) -> None:
    assert all(parameter.is_meta for parameter in meta_model(llama).parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_called_packable_gives_the_same_loss_packed(family_folder: Folder, family: str) -> None:
    folder = family_folder(family)
    resolved = resolved_for(folder, {"method": "LoRA"})
    model = load_base(folder, resolved, "cpu")
    rows = token_rows(3)
    positions = torch.arange(16).repeat(2)
    with torch.no_grad():
        single = model(input_ids=rows).logits.reshape(32, -1)
        options = {"position_ids": positions[None]} if model_facts(folder).packable else {}
        packed = model(input_ids=rows.reshape(1, 32), **options).logits[0]
    same = bool((single - packed).abs().max() <= 1e-4)
    assert same is model_facts(folder).packable


def test_attention_is_tried_where_the_base_will_be_trained(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A base that goes to GPUs in parts is loaded on the CPU, where attention by example always works."""
    tried = []
    monkeypatch.setattr(load, "works_on", lambda device, dtype, heads: tried.append(device) or device.type == "cpu")
    resolved = resolved_for(llama, {"method": "LoRA"})
    assert computes_by_example(load_base(llama, resolved, "cpu"))
    assert not computes_by_example(load_base(llama, resolved, "cpu", "cuda:0"))
    assert tried == [torch.device("cpu"), torch.device("cuda:0")]


@pytest.mark.parametrize("quantization", ["NF4", "FP4", "Int8"])
def test_the_base_is_loaded_as_resolved(llama: Path, quantization: str) -> None:
    resolved = resolved_for(
        llama, {"method": "QLoRA", "quantization": {"type": quantization}, "training": {"precision": "BFloat16"}}
    )
    model = load_base(llama, resolved, "cpu")
    weight = model.get_submodule("model.layers.0.self_attn.q_proj").weight
    assert weight.dtype is (torch.int8 if quantization == "Int8" else torch.uint8)
    if quantization != "Int8":
        assert (weight.quant_type, weight.compress_statistics) == (quantization.lower(), True)
    assert model.get_input_embeddings().weight.dtype is torch.bfloat16
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.config._attn_implementation == "by_example"


def test_the_tokenizer_pads_without_a_new_token(llama: Path) -> None:
    tokenizer = load_tokenizer(llama)
    assert (tokenizer.pad_token, len(tokenizer)) == ("</s>", 128)


def refused(check: Callable[[Path], object], folder: Path) -> str:
    with pytest.raises(TuneryError) as caught:
        check(folder)
    assert caught.value.reason is FailureReason.MODEL_UNSUPPORTED
    assert caught.value.message.startswith("spec.model.uri: ")
    return caught.value.message


def write_config(folder: Path, **config: object) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_model_with_code_of_its_own_is_refused(tmp_path: Path) -> None:
    folder = write_config(tmp_path, model_type="strange", auto_map={"AutoConfig": "code.Strange"})
    (tmp_path / "code.py").write_text("raise SystemExit('ran')")
    assert "model type 'strange' needs code of its own" in refused(load_config, folder)


def test_other_unusable_folders_are_refused(tmp_path: Path, llama: Path) -> None:
    assert "the folder has no config.json" in refused(load_config, tmp_path)
    assert "'bert' is not a causal" not in refused(load_config, write_config(tmp_path, model_type="t5"))
    assert "model type 't5' is not a causal language model" in refused(load_config, tmp_path)
    assert "model type 'bert', as config.json has it, reads a text from both sides" in refused(
        model_facts, write_config(tmp_path, model_type="bert", architectures=["BertForMaskedLM"])
    )
    assert model_facts(write_config(tmp_path, model_type="bert", is_decoder=True)).layers == 12
    quantised = json.loads((llama / "config.json").read_text()) | {"quantization_config": {"quant_method": "gptq"}}
    assert "already quantised by GPTQ, " in refused(load_config, write_config(tmp_path, **quantised))
    (tmp_path / "config.json").write_text("{")
    assert "config.json is not JSON" in refused(load_config, tmp_path)
    assert "it has no weights" in refused(check_weights, tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    assert "it has pytorch_model.bin, which could run code" in refused(check_weights, tmp_path)
    assert "config.json is not JSON" in refused(load_tokenizer, tmp_path)
    write_config(tmp_path, model_type="llama")
    assert "no usable tokenizer" in refused(load_tokenizer, tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_size": "64"}, "config.json: Field 'hidden_size' expected int, got str"),
        ({"num_attention_heads": 33}, "config.json: The hidden size (64) is not a multiple of"),
        ({"hidden_size": 0, "head_dim": None}, "no model can be built from config.json: "),
    ],
)
def test_a_config_that_no_model_can_have_is_refused(
    tmp_path: Path, llama: Path, change: dict[str, Any], words: str
) -> None:
    config = json.loads((llama / "config.json").read_text()) | change
    assert words in refused(meta_model, write_config(tmp_path, **config))


def test_truncated_weights_are_refused(tmp_path: Path, llama: Path) -> None:
    for path in llama.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    resolved = resolved_for(llama, {"method": "LoRA"})
    assert "its weights cannot be loaded" in refused(lambda folder: load_base(folder, resolved, "cpu"), tmp_path)
