"""Adapters into one adapter: identity, exactness, and that plain PEFT computes what was promised."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, IA3Config, LoraConfig
from safetensors.torch import load_file

from tunery_api.adaptermerge import MergeMethod
from tunery_common.errors import TuneryError
from tunery_trainer.merging.adapter_files import Adapter, open_adapter
from tunery_trainer.merging.combine import Combined, combine
from tunery_trainer.merging.deltas import Options
from tunery_trainer.merging.files import LocalFiles

from kit.adapters import deltas64, factors, logits, relative, trained_adapter, with_adapter, write_adapter
from kit.tiny_models import Tiny, save_tiny

Q, V, MLP = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj", "model.layers.0.mlp.up_proj"


def opened(folder: Path, weight: float = 1.0) -> Adapter:
    return open_adapter(LocalFiles(folder), weight)


def merge(
    target: Path,
    *inputs: tuple[Path, float],
    method: MergeMethod = MergeMethod.LINEAR,
    options: Options | None = None,
    dtype: torch.dtype = torch.float32,
) -> Combined:
    adapters = [opened(folder, weight) for folder, weight in inputs]
    target.mkdir(parents=True, exist_ok=True)
    return combine(adapters, method, options or Options(), target, dtype)


@pytest.mark.parametrize(
    ("rank_of_v", "config"),
    [
        (8, {}),
        (8, {"use_rslora": True, "lora_alpha": 12}),
        (4, {"rank_pattern": {V: 4}, "alpha_pattern": {V: 3}}),
        (4, {"rank_pattern": {V: 4}, "alpha_pattern": {V: 3}, "use_rslora": True}),
    ],
    ids=["plain", "rslora", "patterns", "patterns and rslora"],
)
@pytest.mark.parametrize("options", [Options(), Options(rank=8)], ids=["exact", "rank 8"])
@pytest.mark.parametrize("method", [MergeMethod.LINEAR, MergeMethod.TIES])
def test_one_adapter_alone_equals_itself(
    tmp_path: Path, method: MergeMethod, options: Options, rank_of_v: int, config: dict[str, Any]
) -> None:
    modules = {Q: factors(8, 48, 32, 1), V: factors(rank_of_v, 16, 32, 2)}
    source = write_adapter(tmp_path / "in", modules, **config)
    whole = Options(1, rank=options.rank)  # type: ignore[arg-type]
    merged = merge(tmp_path / "out", (source, 1.0), method=method, options=whole)
    before, after = deltas64(source), deltas64(tmp_path / "out")
    assert {name: relative(after[name], before[name]) <= 1e-6 for name in before} == dict.fromkeys(before, True)
    assert merged.max_error <= 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_one_16_bit_adapter_keeps_its_very_bits(tmp_path: Path, dtype: torch.dtype) -> None:
    source = write_adapter(tmp_path / "in", {Q: factors(8, 48, 32, 1, dtype=dtype)}, use_rslora=True)
    merge(tmp_path / "out", (source, 1.0), dtype=dtype)
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (source, tmp_path / "out"))
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_linear_is_the_sum_of_the_true_deltas(tmp_path: Path) -> None:
    one = write_adapter(tmp_path / "1", {Q: factors(8, 48, 32, 1), V: factors(8, 16, 32, 2)})
    two = write_adapter(tmp_path / "2", {Q: factors(4, 48, 32, 3), MLP: factors(4, 64, 32, 4)}, use_rslora=True)
    merged = merge(tmp_path / "out", (one, 0.7), (two, -0.3))
    first, second, result = deltas64(one), deltas64(two), deltas64(tmp_path / "out")
    assert relative(result[Q], 0.7 * first[Q] - 0.3 * second[Q]) <= 1e-6
    assert relative(result[V], 0.7 * first[V]) <= 1e-6
    assert relative(result[MLP], -0.3 * second[MLP]) <= 1e-6
    assert merged.rank == 12
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert sorted(config["target_modules"]) == sorted([Q, V, MLP])


@pytest.mark.parametrize("method", [MergeMethod.LINEAR, MergeMethod.MAGNITUDE_PRUNE])
def test_a_merge_that_is_nothing_is_refused(tmp_path: Path, method: MergeMethod) -> None:
    source = write_adapter(tmp_path / "in", {Q: factors(8, 48, 32, 1)})
    with pytest.raises(TuneryError, match=r"spec\.adapters: what is merged is zero everywhere"):
        merge(tmp_path / "out", (source, 0.0), (source, 0.0), method=method)


def test_a_merge_that_cancels_is_refused(tmp_path: Path) -> None:
    source = write_adapter(tmp_path / "in", {Q: factors(8, 48, 32, 1)})
    other = write_adapter(tmp_path / "other", {Q: factors(8, 48, 32, 2)})
    with pytest.raises(TuneryError, match=r"spec\.adapters: what is merged is zero everywhere"):
        merge(tmp_path / "out", (source, 1.0), (source, -1.0))
    merge(tmp_path / "little", (source, 1.0), (source, -0.9999))
    merge(tmp_path / "both", (source, 1.0), (source, -1.0), (other, 0.001))


def test_weights_and_ranks_reach_the_config_where_modules_differ(tmp_path: Path) -> None:
    names = [f"model.layers.{i}.self_attn.q_proj" for i in range(3)]
    one = write_adapter(tmp_path / "1", {name: factors(4, 16, 16, i) for i, name in enumerate(names)})
    two = write_adapter(tmp_path / "2", {names[0]: factors(2, 16, 16, 9)})
    merge(tmp_path / "out", (one, 1.0), (two, 1.0))
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"] / config["r"]) == (4, 2.0)
    assert (config["rank_pattern"], config["alpha_pattern"]) == ({names[0]: 6}, {names[0]: 6})


KINDS: dict[str, Callable[[], Any]] = {
    "plain": lambda: LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"]),
    "rslora": lambda: LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj", "v_proj"], use_rslora=True),
    "patterns": lambda: LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules="all-linear",
        rank_pattern={"q_proj": 2, "layers.1.mlp.up_proj": 6},
        alpha_pattern={"v_proj": 3},
        use_rslora=True,
    ),
    "bias": lambda: LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], lora_bias=True),
    "embedding": lambda: LoraConfig(r=4, lora_alpha=8, target_modules=["embed_tokens", "q_proj"]),
    "modules to save": lambda: LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head", "norm"]),
    "trained bias": lambda: LoraConfig(r=4, target_modules=["q_proj", "v_proj"], bias="lora_only"),
    "tokens": lambda: LoraConfig(r=4, target_modules=["q_proj"], trainable_token_indices=[1, 5, 7]),
    "adalora": lambda: AdaLoraConfig(
        init_r=6, target_r=4, lora_alpha=8, total_step=10, target_modules=["q_proj", "v_proj"]
    ),
    "ia3": lambda: IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]),
}
"""Every kind of adapter that can be merged, as PEFT itself makes and saves it."""


@pytest.mark.parametrize("kind", list(KINDS))
def test_plain_peft_computes_the_same_with_one_adapter_merged_alone(tmp_path: Path, kind: str) -> None:
    base = save_tiny(tmp_path / "base", Tiny.LLAMA_UNTIED)
    source = trained_adapter(base, KINDS[kind](), tmp_path / "in", seed=1)
    merge(tmp_path / "out", (source, 1.0))
    expected, actual = logits(base, source), logits(base, tmp_path / "out")
    assert float((expected - logits(base)).abs().max()) > 1e-2, "the adapter changes nothing"
    assert relative(actual, expected) <= 1e-6


@pytest.mark.parametrize("kind", ["modules to save", "trained bias", "tokens"])
def test_whole_tensors_become_their_weighted_mean(tmp_path: Path, kind: str) -> None:
    base = save_tiny(tmp_path / "base", Tiny.LLAMA_UNTIED)
    folders = [trained_adapter(base, KINDS[kind](), tmp_path / str(seed), seed=seed) for seed in (1, 2)]
    merge(tmp_path / "out", (folders[0], 3.0), (folders[1], 1.0))
    one, two, out = (load_file(f / "adapter_model.safetensors") for f in (*folders, tmp_path / "out"))
    whole = [key for key in one if "lora_" not in key]
    assert whole
    for key in whole:
        assert relative(out[key], 0.75 * one[key].double() + 0.25 * two[key].double()) <= 1e-6
    assert logits(base, tmp_path / "out").isfinite().all()


def test_ia3_scales_add_up_from_one(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", Tiny.LLAMA_UNTIED)
    folders = [trained_adapter(base, KINDS["ia3"](), tmp_path / str(seed), seed=seed) for seed in (1, 2)]
    merge(tmp_path / "out", (folders[0], 0.5), (folders[1], 2.0))
    one, two, out = (load_file(f / "adapter_model.safetensors") for f in (*folders, tmp_path / "out"))
    for key in one:
        assert relative(out[key], 1 + 0.5 * (one[key].double() - 1) + 2.0 * (two[key].double() - 1)) <= 1e-6


def test_lora_and_adalora_merge_into_one_lora(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", Tiny.LLAMA_UNTIED)
    plain = trained_adapter(base, KINDS["rslora"](), tmp_path / "1", seed=1)
    ada = trained_adapter(base, KINDS["adalora"](), tmp_path / "2", seed=2)
    merge(tmp_path / "out", (plain, 0.5), (ada, 0.5))
    changed = [layer_deltas(base, folder) for folder in (plain, ada, tmp_path / "out")]
    for name, merged in changed[2].items():
        assert relative(merged, 0.5 * changed[0][name] + 0.5 * changed[1][name]) <= 1e-6


def test_a_pruned_adalora_adapter_counts_as_much_as_in_peft(tmp_path: Path) -> None:
    """PEFT goes on dividing by the rank that it began with; so older releases published it."""
    base = save_tiny(tmp_path / "base", Tiny.LLAMA_UNTIED)
    kept = {
        f"model.layers.{i}.self_attn.{n}_proj.lora_E.default": [True] * (2 + i) + [False] * 4
        for i in (0, 1)
        for n in "qv"
    }
    kept = {name: (ranks + [False] * 6)[:6] for name, ranks in kept.items()}
    config = KINDS["adalora"]()
    config.rank_pattern = kept
    source = trained_adapter(base, config, tmp_path / "in", seed=2)
    assert open_adapter(LocalFiles(source)).max_rank == 3
    merge(tmp_path / "out", (source, 1.0))
    one, out = layer_deltas(base, source), layer_deltas(base, tmp_path / "out")
    assert {name: relative(out[name], one[name]) <= 1e-6 for name in one} == dict.fromkeys(one, True)


def layer_deltas(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    """What PEFT adds to each module."""
    modules = with_adapter(base, adapter).named_modules()
    return {n: m.get_delta_weight("default").double() for n, m in modules if hasattr(m, "get_delta_weight")}


def test_a_module_that_only_some_adapters_replace_is_refused_by_name(tmp_path: Path) -> None:
    one = write_adapter(
        tmp_path / "one", {Q: factors(4, 16, 16, 1)}, {"base_model.model.lm_head.weight": torch.ones(4, 4)}
    )
    two = write_adapter(tmp_path / "two", {Q: factors(4, 16, 16, 2)})
    with pytest.raises(TuneryError, match=r"two: has no lm_head\.weight") as caught:
        merge(tmp_path / "out", (one, 0.5), (two, 0.5))
    assert caught.value.reason == "InvalidSpec"
    assert not list((tmp_path / "out").iterdir())


def test_shapes_that_differ_are_refused_with_both_names(tmp_path: Path) -> None:
    one = write_adapter(tmp_path / "one", {Q: factors(4, 16, 16, 1)})
    two = write_adapter(tmp_path / "two", {Q: factors(4, 24, 16, 2)})
    with pytest.raises(TuneryError, match=r"q_proj has shape \(16, 16\) in one and \(24, 16\) in two"):
        merge(tmp_path / "out", (one, 0.5), (two, 0.5))
