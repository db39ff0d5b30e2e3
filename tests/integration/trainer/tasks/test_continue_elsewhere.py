"""continueFrom with a folder that stock PEFT has saved: found out on a CPU, trained on, and told as what it is."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from tunery_api.reasons import FailureReason
from tunery_api.runspec import PreflightReport, RunSpec
from tunery_common.errors import TuneryError
from tunery_common.inputs import name_patterns
from tunery_common.storage.transfer import hash_file, listing_digest
from tunery_trainer.inputs.adapter import get_starting_adapter
from tunery_trainer.inputs.workspace import Workspace
from tunery_trainer.local import load_run_spec
from tunery_trainer.resuming.may_resume import check_start
from tunery_trainer.tasks.preflight import run_preflight

from kit.merge_runs import CONFIG, WEIGHTS, Change, beside, held, said, without
from kit.story import make_rows, manifest, run_here, write_manifest, write_rows

R = FailureReason
RANKS = {"0.self_attn.q_proj": 2}


@pytest.fixture
def folder(tmp_path: Path, tiny_model: Path) -> Path:
    """A folder with model and data."""
    (tmp_path / "model").symlink_to(tiny_model)
    write_rows(tmp_path / "data.jsonl", make_rows())
    return tmp_path


def made(folder: Path, config: PeftConfig | None = None, **shape: Any) -> Path:
    """Save an adapter as PEFT does, on a model of the tiny one's shape but for `shape`."""
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder / "model", **shape))
    default = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    torch.manual_seed(1)
    peft = get_peft_model(model, config or default)
    with torch.no_grad():
        for parameter in peft.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.02)
    peft.save_pretrained(folder / "made", save_embedding_layers=False)
    return folder / "made"


def job(folder: Path, **changes: Any) -> Path:
    later = {"continueFrom": {"uri": "file://made"}, "output": {"uri": "file://out"}, "lora": None}
    training = {"training": {"maxSteps": 4, "learningRate": 1e-3}}
    return write_manifest(folder, manifest(folder, **(later | training | changes)))


def checked(folder: Path, **changes: Any) -> PreflightReport:
    return run_preflight(load_run_spec(job(folder, **changes), folder / "work", None))


def refusal(folder: Path, **changes: Any) -> TuneryError:
    with pytest.raises(TuneryError) as caught:
        checked(folder, **changes)
    return caught.value


def pin_of(folder: Path) -> str:
    return listing_digest((name, hash_file(folder / name)) for name in (CONFIG, WEIGHTS))


@pytest.mark.slow
def test_a_plain_adapter_is_trained_on_and_told(folder: Path) -> None:
    """Its alpha, which PEFT has as any number, stays what it was."""
    adapter = made(folder)
    said(lora_alpha=8.5, alpha_pattern={"q_proj": 4.25, "v_proj": 8192.0})(adapter)
    done = run_here("run", job(folder, evaluation={"minImprovement": -9}), "--work-dir", folder / "work")
    assert done.returncode == 0, done.stderr
    lineage = json.loads((folder / "out" / "manifest.json").read_text())["lineage"]
    record = lineage["continuedFrom"]
    assert (record["origin"], record["sha256"], "manifestSha256" in record) == ("Unverified", pin_of(adapter), False)
    assert record["files"][WEIGHTS]["sha256"] == hash_file(adapter / WEIGHTS)
    assert lineage["resolved"]["continuedFrom"] == {
        "uri": adapter.as_uri(), "sha256": pin_of(adapter), "origin": "Unverified"
    }  # fmt: skip
    assert lineage["rank"] == 4
    assert lineage["hyperparameters"]["lora.alpha"] == "8.5"
    config = json.loads((folder / "out" / CONFIG).read_text())
    assert (config["lora_alpha"], config["alpha_pattern"]) == (8.5, {"q_proj": 4.25, "v_proj": 8192})
    assert "made elsewhere, unverified origin" in (folder / "out" / "README.md").read_text()
    before, after = load_file(adapter / WEIGHTS), load_file(folder / "out" / WEIGHTS)
    assert before.keys() == after.keys()
    moved = max(float((before[name] - after[name]).abs().max()) for name in before)
    assert 0 < moved < 0.01, "it goes on from its weights, in small steps"


@pytest.mark.slow(fast=["prefix", "prompt"])
@pytest.mark.parametrize(
    ("config", "changes"),
    [
        (LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"), {}),
        (LoraConfig(r=4, target_modules=r".*\.layers\.0\..*(q|v)_proj", task_type="CAUSAL_LM"), {}),
        (LoraConfig(r=4, target_modules=["q_proj"], layers_to_transform=[1]), {}),
        (LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"], rank_pattern=RANKS), {}),
        (LoraConfig(r=4, target_modules=["q_proj"], use_dora=True, use_rslora=True), {"method": "DoRA"}),
        (IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]), {"method": "IA3"}),
        (PromptTuningConfig(num_virtual_tokens=5, task_type="CAUSAL_LM"), {"method": "PromptTuning"}),
        (PrefixTuningConfig(num_virtual_tokens=5, task_type="CAUSAL_LM"), {"method": "PrefixTuning"}),
    ],
    ids=["all-linear", "pattern", "one layer", "saved", "dora", "ia3", "prompt", "prefix"],
)  # fmt: skip
def test_what_peft_saves_fits_the_base_that_it_was_trained_on(
    folder: Path, config: PeftConfig, changes: dict[str, Any]
) -> None:
    adapter = made(folder, config)
    resolved = checked(folder, **changes).resolved
    assert resolved is not None
    assert resolved.continued_from is not None
    assert resolved.continued_from.sha256 == pin_of(adapter)


def test_one_of_another_base_is_refused_on_a_cpu_by_its_tensor(folder: Path) -> None:
    """Whatever name of a base its configuration says."""
    adapter = made(folder, hidden_size=128)
    config = json.loads((adapter / CONFIG).read_text())
    (adapter / CONFIG).write_text(json.dumps(config | {"base_model_name_or_path": "model"}))
    error = refusal(folder)
    width = json.loads((folder / "model" / "config.json").read_text())["hidden_size"]
    tensor = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    assert error.reason is R.BASE_MISMATCH
    assert error.message == f"spec.continueFrom: {tensor} is 4 x 128, the base's q_proj takes {width}"
    assert [each.fields for each in error.remedies] == [["model"]]


@pytest.mark.parametrize(
    ("config", "shape", "changes", "words"),
    [
        (None, {"num_hidden_layers": 3}, {}, "layers.2.self_attn.q_proj.lora_A.weight: this base with that"),
        (PromptTuningConfig(num_virtual_tokens=5, task_type="CAUSAL_LM"), {"hidden_size": 128},
         {"method": "PromptTuning"}, "prompt_embeddings is 5 x 128, by its configuration and the base it would be 5 x"),
        (IA3Config(target_modules=["k_proj"], feedforward_modules=[]), {"hidden_size": 128, "head_dim": 32},
         {"method": "IA3"}, "k_proj.ia3_l is "),
    ],
    ids=["layers", "prompt", "ia3"],
)  # fmt: skip
def test_what_does_not_fit_is_named(
    folder: Path, config: PeftConfig | None, shape: dict[str, Any], changes: dict[str, Any], words: str
) -> None:
    made(folder, config, **shape)
    error = refusal(folder, **changes)
    assert (error.reason, words in error.message) == (R.BASE_MISMATCH, True), error.message


def turned(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The factors of v_proj the other way round."""
    for a in [name for name in tensors if "v_proj.lora_A" in name]:
        b = a.replace("lora_A", "lora_B")
        tensors[a], tensors[b] = tensors[b].T, tensors[a].T
    return tensors


def piped(folder: Path) -> None:
    (folder / CONFIG).unlink()
    os.mkfifo(folder / CONFIG)


HALF = "layers.0.self_attn.q_proj.lora_A"


@pytest.mark.slow(only=["a module less"])
@pytest.mark.parametrize(
    ("change", "reason", "words"),
    [
        (said(bias="all"), R.INVALID_SPEC, "bias is set"),
        (said(trainable_token_indices=[1]), R.INVALID_SPEC, "trainable_token_indices is set"),
        (said(init_lora_weights="pissa_niter_4"), R.INVALID_SPEC, "relative to a changed base"),
        (said(use_dora=True), R.INVALID_SPEC, "is LoRA, but the adapter of continueFrom is DoRA; use method: DoRA or"),
        (said(peft_type="LOHA"), R.INVALID_SPEC, "continueFrom is LOHA; such an adapter cannot be trained on"),
        (said(target_modules=["nothing"]), R.INVALID_SPEC, "nothing"),
        (said(r="4"), R.ADAPTER_CORRUPT, "adapter_config.json: r: "),
        (said(r=8), R.ADAPTER_CORRUPT, "model.layers.0.self_attn.q_proj has rank 4, adapter_config.json says 8"),
        (said(rank_pattern=RANKS), R.ADAPTER_CORRUPT, "0.self_attn.q_proj has rank 4, adapter_config.json says 2"),
        (without(HALF, "layers.0.self_attn.q_proj.lora_B"), R.ADAPTER_CORRUPT,
         "lora_A.weight, and 1 more tensors that adapter_config.json has on this base"),
        (without(HALF), R.ADAPTER_CORRUPT, "adapter_model.safetensors lacks base_model.model.model.layers.0.self_attn."
         "q_proj.lora_A.weight, which adapter_config.json has on this base"),
        (without("layers.1."), R.ADAPTER_CORRUPT, "lacks base_model.model.model.layers.1.self_attn.q_proj.lora_A"),
        (said(target_modules=["q_proj"]), R.ADAPTER_CORRUPT, "v_proj.lora_A.weight: adapter_config.json says nothing"),
        (said(exclude_modules=["v_proj"]), R.ADAPTER_CORRUPT, "v_proj.lora_A.weight: adapter_config.json says nothing"),
        (said(layers_to_transform=[0]), R.ADAPTER_CORRUPT, "layers.1.self_attn.q_proj.lora_A.weight: adapter_config"),
        (beside(base_model__model__model__norm__weight=(64,)), R.ADAPTER_CORRUPT, "norm.weight: adapter_config.json"),
        (beside(base_model__model__lm_head__weight=(9, 64)), R.ADAPTER_CORRUPT, "lm_head.weight: adapter_config.json"),
        (beside(**{f"base_model.model.model.{HALF[:-7]}.lora_magnitude_vector": (64,)}), R.ADAPTER_CORRUPT,
         "q_proj.lora_magnitude_vector: adapter_config.json says nothing of it"),
        (held(turned), R.BASE_MISMATCH, "v_proj.lora_A.weight is "),
        (said(lora_alpha=None), R.ADAPTER_CORRUPT, "adapter_config.json: lora_alpha: "),
        (said(lora_alpha=0), R.ADAPTER_CORRUPT, "adapter_config.json: lora_alpha: is 0, and must be above 0"),
        (said(lora_alpha=-16.0), R.ADAPTER_CORRUPT, "adapter_config.json: lora_alpha: is -16.0, and must be above 0"),
        (said(alpha_pattern={"q_proj": 0}), R.ADAPTER_CORRUPT, "adapter_config.json: alpha_pattern.q_proj: is 0, and"),
        (said(lora_alpha="16"), R.ADAPTER_CORRUPT, "adapter_config.json: lora_alpha: "),
        (said(target_modules="(("), R.ADAPTER_CORRUPT, "target_modules: '((' is no regular expression"),
        (said(megatron_config={"a": 1}), R.INVALID_SPEC, "megatron_config is set"),
        (piped, R.INVALID_SPEC, "adapter_config.json is a pipe, a socket or a device, and not a file"),
        (lambda folder: (folder / WEIGHTS).unlink(), R.ADAPTER_MISSING, f"has no {WEIGHTS}"),
    ],
    ids=["bias", "tokens", "pissa", "dora", "loha", "no module", "rank", "another rank", "other ranks", "a module less",
         "a hole", "a layer less", "untold",
         "excluded", "one layer", "norm", "head", "magnitudes", "turned", "no alpha", "alpha 0", "below 0", "of q_proj",
         "alpha", "pattern", "megatron",
         "a pipe", "no weights"],
)  # fmt: skip
def test_what_cannot_be_trained_on_is_told_by_preflight(
    folder: Path, change: Change, reason: FailureReason, words: str
) -> None:
    change(made(folder))
    error = refusal(folder)
    assert (error.reason, words in error.message) == (reason, True), error.message
    assert error.message.startswith("spec.")
    if reason is R.ADAPTER_CORRUPT:  # there is no manifest whose digests it would have to match
        assert "PEFT's save_pretrained" in error.remedies[0].text
    elif " is set in its configuration" in error.message:  # which is none of the manifest's fields
        assert error.remedies[0].fields == ["continueFrom"]


def test_a_prompt_of_another_length_is_no_matter_of_the_base(folder: Path) -> None:
    said(num_virtual_tokens=7)(made(folder, PromptTuningConfig(num_virtual_tokens=5, task_type="CAUSAL_LM")))
    error = refusal(folder, method="PromptTuning")
    told = "prompt_embeddings has 5 rows, adapter_config.json says 7 (num_virtual_tokens)"
    assert (error.reason, error.message) == (R.ADAPTER_CORRUPT, f"spec.continueFrom: {told}")
    assert "PEFT's save_pretrained" in error.remedies[0].text


@pytest.mark.parametrize("field", ["target_modules", "rank_pattern"])
def test_a_pattern_without_an_end_on_the_bases_names_is_told(
    folder: Path, field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though it has one on the names of the adapter's own tensors."""
    slow = r".*(q|v)_proj|.*\.post_((\w+)+)+!"
    said(**{field: slow if field == "target_modules" else {slow: 4}})(made(folder))
    monkeypatch.setattr(name_patterns, "SECONDS", 0.5)
    error = refusal(folder)
    assert error.reason is R.ADAPTER_CORRUPT
    assert f"spec.continueFrom: adapter_config.json: {field}: " in error.message, error.message
    assert "takes too long on the names of modules" in error.message


@pytest.mark.slow
def test_what_peft_fills_in_may_be_left_out(folder: Path) -> None:
    said(r=..., lora_alpha=..., bias=..., rank_pattern=..., use_rslora=...)(made(folder, eight()))
    resolved = checked(folder).resolved
    assert resolved is not None
    values = {value.name: value.value for value in resolved.values}
    assert (values["lora.rank"], values["lora.alpha"]) == ("8", "8")


def eight() -> LoraConfig:
    return LoraConfig(target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


@pytest.mark.slow
def test_nothing_else_is_trained_on_than_was_checked(folder: Path) -> None:
    """Neither what was put there since, nor what is not what the manifest asks for."""
    adapter = made(folder)
    resolved = checked(folder, continueFrom={"uri": "file://made", "sha256": pin_of(adapter)}).resolved
    assert resolved is not None
    assert resolved.continued_from is not None
    run = as_planned(load_run_spec(job(folder), folder / "work", None), resolved.continued_from.sha256)
    first = get_starting_adapter(Workspace(run), weights=True)
    assert first is not None

    said(lora_alpha=64)(adapter)
    with pytest.raises(TuneryError, match=r"spec\.continueFrom: .* was changed since it was checked") as caught:
        get_starting_adapter(Workspace(run), weights=True)
    assert caught.value.reason is R.ADAPTER_CORRUPT
    error = refusal(folder, continueFrom={"uri": "file://made", "sha256": first.record.digest})
    assert error.message.startswith("spec.continueFrom.sha256: what lies at ")
    # Where nobody had checked it: a checkpoint remembers what the run began with.
    second = get_starting_adapter(Workspace(as_planned(run, None)), weights=True)
    assert second is not None
    with pytest.raises(TuneryError, match=r"spec\.continueFrom: .* this job began with"):
        check_start(first.record, second.record)
    check_start(second.record, second.record)


def as_planned(run: RunSpec, sha256: str | None) -> RunSpec:
    """Return the run as the operator plans it once preflight has told a digest."""
    return run.model_copy(update={"adapters": [run.adapters[0].model_copy(update={"sha256": sha256})]})


def test_with_other_weights_it_is_another_run(folder: Path) -> None:
    adapter = made(folder)
    first = load_run_spec(job(folder), folder / "work", None)
    assert load_run_spec(job(folder), folder / "work", None).identity == first.identity
    without(HALF)(shutil.copytree(adapter, folder / "copy"))
    shutil.copy(folder / "copy" / WEIGHTS, adapter / WEIGHTS)
    assert load_run_spec(job(folder), folder / "work", None).identity != first.identity
