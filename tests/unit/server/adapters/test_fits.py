"""Which adapters fit which base, from configs and headers alone: tiny models as transformers and PEFT save them."""

from __future__ import annotations

import json
import shutil
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, IA3Config, LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tunery_api.manifest import Lineage
from tunery_api.reasons import FailureReason
from tunery_api.remedies import INTO_MODEL, Action
from tunery_common.errors import TuneryError
from tunery_common.inputs.headers import BadHeader, read_header
from tunery_server.adapters.base import RECORD, BaseModel, read_base
from tunery_server.adapters.fits import Fit, ServedBase, check_fit

from kit.adapters import trained_adapter
from kit.server.loader import adapter_files, base_shapes, lora_shapes, safetensors
from kit.tiny_models import Tiny, save_tiny, write_family

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
NAME = "org/base"
NOBODY = Lineage()
FAMILIES = {
    "llama": ["q_proj", "v_proj", "down_proj", "lm_head"],
    "qwen3": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "gemma": ["q_proj", "lm_head", "embed_tokens"],
    "gpt2": ["c_attn", "c_proj", "c_fc", "wte"],
    "falcon": ["query_key_value", "dense"],
    "bloom": ["query_key_value", "dense_h_to_4h"],
    "phi": ["q_proj", "dense", "fc1"],
    "mistral": ["q_proj", "embed_tokens"],
}


def served(folder: Path, max_rank: int = 64) -> ServedBase:
    return ServedBase(read_base(folder), NAME, max_rank)


def refusal(folder: Path, base: ServedBase, lineage: Lineage = NOBODY) -> TuneryError:
    with pytest.raises(TuneryError) as caught:
        check_fit(folder, lineage, base)
    return caught.value


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("llama"), Tiny.LLAMA_UNTIED)


@pytest.fixture(scope="module")
def good(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of the sharded Llama."""
    config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    return named(trained_adapter(llama, config, tmp_path_factory.mktemp("good"), seed=1))


def named(folder: Path, **changes: Any) -> Path:
    """Have the config name the base as it is served, and change what else is told."""
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | {"base_model_name_or_path": NAME} | changes))
    return folder


@pytest.fixture
def copy(good: Path, tmp_path: Path) -> Path:
    return shutil.copytree(good, tmp_path / "copy")


@pytest.mark.parametrize("family", FAMILIES)
def test_what_peft_saves_fits_the_base_that_it_was_trained_on(tmp_path: Path, family: str) -> None:
    base = write_family(tmp_path / "base", family)
    model = AutoModelForCausalLM.from_pretrained(base)
    peft = get_peft_model(model, LoraConfig(r=4, target_modules=FAMILIES[family], task_type="CAUSAL_LM"))
    peft.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    assert check_fit(named(tmp_path / "adapter"), NOBODY, served(base)) == Fit(4)


@pytest.mark.parametrize("kind", [Tiny.LLAMA_TIED, Tiny.GPT2])
def test_a_layer_that_is_tied_to_the_embedding_may_be_trained(tmp_path: Path, kind: Tiny) -> None:
    base = save_tiny(tmp_path / "base", kind)
    config = LoraConfig(r=4, target_modules=["lm_head"], task_type="CAUSAL_LM")
    assert check_fit(named(trained_adapter(base, config, tmp_path / "a", seed=1)), NOBODY, served(base)).rank == 4


def test_ranks_of_single_modules_and_rslora_fit(llama: Path, tmp_path: Path) -> None:
    patterns = {"q_proj": 16, "layers.1.mlp.down_proj": 2}
    config = LoraConfig(
        r=4, target_modules=["q_proj", "down_proj"], rank_pattern=patterns, use_rslora=True, task_type="CAUSAL_LM"
    )
    adapter = named(trained_adapter(llama, config, tmp_path / "a", seed=1))
    assert check_fit(adapter, NOBODY, served(llama)) == Fit(16)
    error = refusal(adapter, served(llama, max_rank=8))
    assert error.reason is FailureReason.RANK_TOO_HIGH
    assert error.message == "its rank is 16, engine.maxRank is 8"


def test_a_rank_that_is_too_high_is_told_with_what_a_slot_would_take(copy: Path, llama: Path) -> None:
    (remedy,) = refusal(named(copy, r=100), served(llama)).remedies
    assert (remedy.action, remedy.fields) == (Action.EDIT, ["engine.maxRank"])
    assert "Raise engine.maxRank to 128 (replicas are replaced one by one, and each slot then takes " in remedy.text
    assert refusal(named(copy, r=1024), served(llama)).remedies == (INTO_MODEL,)


@pytest.mark.parametrize(
    ("changes", "words", "fix"),
    [
        ({"use_dora": True}, "DoRA", "into: Model"),
        ({"peft_type": "ADALORA"}, "ADALORA", "method: Linear"),
        ({"peft_type": "IA3"}, "IA3", "into: Model"),
        ({"peft_type": "PREFIX_TUNING"}, "PREFIX_TUNING", "only PEFT"),
        ({"peft_type": "PROMPT_TUNING"}, "PROMPT_TUNING", "only PEFT"),
        ({"peft_type": "LOHA"}, "LOHA", "into: Model"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save: lm_head", "into: Model"),
        ({"lora_bias": True}, "lora_bias", "into: Model"),
        ({"bias": "all"}, "bias", "into: Model"),
        ({"layer_replication": [[0, 1]]}, "layer_replication", "into: Model"),
        ({"alora_invocation_tokens": [1]}, "activated LoRA", "without"),
        ({"use_qalora": True}, "QALoRA", "into: Model"),
        ({"init_lora_weights": "pissa_niter_16"}, "pissa_niter_16", "path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "olora"}, "olora", "path_initial_model_for_weight_conversion"),
        ({"r": "8"}, "whole numbers above 0", "save_pretrained"),
        ({"rank_pattern": {"q": -1}}, "whole numbers above 0", "save_pretrained"),
    ],
)
def test_a_config_of_what_the_engine_cannot_serve_is_refused(
    copy: Path, llama: Path, changes: dict[str, Any], words: str, fix: str
) -> None:
    error = refusal(named(copy, **changes), served(llama))
    assert error.reason is FailureReason.ADAPTER_UNSUPPORTED
    assert words in error.message
    assert fix in error.remedies[0].text


@pytest.mark.parametrize("init", [True, False, "gaussian", "eva", "orthogonal", "lora_ga", None])
def test_a_way_to_begin_that_leaves_the_base_alone_is_no_reason(copy: Path, llama: Path, init: Any) -> None:
    changes = {} if init is None else {"init_lora_weights": init}
    assert check_fit(named(copy, **changes), NOBODY, served(llama)).rank == 4


@pytest.mark.parametrize(
    ("config", "mark"),
    [
        (LoraConfig(r=4, use_dora=True, target_modules=["q_proj"]), "lora_magnitude_vector"),
        (AdaLoraConfig(init_r=4, target_modules=["q_proj"], total_step=10), "lora_E"),
        (IA3Config(target_modules=["k_proj"], feedforward_modules=[]), "ia3_l"),
        (PromptTuningConfig(num_virtual_tokens=4), "prompt_embeddings"),
        (PrefixTuningConfig(num_virtual_tokens=4), "prompt_embeddings"),
        (LoraConfig(r=4, target_modules=["q_proj"], lora_bias=True), "lora_B.bias"),
        (LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"]), "lm_head"),
    ],
)
def test_weights_of_another_method_are_refused_whatever_their_config_says(
    llama: Path, good: Path, tmp_path: Path, config: Any, mark: str
) -> None:
    config.task_type = "CAUSAL_LM"
    adapter = trained_adapter(llama, config, tmp_path / "a", seed=1)
    shutil.copy(good / CONFIG, adapter / CONFIG)
    error = refusal(adapter, served(llama))
    assert error.reason is FailureReason.ADAPTER_UNSUPPORTED
    assert mark in error.message


@pytest.mark.parametrize(
    ("edit", "reason", "words"),
    [
        (lambda all_: renamed(all_, "layers.1.", "layers.9."), "BaseMismatch", "of layer 9, and the base has 2 layers"),
        (lambda all_: renamed(all_, "self_attn", "attention"), "BaseMismatch", "has no model.layers.0.attention"),
        (lambda all_: renamed(all_, "model.layers", "transformer.h"), "BaseMismatch", "the base has no"),
        (lambda all_: {k: v for k, v in all_.items() if not k.endswith("0.mlp.down_proj.lora_A.weight")},
         "AdapterUnsupported", "has no lora_A"),
        (lambda all_: {**all_, "extra.weight": torch.ones(2)}, "AdapterUnsupported", "extra.weight is no tensor"),
        (lambda all_: renamed(all_, "lora_A.weight", "lora_A.default.weight"), "AdapterUnsupported", "lora_A.default"),
        (lambda all_: {k: v.to(torch.int8) for k, v in all_.items()}, "AdapterUnsupported", "of type I8"),
        (lambda all_: {k: torch.cat([v, v], 0 if "lora_A" in k else 1) for k, v in all_.items()},
         "AdapterUnsupported", "has rank 8, adapter_config.json says 4"),
        (lambda all_: {k: torch.cat([v, v], 1) if "lora_A" in k else v for k, v in all_.items()},
         "BaseMismatch", "takes 160 inputs, the base has 80"),
        (lambda all_: {k: torch.cat([v, v], 0) if "lora_B" in k else v for k, v in all_.items()},
         "BaseMismatch", "gives 64 outputs, the base has 32"),
        (lambda all_: {}, "AdapterUnsupported", "holds no tensor of a LoRA"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit_are_refused_by_the_name_of_the_module(
    copy: Path, llama: Path, edit: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], reason: str, words: str
) -> None:
    tensors = {name: value.contiguous() for name, value in edit(load_file(copy / WEIGHTS)).items()}
    save_file(tensors, copy / WEIGHTS)
    error = refusal(copy, served(llama))
    assert (error.reason.value, words in error.message) == (reason, True), error.message


def renamed(tensors: dict[str, torch.Tensor], old: str, new: str) -> dict[str, torch.Tensor]:
    return {name.replace(old, new): value for name, value in tensors.items()}


def test_an_adapter_of_another_architecture_is_refused(tmp_path: Path, llama: Path, good: Path) -> None:
    gpt2 = save_tiny(tmp_path / "gpt2", Tiny.GPT2)
    error = refusal(good, served(gpt2))
    assert error.reason is FailureReason.BASE_MISMATCH
    assert "another architecture" in error.message
    config = LoraConfig(r=4, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM")
    adapter = named(trained_adapter(gpt2, config, tmp_path / "a", seed=1))
    assert check_fit(adapter, NOBODY, served(gpt2)).rank == 4
    assert refusal(adapter, served(llama)).reason is FailureReason.BASE_MISMATCH


def test_another_base_of_the_same_name_is_refused(tmp_path: Path, good: Path) -> None:
    wide = save_tiny(tmp_path / "wide", Tiny.LLAMA_UNTIED, hidden_size=64)
    assert "has 64" in refusal(good, served(wide)).message
    flat = save_tiny(tmp_path / "flat", Tiny.LLAMA_UNTIED, num_hidden_layers=1)
    assert refusal(good, served(flat)).message.endswith("is of layer 1, and the base has 1 layers")


def test_the_name_of_the_base_is_that_of_the_lineage_or_of_the_config(copy: Path, llama: Path) -> None:
    named(copy, base_model_name_or_path="/work/model/abc")
    assert check_fit(copy, Lineage(served_name=NAME), served(llama)).rank == 4
    error = refusal(copy, served(llama), Lineage(served_name="org/other"))
    assert error.reason is FailureReason.BASE_MISMATCH
    assert error.message == "it was trained on org/other, and the model of this server is org/base"
    assert "model.servedName" in error.remedies[0].text
    named(copy, base_model_name_or_path=None)
    assert check_fit(copy, NOBODY, served(llama)).rank == 4


def test_another_commit_of_the_base_is_served_and_said(copy: Path, tmp_path: Path, llama: Path) -> None:
    base = shutil.copytree(llama, tmp_path / "base")
    (base / RECORD).write_text(json.dumps({"revision": "b" * 40}))
    lineage = Lineage.model_validate({"model": {"uri": "hf://org/base", "revision": "a" * 40}})
    note = check_fit(copy, lineage, served(base)).note
    assert note == "it was trained on revision aaaaaaaaaaaa of the base, and bbbbbbbbbbbb is served"


def lying(header: dict[str, Any] | bytes, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


ENTRY = {"dtype": "F32", "shape": [4, 8], "data_offsets": [0, 128]}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "does not begin with a header"),
        (b"PK\x03\x04" + bytes(400), "is a pickle of PyTorch"),
        (b"\x80\x02}q\x00." + bytes(400), "is a pickle of PyTorch"),
        (b"version https://git-lfs.github.com/spec/v1\n", "does not begin with a header"),
        (struct.pack("<Q", 1 << 30) + b"{" + bytes(64), "more than 32,000,000 are not read"),
        (struct.pack("<Q", 1 << 62) + b"{" + bytes(64), "more than 32,000,000 are not read"),
        (struct.pack("<Q", 4000) + b"{" + bytes(64), "cut off within its header"),
        (lying({"a": ENTRY}, bytes(100)), "is cut off"),
        (lying({"a": ENTRY}, bytes(200)), "longer than its header says"),
        (lying({"a": ENTRY | {"shape": [4, 1 << 40]}}, bytes(128)), "something impossible of a"),
        (lying({"a": ENTRY, "b": ENTRY}, bytes(128)), "something impossible"),
        (lying({"a": ENTRY | {"data_offsets": [-128, 0]}}, bytes(128)), "cannot be read"),
        (lying({"a": ENTRY | {"shape": [True, 32]}}, bytes(128)), "cannot be read"),
        (lying({"a": {"dtype": "F32"}}, bytes(128)), "cannot be read"),
        (lying(b"{" + b"[" * 100_000), "cannot be read"),
        (lying(b"{}  "), "holds no tensor of a LoRA"),
    ],
)
def test_a_file_that_is_no_safetensors_file_is_refused(copy: Path, llama: Path, content: bytes, words: str) -> None:
    (copy / WEIGHTS).write_bytes(content)
    error = refusal(copy, served(llama))
    assert error.reason is FailureReason.ADAPTER_UNSUPPORTED
    assert words in error.message
    assert WEIGHTS in error.message


def test_a_header_that_claims_gigabytes_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "bomb.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 1 << 30) + b"{")
        file.truncate((1 << 30) + 8)
    tracemalloc.start()
    try:
        with pytest.raises(BadHeader):
            read_header(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "[" * 100_000, '{"r": 4}'])
def test_a_config_that_is_none_is_refused(copy: Path, llama: Path, text: str) -> None:
    (copy / CONFIG).write_text(text)
    assert CONFIG in refusal(copy, served(llama)).message


def written(folder: Path, shapes: dict[str, tuple[int, ...]], **config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in adapter_files(**config).items():
        (folder / name).write_bytes(data)
    (folder / WEIGHTS).write_bytes(safetensors(shapes))
    return folder


def base_of(folder: Path, shapes: dict[str, tuple[int, ...]], model_type: str, dtype: str = "F32") -> ServedBase:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    (folder / "model.safetensors").write_bytes(safetensors(shapes, dtype))
    return served(folder)


def test_wrappers_of_models_that_see_are_looked_through(tmp_path: Path) -> None:
    shapes = {key.replace("model.", "language_model.model.", 1): shape for key, shape in base_shapes().items()}
    base = base_of(tmp_path / "base", shapes, "llava")
    for at, prefix in enumerate(("model.language_model.", "language_model.model.", "model.")):
        tensors = {key.replace("model.model.", f"model.{prefix}", 1): shape for key, shape in lora_shapes().items()}
        assert check_fit(written(tmp_path / str(at), tensors), NOBODY, base).rank == 4
    deep = {key.replace("layers.1.", "layers.7."): shape for key, shape in lora_shapes().items()}
    assert "layer 7" in refusal(written(tmp_path / "deep", deep), base).message


def test_what_the_files_of_a_base_do_not_say_is_left_to_the_engine(tmp_path: Path) -> None:
    experts = {f"base_model.model.model.layers.0.mlp.experts.{part}": (4, 8) for part in
               ("lora_A.weight", "lora_B.weight", "base_layer.lora_A.weight", "base_layer.lora_B.weight")}  # fmt: skip
    mixture = base_of(tmp_path / "base", base_shapes(), "mixtral")
    assert check_fit(written(tmp_path / "experts", lora_shapes() | experts), NOBODY, mixture).rank == 4
    fused = {key.replace("q_proj", "qkv_proj"): shape for key, shape in base_shapes().items()}
    assert (
        check_fit(written(tmp_path / "fused", lora_shapes()), NOBODY, base_of(tmp_path / "f", fused, "new")).rank == 4
    )
    packed = {key.replace(".weight", ".qweight"): (1, 1) for key in base_shapes()}
    assert check_fit(written(tmp_path / "gptq", lora_shapes()), NOBODY, base_of(tmp_path / "q", packed, "llama"))
    halves = {key: (shape[0] * shape[1] // 2, 1) for key, shape in base_shapes().items()}
    assert check_fit(written(tmp_path / "nf4", lora_shapes()), NOBODY, base_of(tmp_path / "n", halves, "llama", "U8"))
    unread = ServedBase(BaseModel(), NAME, 64)
    assert check_fit(written(tmp_path / "any", lora_shapes(width=99)), NOBODY, unread).rank == 4


def test_a_base_whose_files_are_damaged_is_compared_by_its_config_only(tmp_path: Path, good: Path, llama: Path) -> None:
    base = shutil.copytree(llama, tmp_path / "base")
    shard = sorted(base.glob("*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:-3])
    assert read_base(base).tensors == {}
    assert check_fit(good, NOBODY, served(base)).rank == 4


def test_a_folder_that_lacks_a_file_is_no_fault_of_the_adapter(copy: Path, llama: Path) -> None:
    for name in (WEIGHTS, CONFIG):
        (copy / name).unlink()
        error = refusal(copy, served(llama))
        assert error.reason is FailureReason.INTERNAL_ERROR
        assert f"{name} cannot be read: No such file" in error.message


def test_halves_of_different_ranks_are_told_with_both(copy: Path, llama: Path) -> None:
    tensors = load_file(copy / WEIGHTS)
    name = next(each for each in sorted(tensors) if "lora_B" in each)
    save_file(tensors | {name: tensors[name][:, :2].contiguous()}, copy / WEIGHTS)
    error = refusal(copy, served(llama))
    assert error.reason is FailureReason.ADAPTER_UNSUPPORTED
    assert "has rank 4, its lora_B 2" in error.message
