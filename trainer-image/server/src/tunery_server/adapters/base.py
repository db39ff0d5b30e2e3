"""The base model as far as adapters must fit it: its config and the shapes of its weights, read once."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from tunery_common.inputs.headers import BadHeader, Tensor, read_header

CONFIG: Final = "config.json"
RECORD: Final = ".tunery-base.json"
"""What the init container knows of the model: its commit, or the digest of its files."""
_FLOATS: Final = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"})
_WRAPPERS: Final = frozenset({"model", "language_model", "transformer", "text_model", "base_model", "backbone"})
"""Parts that classes put before the same modules, and that differ between a model's files and its classes."""
_NUMBER: Final = re.compile(r"(?<=\.)\d+(?=\.|$)|^\d+(?=\.)")
_CONV1D: Final = frozenset({"gpt2", "openai-gpt", "imagegpt", "ctrl", "decision_transformer"})
_AS_IN_FILES: Final = frozenset(
    {
        "bloom", "cohere", "cohere2", "falcon", "gemma", "gemma2", "gemma3_text", "glm", "gpt2", "gpt_bigcode",
        "gpt_neox", "gptj", "granite", "helium", "llama", "mistral", "mpt", "nemotron", "olmo", "olmo2", "olmo3",
        "opt", "phi", "phi3", "qwen2", "qwen3", "seed_oss", "smollm3", "stablelm", "starcoder2",
    }
)  # fmt: skip
"""Families whose files name the modules as their classes do: what is not in the files is not in the model."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BaseModel:
    """What is known of it; without tensors nothing is held against an adapter but its config."""

    config: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    revision: str | None = None
    digest: str | None = None

    @property
    def model_type(self) -> str:
        """The family, as transformers names it."""
        return str(self.config.get("model_type", ""))

    @property
    def transposed(self) -> bool:
        """Whether its linear layers keep their weights the other way around."""
        return self.model_type in _CONV1D

    @property
    def tells_all(self) -> bool:
        """Whether a module that its files do not name is not there."""
        return self.model_type in _AS_IN_FILES and bool(self.tensors)

    @property
    def vocabulary(self) -> int | None:
        """What config.json says of it, of the language model of one that sees, too."""
        for part in (self.config, self.config.get("text_config")):
            size = part.get("vocab_size") if isinstance(part, dict) else None
            if isinstance(size, int):
                return size
        return None

    def module(self, name: str) -> Module | None:
        """Return the module `name`, whatever classes are wrapped around it; None where the files name none."""
        return self._modules.get(bare(name))

    def layers_of(self, name: str) -> set[str]:
        """Return the numbers, such as 0 or 3.1, that modules have whose names are otherwise that of `name`."""
        return self._patterns.get(pattern(name), set())

    def has_kind(self, name: str) -> bool:
        """Tell whether some module has the same last name."""
        return name.rsplit(".", 1)[-1] in self._kinds

    @cached_property
    def _modules(self) -> dict[str, Module]:
        found: dict[str, Module] = {}
        for key, tensor in self.tensors.items():
            name, _, what = key.rpartition(".")
            known = found.setdefault(bare(name), Module(None))
            if what == "weight" and len(tensor.shape) == 2 and tensor.dtype in _FLOATS:
                again = known.weight is not None and known.weight != tensor.shape
                found[bare(name)] = Module(None if again else (tensor.shape[0], tensor.shape[1]))
        return found

    @cached_property
    def _patterns(self) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for name in self._modules:
            found.setdefault(pattern(name), set()).add(".".join(_NUMBER.findall(name)))
        return found

    @cached_property
    def _kinds(self) -> set[str]:
        return {name.rsplit(".", 1)[-1] for name in self._modules}

    def slot_bytes(self, rank: int) -> int | None:
        """Return what one adapter's room of that rank takes with 2 bytes a number, None where that is not known."""
        sizes = [m.weight for name, m in self._modules.items() if m.weight and _NUMBER.search(name)]
        return sum(rows + columns for rows, columns in sizes) * rank * 2 if sizes else None


@dataclass(frozen=True)
class Module:
    """A module that the files name; `weight` is None where its shape says nothing: quantised, or no matrix."""

    weight: tuple[int, int] | None


def bare(name: str) -> str:
    """Return a module's name without what classes put before it."""
    parts = name.split(".")
    while len(parts) > 1 and parts[0] in _WRAPPERS:
        parts.pop(0)
    return ".".join(parts)


def pattern(name: str) -> str:
    """Return a module's bare name with a star for each number."""
    return _NUMBER.sub("*", bare(name))


def numbers(name: str) -> str:
    """Return the numbers in a module's bare name."""
    return ".".join(_NUMBER.findall(bare(name)))


def read_base(folder: Path) -> BaseModel:
    """Return what the files of a model say; what cannot be read is not known, and is left to the engine."""
    config = _json(folder / CONFIG)
    record = _json(folder / RECORD)
    tensors: dict[str, Tensor] = {}
    try:
        for path in _weight_files(folder):
            tensors |= read_header(path)
    except (BadHeader, OSError) as error:
        _log.warning("adapters are compared with the base model's config only: %s", error)
        tensors = {}
    revision, digest = record.get("revision"), record.get("digest")
    return BaseModel(
        config,
        tensors,
        revision if isinstance(revision, str) else None,
        digest if isinstance(digest, str) else None,
    )


def _weight_files(folder: Path) -> Iterable[Path]:
    """Return the files that an index lists, else all that are there: names come in one of them only."""
    listed = _json(folder / "model.safetensors.index.json").get("weight_map")
    if isinstance(listed, dict) and not (folder / "model.safetensors").exists():
        return [folder / name for name in sorted({str(name) for name in listed.values()})]
    return sorted(path for path in folder.glob("*.safetensors") if not path.name.startswith("consolidated"))


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
