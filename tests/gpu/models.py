"""Models of real shapes with random weights, which are made when the loader asks for them: no disk, no download.

What is loaded is loaded by the trainer's `load_base`, and quantised by transformers and bitsandbytes, matrix by matrix:
a 70B in 4 bits never stands in 16 bits anywhere.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from tunery_trainer.model.load import load_base
from tunery_trainer.settings.types import RunSettings

from gpu.verdicts import Machine
from tools.cluster.tiny import make_tokenizer

NO_TENSORS: Final = len(b"{}").to_bytes(8, "little") + b"{}"
"""A safetensors file with a header, and nothing else."""
_LLAMA: Final = {
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rope_theta": 500000.0,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SHAPES: Final[dict[str, dict[str, Any]]] = {
    "1B": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "tie_word_embeddings": True,
    },
    "8B": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "tie_word_embeddings": False,
    },
    "70B": {
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "tie_word_embeddings": False,
    },
}
"""Llama 3.2's 1B, Llama 3.1's 8B and 70B."""
TINY: Final[dict[str, Any]] = {
    "vocab_size": 512,
    "max_position_embeddings": 1024,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}


def write_model(machine: Machine, shape: str, name: str = "", **changes: Any) -> Path:
    """Write configuration and tokenizer of a shape, and no weights; in a dry run all shapes are tiny.

    `name` tells one that has `changes` from the plain one.
    """
    folder = machine.folder / f"model-{shape}{name}"
    if not folder.exists():
        sizes = _LLAMA | (TINY if machine.dry else SHAPES[shape]) | changes
        AutoConfig.for_model("llama", **sizes).save_pretrained(folder)
        make_tokenizer().save_pretrained(folder)
        # The trainer looks at the header of its weights before it loads them: it is whole, and has no tensor.
        (folder / "model.safetensors").write_bytes(NO_TENSORS)
    return folder


def load(folder: Path, resolved: RunSettings, device: str, trained_on: str | None = None) -> PreTrainedModel:
    """Return what the trainer's `load_base` makes of a folder of `write_model`; the same weights each time."""
    with patch.object(AutoModelForCausalLM, "from_pretrained", _random):
        return load_base(folder, resolved, device, trained_on)


def _random(folder: str, *, config: Any, dtype: torch.dtype, device_map: dict[str, str], **options: Any) -> Any:
    return random_model(config, device_map[""], dtype, options)


def random_model(config: Any, device: str, dtype: torch.dtype, options: dict[str, Any]) -> Any:
    """Return a model by transformers' own loader; `options` are those of `from_pretrained`."""
    own_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    weights = random_weights(config, device, dtype)
    return own_class.from_pretrained(
        None, config=config, dtype=dtype, device_map={"": device}, state_dict=weights, **options
    )


def random_weights(config: Any, device: str, dtype: torch.dtype) -> dict[str, Any]:
    """Return a state dict of weights that are made when they are looked at."""
    with torch.device("meta"):
        state = AutoModelForCausalLM.from_config(config).state_dict()
    tied = config.get_text_config().tie_word_embeddings
    names = [name for name in state if not (tied and name == "lm_head.weight")]
    return {name: RandomWeight(name, tuple(state[name].shape), torch.device(device), dtype) for name in names}


class RandomWeight:
    """Stands where the loader expects a slice of a safetensors file, which it reads when its turn has come.

    Norms are ones; what a matrix makes of numbers of size 1 is of size 1, so that every layer changes the logits.
    """

    def __init__(self, name: str, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> None:
        self._name, self._shape, self._device, self._dtype = name, shape, device, dtype

    def __getitem__(self, _: Any) -> torch.Tensor:
        """Return the whole tensor."""
        if len(self._shape) < 2:
            return torch.ones(self._shape, device=self._device, dtype=self._dtype)
        draw = torch.Generator(device=self._device).manual_seed(zlib.crc32(self._name.encode()))
        made = torch.randn(self._shape, generator=draw, device=self._device, dtype=self._dtype)
        return made.mul_(self._shape[-1] ** -0.5)
