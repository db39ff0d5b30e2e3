"""Small adapters, written by hand or as PEFT saves them, and what they change: in float64, and in logits."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from kit.tiny_models import MERGED_VOCABULARY, load

TOKENS = torch.arange(2 * 12).view(2, 12) * 7 % MERGED_VOCABULARY
"""Fixed input: 2 rows of 12 tokens."""
BASE = "org/base"
Factors = tuple[torch.Tensor, torch.Tensor]
"""A (rank × in) and B (out × rank)."""


def factors(rank: int, out: int, width: int, seed: int, *, dtype: torch.dtype = torch.float32) -> Factors:
    """Draw random factors."""
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(rank, width, generator=generator) / math.sqrt(width)
    b = torch.randn(out, rank, generator=generator) / math.sqrt(rank)
    return a.to(dtype), b.to(dtype)


def write_adapter(
    folder: Path,
    modules: Mapping[str, Factors],
    extra: Mapping[str, torch.Tensor] | None = None,
    **config: Any,
) -> Path:
    """Write a LoRA adapter in PEFT's format; `extra` are tensors by full key, `config` overrides fields."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = dict(extra or {})
    for name, (a, b) in modules.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = a.contiguous()
        tensors[f"base_model.model.{name}.lora_B.weight"] = b.contiguous()
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    rank = next((a.shape[0] for a, _ in modules.values()), 8)
    fields: dict[str, Any] = {
        "peft_type": "LORA",
        "base_model_name_or_path": BASE,
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": sorted({name.rsplit(".", 1)[-1] for name in modules}),
        **config,
    }
    (folder / "adapter_config.json").write_text(json.dumps(fields))
    return folder


def deltas64(folder: Path) -> dict[str, torch.Tensor]:
    """Return scaling·B·A in float64 by module, straight from the definitions of LoRA and rsLoRA."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    ends = (".lora_A.weight", ".lora_embedding_A")
    result = {}
    for key, a in tensors.items():
        end = next((end for end in ends if key.endswith(end)), None)
        if end is None:
            continue
        name = key.removeprefix("base_model.model.").removesuffix(end)
        b = tensors[key.replace("lora_A", "lora_B").replace("lora_embedding_A", "lora_embedding_B")]
        rank = config.get("rank_pattern", {}).get(name, config["r"])
        alpha = config.get("alpha_pattern", {}).get(name, config["lora_alpha"])
        scaling = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
        assert a.shape[0] == rank
        result[name] = b.double() @ a.double() * scaling
    return result


def relative(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Return |actual - expected| / |expected| (Frobenius), in float64."""
    scale = float(expected.double().norm())
    distance = float((actual.double() - expected.double()).norm())
    return distance / scale if scale else distance


def distance(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> float:
    """Return the largest difference of a weight."""
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def trained_adapter(base: Path, config: Any, folder: Path, *, seed: int, grow_by: int = 0, **arguments: Any) -> Path:
    """Save an adapter whose every trainable weight was moved, as training would."""
    torch.manual_seed(seed)
    model = load(base, **arguments)
    if grow_by:
        model.resize_token_embeddings(model.config.vocab_size + grow_by)
    peft = get_peft_model(model, config)
    with torch.no_grad():
        for parameter in peft.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    peft.save_pretrained(folder)
    return folder


def with_adapter(base: Path, adapter: Path, **arguments: Any) -> PeftModel:
    """Load a base and an adapter, the plain way."""
    return PeftModel.from_pretrained(load(base, **arguments), adapter).eval()


@torch.no_grad()
def logits_of(model: Any) -> torch.Tensor:
    """Return the logits of the fixed input in float32."""
    result: torch.Tensor = model(input_ids=TOKENS).logits
    return result.float()


def logits(base: Path, adapter: Path | None = None, **arguments: Any) -> torch.Tensor:
    """Return the logits of a base, or of a base with an adapter."""
    return logits_of(with_adapter(base, adapter, **arguments) if adapter else load(base, **arguments))
