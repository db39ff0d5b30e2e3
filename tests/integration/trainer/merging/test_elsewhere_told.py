"""What the configuration of an adapter made elsewhere says is what lies beside it, as PEFT reads it, or refused."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, IA3Config, LoraConfig, PeftConfig, get_peft_model
from safetensors.torch import load_file

from tunery_api.reasons import FailureReason
from tunery_api.runspec import ResolvedAdapter
from tunery_common.errors import TuneryError
from tunery_common.inputs import name_patterns
from tunery_common.inputs.misfit import DIVERGED_ELSEWHERE
from tunery_trainer.merging.adapter_files import AS_SAVED, open_adapter
from tunery_trainer.merging.base_model import open_checkpoint
from tunery_trainer.merging.files import LocalFiles
from tunery_trainer.merging.into_base import merge_into_base
from tunery_trainer.tasks.merge import run_merge

from kit.adapters import trained_adapter, with_adapter
from kit.merge_runs import CONFIG, WEIGHTS, Change, beside, held, merge_of, refusal, said, without
from kit.tiny_models import Tiny, load, save_tiny

TARGETS = ["q_proj", "v_proj", "down_proj"]
LAST = "base_model.model.model.layers.1.mlp.down_proj"
QUERY = "base_model.model.model.layers.0.self_attn.q_proj"
R = FailureReason


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[Tiny, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {kind: save_tiny(folder / kind, kind) for kind in Tiny}


@pytest.fixture(scope="module")
def base(bases: dict[Tiny, Path]) -> Path:
    return bases[Tiny.LLAMA_TIED]


def lora(**changes: Any) -> PeftConfig:
    return LoraConfig(**{"r": 4, "target_modules": TARGETS, "task_type": "CAUSAL_LM"} | changes)


CONFIGS: dict[str, PeftConfig] = {
    "plain": lora(),
    "dora": lora(use_dora=True),
    "lora bias": lora(lora_bias=True),
    "for classes": lora(task_type=None),
    "saved": lora(modules_to_save=["norm"]),
    "tokens": lora(trainable_token_indices=[3, 5]),
    "biases": lora(bias="lora_only"),
    "ia3": IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
}


@pytest.fixture(scope="module")
def made(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of adapters as PEFT's save_pretrained leaves them."""
    folder = tmp_path_factory.mktemp("made")
    for name, config in CONFIGS.items():
        trained_adapter(base, config, folder / name, seed=4)
    adalora(base, folder / "adalora")
    said(task_type="SEQ_CLS")(folder / "for classes")
    return folder


def adalora(base: Path, folder: Path) -> Path:
    """Train with stock PEFT until AdaLoRA has given its ranks out, one of them 0, and save what is left."""
    torch.manual_seed(3)
    config = AdaLoraConfig(
        init_r=6,
        target_r=2,
        tinit=1,
        tfinal=2,
        deltaT=1,
        total_step=8,
        lora_alpha=16,
        target_modules=["q_proj", "v_proj"],
    )
    model = get_peft_model(load(base).train(), config)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    rows = torch.arange(2 * 12).view(2, 12) * 5 % 96
    for step in range(8):
        model(input_ids=rows, labels=rows).loss.backward()
        optimizer.step()
        model.base_model.update_and_allocate(step)
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return folder


def changed(made: Path, name: str, place: Path, change: Change) -> Path:
    change(shutil.copytree(made / name, place))
    return place


def transposed(folder: Path) -> None:
    """Write the factors of down_proj the other way round: B·A of (in × out)."""

    def turn(found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        for name in [name for name in found if "down_proj" in name and "lora_A" in name]:
            b = name.replace("lora_A", "lora_B")
            found[name], found[b] = found[b].T, found[name].T
        return found

    held(turn)(folder)


def pattern_of(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Change:
    """Have AdaLoRA's ranks be others."""

    def write(folder: Path) -> None:
        config = json.loads((folder / CONFIG).read_text())
        said(rank_pattern=change(config["rank_pattern"]))(folder)

    return write


NOT_AS_TOLD: dict[str, tuple[str, Change, FailureReason, str]] = {
    "names it does not target": ("plain", said(target_modules=["q_proj", "v_proj"]), R.ADAPTER_CORRUPT,
        f"{LAST.replace('.1.', '.0.')}.lora_A.weight: adapter_config.json does not put an adapter on this module"),
    "a pattern for one layer": ("plain", said(target_modules=r".*\.0\..*_proj"), R.ADAPTER_CORRUPT,
        "layers.1.mlp.down_proj.lora_A.weight: adapter_config.json does not put"),
    "layers_to_transform": ("plain", said(layers_to_transform=[0]), R.ADAPTER_CORRUPT, "layers.1.mlp.down_proj"),
    "exclude_modules": ("plain", said(exclude_modules=["down_proj"]), R.ADAPTER_CORRUPT, "0.mlp.down_proj.lora_A"),
    "saved and targeted": ("plain", said(modules_to_save=["q_proj"]), R.ADAPTER_CORRUPT, f"{QUERY}.lora_A.weight: "),
    "half of a module": ("plain", without(f"{LAST}.lora_B"), R.ADAPTER_CORRUPT, "has only one of lora_A and lora_B"),
    "dora without its vectors": ("plain", said(use_dora=True), R.ADAPTER_CORRUPT,
        "has no base_model.model.model.layers.0.mlp.down_proj.lora_magnitude_vector, and adapter_config.json has "
        "use_dora"),
    "vectors without dora": ("dora", said(use_dora=False), R.ADAPTER_CORRUPT,
        "0.mlp.down_proj.lora_magnitude_vector: adapter_config.json says nothing of it (use_dora)"),
    "dora, a vector less": ("dora", without(f"{LAST}.lora_magnitude"), R.ADAPTER_CORRUPT,
        f"has no {LAST}.lora_magnitude_vector, and"),
    "lora_bias without biases": ("plain", said(lora_bias=True), R.ADAPTER_CORRUPT, "lora_B.bias, and adapter_config"),
    "biases without lora_bias": ("lora bias", said(lora_bias=False), R.ADAPTER_CORRUPT, "of it (lora_bias)"),
    "a norm that nobody names": ("plain", beside(base_model__model__model__norm__weight=(32,)), R.ADAPTER_CORRUPT,
        "base_model.model.model.norm.weight: adapter_config.json says nothing of it (modules_to_save)"),
    "a bias that nobody names": ("biases", said(bias="none"), R.ADAPTER_CORRUPT,
        "q_proj.base_layer.bias: adapter_config.json says nothing of it (bias)"),
    "nothing is saved": ("plain", said(modules_to_save=["norm"]), R.ADAPTER_CORRUPT,
        "has no tensor of modules_to_save in adapter_config.json (norm)"),
    "tokens that are not there": ("plain", said(trainable_token_indices=[1]), R.ADAPTER_CORRUPT,
        "has no trainable_tokens_delta, and adapter_config.json has trainable_token_indices"),
    "tokens that nobody names": ("tokens", said(trainable_token_indices=None), R.ADAPTER_CORRUPT,
        "trainable_tokens_delta: adapter_config.json says nothing of it (trainable_token_indices)"),
    "tokens of another number": ("tokens", said(trainable_token_indices=[3, 5, 7]), R.ADAPTER_CORRUPT,
        "trainable_tokens_delta has 2 rows, adapter_config.json names 3 tokens"),
    "what is no part": ("plain", beside(base_model__model__model__layers__0__mlp__up_proj__hada_w1_a=(4, 4)),
        R.ADAPTER_CORRUPT, "up_proj.hada_w1_a: adapter_config.json says nothing of it"),
    "scales beside factors": ("plain", beside(**{f"{QUERY}.ia3_l": (32, 1)}), R.ADAPTER_CORRUPT, "q_proj.ia3_l: "),
    "factors beside scales": ("ia3", beside(**{f"{LAST}.lora_A.weight": (4, 80), f"{LAST}.lora_B.weight": (32, 4)}),
        R.ADAPTER_CORRUPT, "down_proj.lora_A.weight: adapter_config.json says nothing of it (peft_type)"),
    "another rank": ("plain", said(r=8), R.ADAPTER_CORRUPT, "_proj has rank 4, adapter_config.json says 8"),
    "other ranks": ("plain", said(rank_pattern={"q_proj": 2}), R.ADAPTER_CORRUPT,
        "q_proj has rank 4, adapter_config.json says 2"),
    "adalora of another rank": ("adalora", pattern_of(lambda p: {n: [True] * 6 for n in p}), R.ADAPTER_CORRUPT,
        "adapter_config.json says 6"),
    "adalora of fewer modules": ("adalora", pattern_of(lambda p: dict(list(p.items())[1:])), R.ADAPTER_CORRUPT,
        "adapter_config.json says 6"),
    "adalora of other modules": ("adalora", pattern_of(lambda p: p | {"model.layers.9.q_proj.lora_E": [True] * 6}),
        R.ADAPTER_CORRUPT, "rank_pattern: 'model.layers.9.q_proj.lora_E' is none of its modules"),
}  # fmt: skip
"""Refused without a base, too."""

NOT_ON_THE_BASE: dict[str, tuple[str, Change, FailureReason, str]] = {
    "a layer less": ("plain", without("layers.1."), R.ADAPTER_CORRUPT,
        f"lacks {LAST}.lora_A.weight, and 5 more tensors that adapter_config.json has on this base"),
    "a layer less, for another task": ("for classes", without("layers.1."), R.ADAPTER_CORRUPT, f"lacks {LAST}.lora_A"),
    "a module less": ("plain", without(LAST), R.ADAPTER_CORRUPT, f"lacks {LAST}.lora_A.weight, and 1 more"),
    "a scale less": ("ia3", without(LAST), R.ADAPTER_CORRUPT, f"lacks {LAST}.ia3_l, which adapter_config.json has"),
    "more targets": ("plain", said(target_modules=[*TARGETS, "up_proj"]), R.ADAPTER_CORRUPT, "0.mlp.up_proj.lora_A"),
    "all linear": ("plain", said(target_modules="all-linear"), R.ADAPTER_CORRUPT, "0.mlp.gate_proj.lora_A.weight, and"),
    "biases of the whole model": ("biases", said(bias="all"), R.ADAPTER_CORRUPT, "k_proj.bias, and"),
    "saved, but not each": ("saved", without("model.norm", "layers.1.input"), R.ADAPTER_CORRUPT, "layernorm.weight"),
    "transposed": ("plain", transposed, R.BASE_MISMATCH, "0.mlp.down_proj.lora_A.weight is 4 x 32, the base's "
        "down_proj takes 80"),
    "tokens beyond it": ("tokens", said(trainable_token_indices=[3, 96]), R.BASE_MISMATCH, "trainable_token_"
        "indices: 96 is no row of the base's embed_tokens, which has 96"),
}  # fmt: skip

ODD: dict[str, tuple[dict[str, Any], str]] = {
    "no alpha": ({"lora_alpha": None}, "lora_alpha: "),
    "alpha in quotes": ({"lora_alpha": "16"}, "lora_alpha: Input should be a valid number"),
    "alpha is true": ({"lora_alpha": True}, "lora_alpha: Input should be a valid number"),
    "alpha is no number": ({"lora_alpha": float("nan")}, "lora_alpha: Input should be a finite number"),
    "alpha is infinite": ({"lora_alpha": float("inf")}, "lora_alpha: "),
    "alpha is huge": ({"lora_alpha": 1e300}, "lora_alpha: Input should be less than or equal to "),
    "alpha is longer than a float": ({"lora_alpha": 10**400}, "lora_alpha: "),
    "alphas in quotes": ({"alpha_pattern": {"q_proj": "4"}}, "alpha_pattern.q_proj: Input should be a valid number"),
    "alpha 0": ({"lora_alpha": 0}, "lora_alpha: is 0, and must be above 0: all that the adapter changes is multiplied"),
    "alpha below 0": ({"lora_alpha": -16}, "lora_alpha: is -16, and must be above 0"),
    "an alpha of one module is 0": ({"alpha_pattern": {"q_proj": 0.0}}, "alpha_pattern.q_proj: is 0.0, and must be"),
    "no rank": ({"r": None}, "r: "),
    "rank 0": ({"r": 0}, "r: Input should be greater than or equal to 1"),
    "rank below 0": ({"r": -4}, "r: Input should be greater than or equal to 1"),
    "rank is true": ({"r": True}, "r: Input should be a valid integer"),
    "rank is huge": ({"r": 10**30}, "r: "),
    "ranks are huge": ({"rank_pattern": {"q_proj": 10**12}}, "rank_pattern.q_proj: "),
    "ranks of AdaLoRA in LoRA": ({"rank_pattern": {"q_proj": [True, False]}}, "rank_pattern.q_proj: "),
    "a broken pattern": ({"target_modules": "(("}, "target_modules: '((' is no regular expression: "),
    "a broken exclusion": ({"exclude_modules": "(("}, "exclude_modules: '((' is no regular expression: "),
    "a broken module to save": ({"modules_to_save": ["(("]}, "modules_to_save: '((' is no regular expression: "),
    "a broken layers_pattern": ({"layers_pattern": "((", "layers_to_transform": [0]}, "layers_pattern: '((' is no"),
    "half a group": ({"rank_pattern": {"a)|(b": 4, "q)": 4}}, "rank_pattern: 'q)' is no regular expression: "),
    "a pattern for layers": ({"target_modules": ".*q_proj", "layers_to_transform": [0]}, "layers_to_transform"),
    "layers_pattern alone": ({"layers_pattern": "layers"}, "layers_pattern"),
    "an odd bias": ({"bias": "weird"}, "bias: Input should be 'none', 'all' or 'lora_only'"),
    "no bias": ({"bias": None}, "bias: Input should be 'none', 'all' or 'lora_only'"),
    "a small type": ({"peft_type": "lora"}, "peft_type: 'lora' is no method's name in PEFT, such as LORA"),
    "no type": ({"peft_type": ...}, "peft_type: Field required"),
    "an odd type": ({"peft_type": 7}, "peft_type: "),
    "an odd task": ({"task_type": "WHAT"}, "task_type: "),
    "odd dropout": ({"lora_dropout": "x"}, "lora_dropout: "),
    "odd tokens": ({"trainable_token_indices": 5}, "trainable_token_indices"),
    "odd tokens by name": ({"trainable_token_indices": {"embed_tokens": ["a"]}}, "trainable_token_indices"),
    "odd targets": ({"target_modules": [7]}, "target_modules"),
    "a set of targets": ({"target_modules": {"q_proj": 1}}, "target_modules"),
    "no targets": ({"target_modules": []}, "target_modules"),
    "odd rslora": ({"use_rslora": "yes"}, "use_rslora: Input should be a valid boolean"),
    "odd dora": ({"use_dora": 1}, "use_dora: Input should be a valid boolean"),
}  # fmt: skip


@pytest.mark.parametrize("case", list(NOT_AS_TOLD))
def test_tensors_are_those_of_the_configuration(tmp_path: Path, made: Path, case: str) -> None:
    """Whatever base it is for: each tensor is named, and each that is named is there."""
    name, change, reason, words = NOT_AS_TOLD[case]
    one = changed(made, name, tmp_path / "one", change)
    into = {"into": "Model", "model": {"uri": "file:///nowhere"}} if "dora" in case else {}
    error = refusal(merge_of(tmp_path, one, **into))
    assert (error.reason, words in error.message) == (reason, True), error.message
    assert error.message.startswith(f"spec.adapters[0] ({one.as_uri()}): ")
    assert reason is not R.ADAPTER_CORRUPT or error.remedies == AS_SAVED


@pytest.mark.parametrize(
    ("case", "into"),
    [*((case, "Adapter") for case in NOT_ON_THE_BASE), ("a layer less", "Model"), ("transposed", "Model")],
)
def test_they_are_those_that_peft_has_of_it_on_the_base(
    tmp_path: Path, made: Path, base: Path, case: str, into: str
) -> None:
    name, change, reason, words = NOT_ON_THE_BASE[case]
    one = changed(made, name, tmp_path / "one", change)
    error = refusal(merge_of(tmp_path, one, into=into, model={"uri": base.as_uri()}))
    assert (error.reason, words in error.message) == (reason, True), error.message
    assert error.message.startswith(f"spec.adapters[0] ({one.as_uri()}): ")
    assert reason is not R.ADAPTER_CORRUPT or error.remedies == AS_SAVED


def test_what_holds_no_number_needs_another_run(tmp_path: Path, made: Path) -> None:
    """Told once it is read, and saving it once more would not mend it."""
    one = changed(made, "plain", tmp_path / "one", held(diverged))
    with pytest.raises(TuneryError) as caught:
        run_merge(merge_of(tmp_path, one))
    error = caught.value
    assert error.reason is R.ADAPTER_CORRUPT
    assert error.message.startswith(f"spec.adapters[0] ({one.as_uri()}): tensor {QUERY}.lora_A.weight holds NaN")
    assert error.remedies[0] == DIVERGED_ELSEWHERE


def diverged(found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    found[f"{QUERY}.lora_A.weight"][0, 0] = float("nan")
    return found


@pytest.mark.parametrize("case", list(ODD))
def test_an_odd_configuration_is_told_by_its_field(tmp_path: Path, made: Path, case: str) -> None:
    changes, words = ODD[case]
    one = changed(made, "plain", tmp_path / "one", said(**changes))
    error = refusal(merge_of(tmp_path, one))
    assert error.reason is R.ADAPTER_CORRUPT, error
    assert error.message.startswith(f"spec.adapters[0]: {one.as_uri()}: adapter_config.json: {words}"), error.message


def test_megatrons_layers_are_not_peft_s(tmp_path: Path, made: Path) -> None:
    change = said(megatron_config={"a": 1}, megatron_core="evil_mod")
    error = refusal(merge_of(tmp_path, changed(made, "plain", tmp_path / "one", change)))
    assert (error.reason, "megatron_config is set, which cannot be merged" in error.message) == (R.INVALID_SPEC, True)


def test_factors_go_the_other_way_round_on_conv1d_only(tmp_path: Path, made: Path, base: Path) -> None:
    """Of ours, too: whatever compared them before."""
    adapter = open_adapter(LocalFiles(changed(made, "plain", tmp_path / "one", transposed)))
    with pytest.raises(TuneryError, match=r"down_proj\.lora_A\.weight is 4 x 32, the base's down_proj takes 80"):
        merge_into_base(open_checkpoint(LocalFiles(base)), adapter, tmp_path)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, "manifest.json"])
def test_a_pipe_is_no_file(tmp_path: Path, made: Path, name: str) -> None:
    """Nobody writes into it, and a read would never end."""
    one = shutil.copytree(made / "plain", tmp_path / "one")
    (one / name).unlink(missing_ok=True)
    os.mkfifo(one / name)
    error = refusal(merge_of(tmp_path, one))
    assert error.reason is R.INVALID_SPEC
    assert f"{(one / name).as_uri()} is a pipe, a socket or a device, and not a file" in error.message


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_link_out_of_its_folder_is_not_followed_within_a_claim(tmp_path: Path, made: Path, name: str) -> None:
    claim = shutil.copytree(made, tmp_path / "claim")
    (claim / "plain" / name).unlink()
    (claim / "plain" / name).symlink_to(f"../dora/{name}")
    run = merge_of(tmp_path, made / "plain")
    mounted = {"adapters": [ResolvedAdapter(uri="pvc://c/plain")], "volumes": {"adapter-0": str(claim)}}
    error = refusal(run.model_copy(update=mounted))
    assert (error.reason, f"pvc://c/plain/{name} leads out of its folder" in error.message) == (R.INVALID_SPEC, True)


SLOW = r"model\.layers(([\w.]+)+)+!"


@pytest.mark.parametrize(
    "changes",
    [
        {"target_modules": SLOW},
        {"exclude_modules": SLOW},
        {"rank_pattern": {SLOW: 4}},
        {"alpha_pattern": {SLOW: 4}},
        {"modules_to_save": [SLOW]},
        {"layers_pattern": SLOW, "layers_to_transform": [0]},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_pattern_that_does_not_come_to_an_end_is_told(
    tmp_path: Path, made: Path, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(name_patterns, "SECONDS", 0.3)
    error = refusal(merge_of(tmp_path, changed(made, "plain", tmp_path / "one", said(**changes))))
    assert error.reason is R.ADAPTER_CORRUPT
    assert f"adapter_config.json: {next(iter(changes))}: 'model" in error.message, error.message
    assert "takes too long on the names of modules" in error.message


def test_what_peft_fills_in_is_as_good_as_said(tmp_path: Path, made: Path) -> None:
    change = said(bias=..., lora_alpha=..., fan_in_fan_out=..., modules_to_save=..., trainable_token_indices=...)
    one = changed(made, "plain", tmp_path / "one", change)
    assert run_merge(merge_of(tmp_path, made / "plain", one)).adapter


TAKEN: dict[str, tuple[Tiny, PeftConfig]] = {
    "a pattern": (Tiny.LLAMA_TIED, lora(target_modules=r".*\.(q|v)_proj")),
    "all linear": (Tiny.LLAMA_UNTIED, lora(target_modules="all-linear", rank_pattern={"q_proj": 2})),
    "one layer": (Tiny.LLAMA_TIED, lora(layers_to_transform=1, layers_pattern="layers")),
    "some left out": (Tiny.LLAMA_TIED, lora(exclude_modules=r".*\.0\..*")),
    "dora": (Tiny.LLAMA_TIED, lora(use_dora=True, use_rslora=True)),
    "biases": (Tiny.LLAMA_TIED, lora(bias="all")),
    "biases of factors": (Tiny.LLAMA_TIED, lora(target_modules=["q_proj"], bias="lora_only", lora_bias=True)),
    "saved": (Tiny.LLAMA_UNTIED, lora(modules_to_save=["lm_head", "norm"])),
    "tokens": (Tiny.LLAMA_UNTIED, lora(trainable_token_indices=[3, 5])),
    "an embedding": (Tiny.LLAMA_UNTIED, lora(target_modules=["q_proj", "embed_tokens"])),
    "scales": (Tiny.LLAMA_TIED, IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])),
    "gpt2": (Tiny.GPT2, lora(target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)),
    "gpt2, all linear": (Tiny.GPT2, lora(target_modules="all-linear", fan_in_fan_out=True)),
}


def by_peft(base: Path, adapter: Path, target: Path) -> dict[str, torch.Tensor]:
    with_adapter(base, adapter).merge_and_unload().save_pretrained(target)
    return tensors(target)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: t for path in sorted(folder.glob("*.safetensors")) for name, t in load_file(path).items()}


def compare(tmp_path: Path, base: Path, adapter: Path) -> None:
    run_merge(merge_of(tmp_path, adapter, into="Model", model={"uri": base.as_uri()}))
    ours, theirs = tensors(tmp_path / "out"), by_peft(base, adapter, tmp_path / "theirs")
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert any(not torch.equal(ours[name], tensor) for name, tensor in tensors(base).items())


@pytest.mark.parametrize("case", list(TAKEN))
def test_what_peft_saves_is_merged_bit_for_bit_as_peft_does(tmp_path: Path, bases: dict[Tiny, Path], case: str) -> None:
    kind, config = TAKEN[case]
    compare(tmp_path, bases[kind], trained_adapter(bases[kind], config, tmp_path / "adapter", seed=5))


def test_on_a_base_that_transformers_does_not_know_names_and_shapes_count(
    tmp_path: Path, made: Path, base: Path
) -> None:
    """PEFT cannot be asked there."""
    unknown = shutil.copytree(base, tmp_path / "base")
    config = json.loads((unknown / "config.json").read_text()) | {"model_type": "of_tomorrow"}
    (unknown / "config.json").write_text(json.dumps(config))
    model = {"model": {"uri": unknown.as_uri()}}
    assert run_merge(merge_of(tmp_path, made / "plain", **model)).adapter
    shutil.rmtree(tmp_path / "out")
    error = refusal(merge_of(tmp_path, changed(made, "plain", tmp_path / "one", transposed), **model))
    assert error.reason is R.BASE_MISMATCH


def test_an_embedding_that_peft_saved_beside_it_is_taken_as_peft_does(
    tmp_path: Path, made: Path, bases: dict[Tiny, Path]
) -> None:
    """save_embedding_layers=True writes it, of which no field tells."""
    base = bases[Tiny.LLAMA_UNTIED]
    change = beside(base_model__model__model__embed_tokens__weight=(96, 32))
    compare(tmp_path, base, changed(made, "plain", tmp_path / "one", change))


def test_adalora_is_taken_with_the_ranks_that_it_was_left_with(tmp_path: Path, made: Path, base: Path) -> None:
    """PEFT writes them as lists of booleans, by singular value."""
    ranks = {
        name: sum(kept) for name, kept in json.loads((made / "adalora" / CONFIG).read_text())["rank_pattern"].items()
    }
    assert 0 in ranks.values() or len(set(ranks.values())) > 1, ranks
    compare(tmp_path, base, made / "adalora")
    shutil.rmtree(tmp_path / "out")
    assert run_merge(merge_of(tmp_path, made / "adalora", made / "plain", model={"uri": base.as_uri()})).adapter
