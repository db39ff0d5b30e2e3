"""An adapter's folder: its config, and which tensors make up the change of which module."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

import torch

from tunery_api.manifest import CONFIG_FILE, WEIGHTS_FILE
from tunery_api.reasons import FailureReason
from tunery_api.remedies import recreate, retry
from tunery_common.errors import TuneryError
from tunery_common.inputs.misfit import DIVERGED, DIVERGED_ELSEWHERE, PREFIX, no_such_rank
from tunery_common.inputs.name_patterns import broken_pattern, slow_pattern
from tunery_trainer.merging.files import CHUNK, Files, read_json
from tunery_trainer.merging.safetensors_stream import TensorInfo, read_header, read_tensor

ADALORA_EPSILON: Final = 1e-5
"""PEFT divides AdaLoRA's scaling by the rank plus this much."""

AS_SAVED: Final = (
    retry("Upload both files of one adapter as PEFT's save_pretrained wrote them"),
    retry(f"If you removed or added tensors, change {CONFIG_FILE} accordingly"),
)
"""The remedies where the files of an adapter made elsewhere do not go together."""
_ANOTHER: Final = recreate("Name another adapter", "adapters")
_PART: Final = re.compile(
    r"^(?P<module>.+?)\.(?P<part>lora_A|lora_B|lora_E|lora_embedding_A|lora_embedding_B|lora_magnitude_vector|ia3_l"
    r"|token_adapter\.trainable_tokens_delta|trainable_tokens_delta)(?P<leaf>\.weight|\.bias)?$"
)


@dataclass(frozen=True, slots=True)
class Module:
    """The tensors that change one module, by their part: lora_A, lora_B, lora_B.bias, ia3_l and so on."""

    name: str
    """The module's name in the base model, without PEFT's prefix."""
    keys: dict[str, str]
    """Part to the key in the file."""

    @property
    def embedding(self) -> bool:
        """True for a LoRA on an embedding, whose tensors bear other names."""
        return "lora_embedding_A" in self.keys

    @property
    def factors(self) -> tuple[str, str] | None:
        """The keys of A and B; None where the module has no low-rank change."""
        a, b = ("lora_embedding_A", "lora_embedding_B") if self.embedding else ("lora_A", "lora_B")
        return (self.keys[a], self.keys[b]) if a in self.keys and b in self.keys else None


@dataclass(frozen=True)
class Adapter:
    """An adapter whose config and header were read; its tensors are read when they are asked for."""

    files: Files
    config: dict[str, Any]
    tensors: dict[str, TensorInfo]
    sha256: str
    """Digest of the weights file."""
    weight: float = 1.0
    """Factor of this adapter's delta."""
    unverified: bool = False
    """It was made elsewhere: it has no manifest that it could match, and is mended another way."""
    modules: dict[str, Module] = field(default_factory=dict)
    """By name: what LoRA, AdaLoRA, IA3 or trainable tokens change."""
    full: dict[str, str] = field(default_factory=dict)
    """The base model's tensor name to the key here: modulesToSave, resized embeddings, trained biases."""

    @property
    def label(self) -> str:
        """Names the adapter in messages."""
        return self.files.label

    @property
    def peft_type(self) -> str:
        """PEFT's name of the method: LORA, ADALORA, IA3, ..."""
        return str(self.config.get("peft_type", "")).upper()

    def read(self, key: str) -> torch.Tensor:
        """Return a tensor as stored. Raises TuneryError(AdapterCorrupt) where it is not finite."""
        tensor = read_tensor(self.files, self.tensors[key])
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise self.diverged(key)
        return tensor

    def corrupt(self, what: str) -> TuneryError:
        """An error that names this adapter."""
        remedies = AS_SAVED if self.unverified else ()
        return TuneryError(FailureReason.ADAPTER_CORRUPT, f"{self.label}: {what}", *remedies)

    def diverged(self, key: str) -> TuneryError:
        """An error that names this adapter and a tensor that holds no numbers."""
        again = DIVERGED_ELSEWHERE if self.unverified else DIVERGED
        message = f"{self.label}: tensor {key} holds NaN or infinite values"
        return TuneryError(FailureReason.ADAPTER_CORRUPT, message, again, _ANOTHER)

    def rank(self, module: Module) -> int:
        """The rank of a module, as its factors have it."""
        keys = module.factors
        return self.tensors[keys[0]].shape[0] if keys else 0

    @property
    def max_rank(self) -> int:
        """The largest rank of a module; 0 for IA3."""
        return max((self.rank(module) for module in self.modules.values()), default=0)

    def outer_shape(self, module: Module) -> tuple[int, ...]:
        """The shape of what a module's tensors change, out × in for LoRA: without the rank.

        For IA3 the shape of the scale, for trained tokens that of one row.
        """
        if module.factors:
            a, b = (self.tensors[key].shape for key in module.factors)
            return (b[0], a[1])
        if "ia3_l" in module.keys:
            return self.tensors[module.keys["ia3_l"]].shape
        return (1, *self.tensors[module.keys["trainable_tokens_delta"]].shape[1:])

    def scaling(self, module: Module) -> float:
        """The factor of B·A: alpha / rank, alpha / sqrt(rank) for rsLoRA, AdaLoRA's own for AdaLoRA."""
        rank = self.rank(module)
        alpha = float(self.config.get("lora_alpha", 8))
        if self.peft_type == "ADALORA":
            # By the rank that training began with, whatever was pruned since; it knows no patterns.
            return (alpha if alpha > 0 else float(rank)) / (float(self.config.get("init_r", 12)) + ADALORA_EPSILON)
        alpha = float(_by_pattern(self.config.get("alpha_pattern"), module.name, alpha))
        return alpha / math.sqrt(rank) if self.config.get("use_rslora") else alpha / rank

    def a(self, module: Module) -> torch.Tensor:
        """A in float32, rank × in; AdaLoRA's singular values are folded into it."""
        a = self.read(self._factor_keys(module)[0]).float()
        return a * self.read(module.keys["lora_E"]).float() if "lora_E" in module.keys else a

    def b(self, module: Module) -> torch.Tensor:
        """B in float32, out × rank, not scaled."""
        return self.read(self._factor_keys(module)[1]).float()

    def _factor_keys(self, module: Module) -> tuple[str, str]:
        keys = module.factors
        if keys is None:
            raise self.corrupt(f"{module.name} has only one of lora_A and lora_B")
        return keys


def open_adapter(files: Files, weight: float = 1.0, *, unverified: bool = False) -> Adapter:
    """Read the config and the header of an adapter, which is `unverified` where it was made elsewhere.

    Raises TuneryError: AdapterMissing when a file is missing, AdapterCorrupt when one is cut or unreadable, or
    when the tensors do not fit the config.
    """
    sizes = files.sizes()
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if name not in sizes:
            raise TuneryError(FailureReason.ADAPTER_MISSING, f"{files.label} has no {name}")
    config = read_json(files, CONFIG_FILE)
    tensors = read_header(files, WEIGHTS_FILE)
    modules, full = _sort_keys(tensors)
    adapter = Adapter(files, config, tensors, _digest(files, sizes[WEIGHTS_FILE]), weight, unverified, modules, full)
    odd = broken_pattern(config) or slow_pattern(config, modules)
    if odd is not None:
        raise adapter.corrupt(f"{CONFIG_FILE}: {odd}")
    for module in modules.values():
        _check_shapes(adapter, module)
    return adapter


def _digest(files: Files, size: int) -> str:
    sha = hashlib.sha256()
    for start in range(0, size, CHUNK):
        sha.update(files.read(WEIGHTS_FILE, start, min(CHUNK, size - start)))
    return sha.hexdigest()


def _sort_keys(tensors: Iterable[str]) -> tuple[dict[str, Module], dict[str, str]]:
    """Tell the low-rank parts from whole tensors that replace the base model's."""
    modules: dict[str, Module] = {}
    full: dict[str, str] = {}
    for key in tensors:
        name = key.removeprefix(PREFIX)
        match = _PART.match(name)
        if match is None:
            full[name.replace(".base_layer.", ".").replace(".modules_to_save.", ".")] = key
            continue
        module = modules.setdefault(match["module"], Module(match["module"], {}))
        part = match["part"].removeprefix("token_adapter.")
        module.keys[f"{part}.bias" if match["leaf"] == ".bias" else part] = key
    return modules, full


def _by_pattern(pattern: object, module: str, default: Any) -> Any:
    """Look a module up in a rank or alpha pattern, by PEFT's rule: a key matches a whole tail of the name."""
    for key, value in (pattern if isinstance(pattern, dict) else {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return default


def _check_shapes(adapter: Adapter, module: Module) -> None:
    """The factors must be matrices of one rank: the one that the config promises."""
    keys = module.factors
    if keys is None:
        if any(part.startswith("lora_") for part in module.keys):
            raise adapter.corrupt(f"{module.name} has only one of lora_A and lora_B")
        return
    a, b = (adapter.tensors[key].shape for key in keys)
    if len(a) != 2 or len(b) != 2:
        raise TuneryError(
            FailureReason.INVALID_SPEC,
            f"{adapter.label}: {module.name} is a convolution, which cannot be merged",
            _ANOTHER,
        )
    if a[0] != b[1]:
        raise adapter.corrupt(f"{module.name}: lora_A has rank {a[0]}, lora_B has rank {b[1]}")
    if adapter.peft_type == "LORA":
        promised = _by_pattern(adapter.config.get("rank_pattern"), module.name, adapter.config.get("r", 8))
        if promised != a[0]:
            raise adapter.corrupt(no_such_rank(module.name, a[0], promised))
