"""A model of many layers by a few: what is alike is looked at once."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from tunery_trainer.model.language_part import decoder_layers
from tunery_trainer.model.load import facts_of, meta_model
from tunery_trainer.model.targets import LINEAR
from tunery_trainer.settings.types import ModelFacts

_ORDER: Final = frozenset({"layer_idx", "layer_id", "layer_index", "layer_number", "idx", "index"})
"""Attributes that only count layers."""


class Weight(NamedTuple):
    """One parameter of the base model."""

    path: str
    shape: tuple[int, ...]
    itemsize: int
    """Bytes of an element."""
    linear: bool
    """Whether it is the weight of a linear layer."""

    @property
    def numel(self) -> int:
        """Number of its elements."""
        return torch.Size(self.shape).numel()


@dataclass(frozen=True)
class Outline:
    """The structure of a base model, with one or two of each kind of layer."""

    facts: ModelFacts
    weights: tuple[Weight, ...]
    """Of the whole model."""
    few: PreTrainedModel
    """On the meta device; of its layers only the first are left. What it says of their number is of the whole."""
    layers: str
    """The path of the list of layers."""
    times: tuple[int, ...]
    """How many layers of the whole model each layer of `few` stands for."""

    def fresh(self) -> PreTrainedModel:
        """Return a copy to put an adapter on."""
        return copy.deepcopy(self.few)

    @property
    def whole(self) -> bool:
        """Whether no layer is left out."""
        return all(times == 1 for times in self.times)


def outline(folder: Path, *, whole: bool = False) -> Outline:
    """Return the structure of the model in `folder`, with every layer if `whole`; raises TuneryError."""
    model = meta_model(folder)
    facts = facts_of(model, folder)
    weights = tuple(_weights(model))
    layers = decoder_layers(model)
    kinds = list(range(len(layers))) if whole else _alike(layers, model.config.get_text_config())
    # One more than is needed: what a layer leaves is known once the next begins.
    kept = min(len(layers), 2 + max(kinds, default=-2))
    stands_for = [*range(kept), *kinds[kept:]]
    path = next((path for path, module in model.named_modules() if module is layers), "")
    del layers[kept:]
    return Outline(facts, weights, model, path, tuple(stands_for.count(index) for index in range(kept)))


def _weights(model: PreTrainedModel) -> Iterator[Weight]:
    linear = {id(module.weight) for module in model.modules() if isinstance(module, LINEAR)}
    # A head that is tied to the embedding is no matrix of its own, and is not quantised.
    linear -= {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    for path, parameter in model.named_parameters():
        yield Weight(path, tuple(parameter.shape), parameter.element_size(), id(parameter) in linear)


def _alike(layers: torch.nn.ModuleList, config: PreTrainedConfig) -> list[int]:
    """Return for each layer the index of the one that stands for it: the first like it, but never the very first layer.

    Nothing before that one may need a gradient, so it keeps less for backward.
    """
    first: dict[Any, int] = {}
    found = []
    for index, layer in enumerate(layers):
        kind = (_kind(layer), _told(config, index, len(layers)))
        found.append(first.setdefault(kind, index) if index else 0)
    return found


def _kind(layer: torch.nn.Module) -> tuple[Any, ...]:
    """Return what makes layers alike: their modules, the shapes of their parameters, and every plain attribute."""
    return tuple(
        (
            name,
            type(module).__name__,
            tuple((key, tuple(value.shape)) for key, value in module.named_parameters(recurse=False)),
            tuple((key, value) for key, value in sorted(vars(module).items()) if _says_something(key, value)),
        )
        for name, module in layer.named_modules()
    )


def _says_something(key: str, value: Any) -> bool:
    return key not in _ORDER and not key.startswith("_") and isinstance(value, (bool, int, float, str))


def _told(config: PreTrainedConfig, index: int, count: int) -> tuple[str, ...]:
    """Return what the configuration's lists say of a layer."""
    lists = (value for value in vars(config).values() if isinstance(value, (list, tuple)))
    return tuple(str(value[index]) for value in lists if len(value) == count)
