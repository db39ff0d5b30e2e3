"""Every method, quantisation and start trains, and what is published gives the same logits in plain PEFT."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from tunery_api.reasons import FailureReason
from tunery_common.errors import TuneryError
from tunery_trainer.adapter.attach import attach, target_modules, trainable_parameters
from tunery_trainer.adapter.methods import lora_init
from tunery_trainer.adapter.methods.base import MethodContext
from tunery_trainer.adapter.methods.lora_init import leading_directions, lora_layers
from tunery_trainer.adapter.save import published_rank, save_published
from tunery_trainer.model.load import load_base, load_tokenizer, meta_model

from kit.training import logits_of, resolved_for, start_for, train

TOLERANCE = 3e-5
"""Of logits of size 1, in float32, whose sums hang on the CPU. Published and plain lie 100 times as far apart."""

METHODS = [
    pytest.param({"method": method}, id=method)
    for method in ("LoRA", "QLoRA", "DoRA", "QDoRA", "AdaLoRA", "PrefixTuning", "PromptTuning", "IA3")
]
QUANTISED = [
    pytest.param({"method": method, "quantization": {"type": kind}}, id=f"{method}-{kind}")
    for method in ("QLoRA", "QDoRA", "AdaLoRA", "PrefixTuning", "PromptTuning", "IA3")
    for kind in ("NF4", "FP4", "Int8")
    if (method, kind) not in {("QDoRA", "Int8"), ("QLoRA", "NF4"), ("QDoRA", "NF4")}
]
STARTS = [
    pytest.param({"method": method, "lora": {"init": init}}, id=f"{method}-{init}")
    for method, inits in {
        "LoRA": ("Gaussian", "PiSSA", "OLoRA", "EVA"),
        "DoRA": ("Gaussian", "PiSSA", "OLoRA", "EVA"),
        "QLoRA": ("Gaussian", "EVA", "LoftQ"),
        "QDoRA": ("Gaussian", "EVA"),
    }.items()
    for init in inits
]
# EVA takes seconds, and the same ones whichever method it starts.
ONE_EVA = [start for start in STARTS if start.id == "LoRA-EVA" or "EVA" not in str(start.id)]
PATTERNS = {"useRslora": True, "rankPattern": {"q_proj": 4, "layers.0.mlp.up_proj": 2}, "alphaPattern": {"v_proj": 5}}
SETTINGS = [
    pytest.param({"method": "LoRA", "lora": PATTERNS}, id="patterns"),
    pytest.param({"method": "LoRA", "lora": PATTERNS | {"init": "PiSSA"}}, id="patterns-PiSSA"),
    pytest.param({"method": "DoRA", "lora": PATTERNS | {"init": "OLoRA"}}, id="patterns-OLoRA"),
    pytest.param({"method": "LoRA", "lora": {"modulesToSave": ["embed_tokens"]}}, id="modulesToSave"),
    pytest.param({"method": "IA3", "lora": {"targetModules": ["attention"]}}, id="IA3-attention"),
    pytest.param({"method": "QLoRA", "quantization": {"doubleQuant": False}}, id="single-quantised"),
    pytest.param({"method": "PrefixTuning", "prefixTuning": {"virtualTokens": 6, "projection": True}}, id="projection"),
    pytest.param({"method": "PromptTuning", "promptTuning": {"virtualTokens": 6, "initText": "w5 w6"}}, id="initText"),
]


@pytest.mark.slow(fast=[*(str(case.id) for case in METHODS + STARTS[:3] + SETTINGS), "QLoRA-FP4", "AdaLoRA-Int8"])
@pytest.mark.parametrize("blocks", METHODS + QUANTISED + STARTS + SETTINGS)
def test_it_trains_and_what_is_published_is_the_same(llama: Path, tmp_path: Path, blocks: dict[str, Any]) -> None:
    run = train(llama, blocks)
    assert run.losses[-1] < run.losses[0]
    trained = run.logits()
    save_published(run.model, tmp_path, "owner/base")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["inference_mode"]) == ("owner/base", True)
    assert str(llama) not in json.dumps(config)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert (tmp_path / "adapter_model.safetensors").stat().st_mode & 0o777 == 0o644
    base = load_base(llama, run.resolved, "cpu")
    plain = logits_of(base)
    published = logits_of(PeftModel.from_pretrained(base, str(tmp_path)))
    assert (published - trained).abs().max() <= TOLERANCE
    assert (published - plain).abs().max() > 100 * TOLERANCE
    assert torch.equal(run.logits(), trained)


@pytest.mark.slow(fast=["*-qwen3", "QLoRA-gpt2"])
@pytest.mark.parametrize("family", ["gpt2", "falcon", "bloom", "qwen3", "gemma", "phi", "mistral"])
@pytest.mark.parametrize("method", ["QLoRA", "DoRA", "AdaLoRA", "IA3", "PrefixTuning", "PromptTuning"])
def test_every_method_on_every_family(family_folder: Any, tmp_path: Path, family: str, method: str) -> None:
    folder = family_folder(family)
    run = train(folder, {"method": method}, steps=6)
    assert run.losses[-1] < run.losses[0]
    save_published(run.model, tmp_path, "owner/base")
    published = PeftModel.from_pretrained(load_base(folder, run.resolved, "cpu"), str(tmp_path))
    assert (logits_of(published) - run.logits()).abs().max() <= TOLERANCE


@pytest.mark.parametrize("init", ["PiSSA", "OLoRA"])
def test_a_relative_adapter_is_published_with_twice_the_rank(llama: Path, tmp_path: Path, init: str) -> None:
    run = train(llama, {"method": "LoRA", "lora": {"init": init, "rank": 4}}, steps=2)
    save_published(run.model, tmp_path, "owner/base")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["init_lora_weights"]) == (8, 8, True)
    assert published_rank(run.model) == 8
    shapes = {tuple(tensor.shape) for name, tensor in load_file(tmp_path / "adapter_model.safetensors").items()}
    assert (8, 64) in shapes


@pytest.mark.parametrize("blocks", METHODS)
def test_the_adapter_alone_is_trained_in_float32(llama: Path, blocks: dict[str, Any]) -> None:
    resolved = resolved_for(llama, blocks | {"training": {"precision": "BFloat16"}})
    model = attach(load_base(llama, resolved, "cpu"), resolved, start_for(llama))
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {parameter.dtype for parameter in trained.values()} == {torch.float32}
    assert all(any(mark in name for mark in ("lora_", "ia3_l", "prompt_encoder")) for name in trained)
    assert trainable_parameters(model) == sum(parameter.numel() for parameter in trained.values())
    assert next(iter(model.get_base_model().model.norm.parameters())).dtype is torch.bfloat16


@pytest.mark.slow(only=["LoRA-EVA", "DoRA*", "QDoRA*", "QLoRA-*"])
@pytest.mark.parametrize("blocks", [*METHODS, *ONE_EVA])
def test_the_same_seed_gives_the_same_start(llama: Path, blocks: dict[str, Any]) -> None:
    starts = []
    for seed in (1, 1, 2):
        resolved = resolved_for(llama, blocks | {"training": {"seed": seed}})
        model = attach(load_base(llama, resolved, "cpu"), resolved, start_for(llama))
        starts.append({name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad})
    assert all(torch.equal(starts[0][name], starts[1][name]) for name in starts[0])
    computed = {"PiSSA", "OLoRA", "LoftQ", "EVA"}
    drawn = blocks["method"] != "IA3" and blocks.get("lora", {}).get("init") not in computed
    if drawn:
        assert any(not torch.equal(starts[0][name], starts[2][name]) for name in starts[0])


@pytest.mark.slow(only=["LoRA-EVA"])
@pytest.mark.parametrize("blocks", [p for p in METHODS if p.id in {"LoRA", "DoRA", "AdaLoRA", "IA3"}] + ONE_EVA)
def test_a_fresh_adapter_changes_nothing(llama: Path, blocks: dict[str, Any]) -> None:
    resolved = resolved_for(llama, blocks)
    plain = logits_of(load_base(llama, resolved, "cpu"))
    fresh = logits_of(attach(load_base(llama, resolved, "cpu"), resolved, start_for(llama)))
    loftq = blocks.get("lora", {}).get("init") == "LoftQ"
    assert ((fresh - plain).abs().max() <= 1e-4) is not loftq


def test_loftq_starts_nearer_to_the_full_precision_model(llama: Path) -> None:
    full = logits_of(load_base(llama, resolved_for(llama, {"method": "LoRA"}), "cpu"))
    resolved = resolved_for(llama, {"method": "QLoRA", "lora": {"init": "LoftQ", "rank": 32}})
    quantised = load_base(llama, resolved, "cpu")
    before = (logits_of(quantised) - full).norm()
    after = (logits_of(attach(quantised, resolved, start_for(llama))) - full).norm()
    assert after < 0.8 * before


@pytest.mark.parametrize(("rows", "columns", "rank"), [(300, 500, 16), (500, 300, 4), (24, 40, 16)])
def test_leading_directions_keep_what_the_exact_ones_keep(rows: int, columns: int, rank: int) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(rows, columns)  # as flat a spectrum as quantising leaves: the worst case
    left, values, right = leading_directions(matrix, rank)
    assert (left.shape, values.shape, right.shape) == ((rows, rank), (rank,), (rank, columns))
    exact = torch.linalg.svdvals(matrix)[:rank].square().sum()
    kept = matrix.square().sum() - (matrix - (left * values) @ right).square().sum()
    assert 0.97 * exact < kept <= 1.0001 * exact


def test_no_start_is_computed_that_a_checkpoint_replaces(llama: Path) -> None:
    def never() -> Iterator[Any]:
        raise AssertionError("the training data was read")
        yield

    for blocks in ({"method": "LoRA", "lora": {"init": "EVA"}}, {"method": "QLoRA", "lora": {"init": "LoftQ"}}):
        resolved = resolved_for(llama, blocks)
        start = MethodContext(load_tokenizer(llama), total_steps=1, batches=never(), overwritten=True)
        model = attach(load_base(llama, resolved, "cpu"), resolved, start)
        assert all(not layer.lora_B["default"].weight.any() for _, layer in lora_layers(model))


@pytest.mark.slow
def test_eva_starts_from_the_data(llama: Path) -> None:
    resolved = resolved_for(llama, {"method": "LoRA", "lora": {"init": "EVA", "rank": 4}})
    model = attach(load_base(llama, resolved, "cpu"), resolved, start_for(llama))
    directions = dict(model.named_parameters())["base_model.model.model.layers.0.mlp.down_proj.lora_A.default.weight"]
    assert torch.allclose(directions @ directions.T, torch.eye(4), atol=1e-4)


@pytest.mark.parametrize(
    ("rank", "batch", "said"),
    [
        pytest.param(5, [[3, 4, 5, 6]], "at least as many tokens as the rank, 5", id="too-few-tokens"),
        pytest.param(4, [[3, 3, 3, 3]], "have not settled after 3 batches", id="never-settles"),
    ],
)
def test_eva_that_cannot_work_ends(
    llama: Path, monkeypatch: pytest.MonkeyPatch, rank: int, batch: list[list[int]], said: str
) -> None:
    monkeypatch.setattr(lora_init, "MAX_EVA_BATCHES", 3)
    resolved = resolved_for(llama, {"method": "LoRA", "lora": {"init": "EVA", "rank": rank}})
    start = dataclasses.replace(start_for(llama), batches=[{"input_ids": torch.tensor(batch)}])
    with pytest.raises(TuneryError, match=said) as caught:
        attach(load_base(llama, resolved, "cpu"), resolved, start)
    assert caught.value.reason is FailureReason.INVALID_SPEC


@pytest.mark.parametrize("blocks", METHODS)
@pytest.mark.parametrize("family", ["llama", "gpt2", "falcon"])
def test_preflight_counts_what_training_will_train(family_folder: Any, family: str, blocks: dict[str, Any]) -> None:
    folder = family_folder(family)
    resolved = resolved_for(folder, blocks)
    unreal = attach(meta_model(folder), resolved, start_for(folder))
    real = attach(load_base(folder, resolved, "cpu"), resolved, start_for(folder))
    assert trainable_parameters(unreal) == trainable_parameters(real) > 0
    assert target_modules(unreal) == target_modules(real)


@pytest.mark.parametrize("text", [None, "w5 w6 w7"])
def test_prompt_tuning_starts_from_real_embeddings(llama: Path, text: str | None) -> None:
    block = {"virtualTokens": 5} | ({"initText": text} if text else {})
    resolved = resolved_for(llama, {"method": "PromptTuning", "promptTuning": block})
    model = attach(load_base(llama, resolved, "cpu"), resolved, start_for(llama))
    prompt = model.prompt_encoder["default"].embedding.weight
    table = model.get_base_model().get_input_embeddings().weight
    ids = [int((table - row).abs().sum(dim=1).argmin()) for row in prompt]
    assert torch.equal(table[ids], prompt)
    assert ids == [5, 6, 7, 5, 6] if text else min(ids) > 2


def test_a_text_without_tokens_is_refused(llama: Path) -> None:
    resolved = resolved_for(llama, {"method": "PromptTuning", "promptTuning": {"initText": "  "}})
    with pytest.raises(TuneryError, match=r"spec\.promptTuning\.initText"):
        attach(load_base(llama, resolved, "cpu"), resolved, start_for(llama))


def test_prefix_tuning_starts_from_the_keys_and_values_of_real_tokens(llama: Path) -> None:
    resolved = resolved_for(llama, {"method": "PrefixTuning", "prefixTuning": {"virtualTokens": 5}})
    base = load_base(llama, resolved, "cpu")
    plain = logits_of(base)
    model = attach(base, resolved, start_for(llama))
    # A random prefix of unit normal keys and values throws the model off; one of real tokens is read as text.
    near = (logits_of(model) - plain).norm()
    with torch.no_grad():
        model.prompt_encoder["default"].embedding.weight.normal_()
    assert near < (logits_of(model) - plain).norm()


def test_the_target_modules_are_reported(llama: Path) -> None:
    resolved = resolved_for(llama, {"method": "LoRA", "preset": "StyleTransfer"})
    model = attach(load_base(llama, resolved, "cpu"), resolved, start_for(llama))
    assert target_modules(model) == ["q_proj", "v_proj"]
