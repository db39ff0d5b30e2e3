"""Adapters for engines, good and bad ones, each made of a base when it is first asked for."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import IA3Config, LoraConfig
from safetensors.torch import load_file, save_file

from kit.adapters import trained_adapter

BASE = "org/base"
MAX_LORAS, MAX_HELD, MAX_RANK = 2, 4, 8
"""Slots, adapters held and rank of the engines that are tested."""
LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
Tensors = dict[str, torch.Tensor]
EDITS: dict[str, Callable[[Tensors], Tensors]] = {
    "zero": lambda all_: {key: value * (0.0 if "lora_B" in key else 1.0) for key, value in all_.items()},
    "nan": lambda all_: {key: value * (float("nan") if "lora_B" in key else 1.0) for key, value in all_.items()},
    "wide": lambda all_: {key: value.repeat(*((1, 2) if "lora_A" in key else (2, 1))) for key, value in all_.items()},
    "deep": lambda all_: all_ | {key.replace("layers.0", "layers.7"): value.clone() for key, value in all_.items()},
    "foreign": lambda all_: {key.replace("q_proj", "c_attn"): value for key, value in all_.items()},
}
"""What is done to the weights of the adapter `one`."""


@dataclass
class Shelf:
    """Adapters by name, each written when it is first asked for."""

    base: Path
    folder: Path
    written: dict[str, Path] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Path:
        if name not in self.written:
            self.written[name] = self._edited(name) if name in EDITS else self._trained(name)
        return self.written[name]

    def fresh(self, name: str) -> Path:
        """Return a copy of an adapter in a folder of its own."""
        return shutil.copytree(self[name], Path(tempfile.mkdtemp(dir=self.folder)) / name)

    def _trained(self, name: str) -> Path:
        kinds: dict[str, Any] = {
            "patterns": {"target_modules": ["q_proj", "up_proj"], "use_rslora": True, "rank_pattern": {"up_proj": 2}},
            "rank16": {"r": 16},
            "dora": {"use_dora": True},
            "saved": {"modules_to_save": ["lm_head"]},
        }
        config: Any = LoraConfig(
            **({"r": 4, "lora_alpha": 8, "target_modules": LAYERS, "task_type": "CAUSAL_LM"} | kinds.get(name, {}))
        )
        if name == "ia3":
            config = IA3Config(target_modules=["k_proj"], feedforward_modules=[], task_type="CAUSAL_LM")
        return trained_adapter(self.base, config, self.folder / name, seed=sum(name.encode()))

    def _edited(self, name: str) -> Path:
        folder = self.fresh("one")
        file = folder / "adapter_model.safetensors"
        save_file(EDITS[name](load_file(file)), file, metadata={"format": "pt"})
        return folder
