"""A base model's folder: its config, its shards, and where each tensor lies."""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Final

from tunery_api.reasons import FailureReason
from tunery_common.errors import TuneryError
from tunery_common.inputs.file_selection import is_model_file
from tunery_trainer.merging.files import Files, read_json
from tunery_trainer.merging.names import model_names
from tunery_trainer.merging.safetensors_stream import TensorInfo, read_header

CONFIG: Final = "config.json"
INDEX: Final = "model.safetensors.index.json"
SINGLE: Final = "model.safetensors"
EMBEDDINGS: Final = ("embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings", "embeddings")
"""Names that the families of transformers give the input embedding."""
CONV1D_MODELS: Final = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer"})
"""Model types whose linear layers lie in × out."""
TOKENIZER_FILES: Final = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "spiece.model",
    "sentencepiece*.model",
    "chat_template*",
)
"""Tokenizer and chat template: an adapter that brings its own was trained with them."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The base model: everything but the bytes of its tensors."""

    files: Files
    config: dict[str, Any]
    index: dict[str, Any] | None
    """model.safetensors.index.json; None for a single file."""
    shards: dict[str, dict[str, TensorInfo]]
    """Shard to its tensors, in file order."""
    aliases: dict[str, str] = field(default_factory=dict)
    """The model's name of a tensor to the file's, where they differ by more than the base model's prefix."""

    @property
    def tensors(self) -> dict[str, TensorInfo]:
        """All tensors by name."""
        return {name: info for shard in self.shards.values() for name, info in shard.items()}

    @property
    def weight_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(info.end - info.start for info in self.tensors.values())

    @property
    def tied(self) -> bool:
        """True where the output head uses the input embedding's weight."""
        return bool(text_config(self.config).get("tie_word_embeddings", self.config.get("tie_word_embeddings", False)))

    @property
    def conv1d(self) -> bool:
        """True where the linear layers lie in × out, as transformers' Conv1D has them."""
        return text_config(self.config).get("model_type") in CONV1D_MODELS

    def companions(self) -> list[str]:
        """Tokenizer, template, generation config and the like: the files to copy as they are."""
        return [
            n
            for n in self.files.sizes()
            if is_model_file(n) and not n.endswith(".safetensors") and n not in (CONFIG, INDEX)
        ]


def is_tokenizer_file(name: str) -> bool:
    """Tell whether a file belongs to the tokenizer or is a chat template."""
    return any(fnmatchcase(name, pattern) for pattern in TOKENIZER_FILES)


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a config that describes the language model: in multimodal ones it is nested."""
    nested = config.get("text_config")
    return nested if isinstance(nested, dict) else config


def open_checkpoint(files: Files) -> Checkpoint:
    """Read config, index and headers.

    Raises TuneryError: ModelNotFound for a missing or damaged file, ModelUnsupported without safetensors or
    where the weights are quantised already.
    """
    sizes = files.sizes()
    if CONFIG not in sizes:
        raise TuneryError(FailureReason.MODEL_NOT_FOUND, f"{files.label} has no {CONFIG}")
    config = read_json(files, CONFIG)
    index = read_json(files, INDEX) if INDEX in sizes else None
    names = _listed(files, index) if index is not None else [SINGLE]
    missing = [name for name in names if name not in sizes]
    if missing and index is None:
        raise TuneryError(FailureReason.MODEL_UNSUPPORTED, f"{files.label} has no {SINGLE} and no {INDEX}")
    if missing:
        raise TuneryError(FailureReason.MODEL_NOT_FOUND, f"{files.label}: {INDEX} lists {', '.join(missing)}, missing")
    shards = {name: read_header(files, name) for name in names}
    aliases = model_names(config, [tensor for tensors in shards.values() for tensor in tensors])
    checkpoint = Checkpoint(files, config, index, shards, aliases)
    _check_complete(checkpoint)
    return checkpoint


def _listed(files: Files, index: dict[str, Any]) -> list[str]:
    """Return the shards that an index lists; raises TuneryError with the folder's `damaged` reason."""
    shards = index.get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
        raise TuneryError(
            files.damaged, f"{files.label}/{INDEX} has no weight_map, which says in which file each tensor lies"
        )
    return sorted(set(shards.values()))


def tensor_name(checkpoint: Checkpoint, module: str, leaf: str) -> str | None:
    """Return the name of a module's tensor in the checkpoint, which may lack the base model's prefix."""
    tensors = checkpoint.tensors
    candidates = (f"{module}.{leaf}", f"{module.partition('.')[2]}.{leaf}")
    return next((name for name in candidates if name in tensors), checkpoint.aliases.get(candidates[0]))


def embedding_name(checkpoint: Checkpoint) -> str | None:
    """Return the name of the input embedding's tensor."""
    ends = tuple(f"{name}.weight" for name in EMBEDDINGS)
    return next((name for name in checkpoint.tensors if name.endswith(ends)), None)


def _check_complete(checkpoint: Checkpoint) -> None:
    """Every tensor of the index must lie in its shard, and none may be packed 4-bit or 8-bit data."""
    label = checkpoint.files.label
    for name, shard in (checkpoint.index or {"weight_map": {}})["weight_map"].items():
        if name not in checkpoint.shards[shard]:
            raise TuneryError(FailureReason.MODEL_NOT_FOUND, f"{label}/{shard} has no tensor {name}, against the index")
    packed = next(
        (n for n, info in checkpoint.tensors.items() if n.endswith(".weight") and info.dtype.itemsize == 1), None
    )
    if packed:
        raise TuneryError(
            FailureReason.MODEL_UNSUPPORTED,
            f"{label}: {packed} is quantised already; name the original 16-bit or 32-bit model in spec.model.uri",
        )
