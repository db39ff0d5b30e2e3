"""Which modules carry the adapter: words of the API become module names by the structure of the model."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Final

import torch
from peft.utils.transformers_weight_conversion import (
    _MODEL_TO_CONVERSION_PATTERN,
    _MOE_TARGET_MODULE_MAPPING,
    get_checkpoint_conversion_mapping,
)
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tunery_api.methods import TARGET_WORDS
from tunery_api.reasons import FailureReason
from tunery_common.errors import TuneryError
from tunery_common.inputs.name_patterns import unusable_key
from tunery_trainer.model.language_part import language_prefix
from tunery_trainer.settings.experts import EXPERT_WORDS

_ATTENTION: Final = re.compile(r"attn|attention", re.IGNORECASE)
_FUSED: Final = re.compile(r"^(c_attn|attn|query_key_value|w?qkv(_proj)?|qkv_lin|in_proj_qkv)$", re.IGNORECASE)
_QUERY: Final = re.compile(r"^(q|wq|query|q_(a_|b_)?(proj|lin)|query_proj)$", re.IGNORECASE)
_KEY: Final = re.compile(r"^(k|wk|key|k_(proj|lin)|key_proj)$", re.IGNORECASE)
_VALUE: Final = re.compile(r"^(v|wv|value|v_(proj|lin)|value_proj|kv_b_proj)$", re.IGNORECASE)
_ROUTERS: Final = frozenset({"gate", "router", "shared_expert_gate"})
LINEAR: Final = (torch.nn.Linear, Conv1D)
_MAX_SHOWN: Final = 40
"""Names that an error message lists at most."""


def resolve_targets(model: PreTrainedModel, asked: Iterable[str]) -> tuple[str, ...]:
    """Return the names that `asked` (module names, or one word of the API) stands for in `model`, sorted.

    A name is the shortest ending of module paths that means the chosen linear modules and no other module.
    Raises TuneryError(InvalidSpec) for a name that matches no linear module, listing those that exist.
    """
    layers = linear_layers(model)
    names = list(asked)
    if len(names) == 1 and names[0] in TARGET_WORDS:
        chosen = _by_word(names[0], layers, model)
        return shortest_endings(chosen, language_paths(model))
    for index, name in enumerate(names):
        if not any(ends_with(path, name) for path in layers):
            raise _matches_nothing(f"spec.lora.targetModules[{index}]", name, layers, model)
    return tuple(sorted(set(names)))


def lora_targets(
    model: PreTrainedModel, asked: Iterable[str], *, experts: bool
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return what `asked` stands for as PEFT's LoRA takes it: target_modules, and target_parameters, sorted.

    The latter are a mixture's experts, with `experts`. Raises TuneryError(InvalidSpec) as resolve_targets does.
    """
    names, parameters = list(asked), expert_parameters(model)
    if not parameters:
        return resolve_targets(model, names), ()
    hidden = _read_as_experts(model)
    layers = {path: layer for path, layer in linear_layers(model).items() if _last(path, 1) not in hidden}
    parameters = parameters if experts else []
    if len(names) == 1 and names[0] in TARGET_WORDS:
        modules = shortest_endings(_chosen(names[0], layers), language_paths(model))
        wanted = set(parameters if names[0] in EXPERT_WORDS else ())
    else:
        modules = tuple(sorted({name for name in names if any(ends_with(path, name) for path in layers)}))
        wanted = {path for path in parameters if any(ends_with(path, name) for name in names)}
    found = (*(path for path in layers if any(ends_with(path, name) for name in modules)), *wanted)
    for index, name in enumerate(names):
        if not (found if name in TARGET_WORDS else any(ends_with(path, name) for path in found)):
            raise _matches_nothing(f"spec.lora.targetModules[{index}]", name, [*layers, *parameters], model)
    return modules, tuple(sorted({_last(path, 2) for path in wanted}))


def expert_parameters(model: PreTrainedModel) -> list[str]:
    """Return the paths of the parameters that hold the weights of a mixture's experts, of shape (experts, …, …)."""
    prefix = language_prefix(model)
    return [
        path
        for path, parameter in model.named_parameters()
        if path.startswith(prefix)
        and path.split(".")[-2:-1] == ["experts"]
        and parameter.dim() == 3
        and parameter.shape[0] > 1
    ]


def expert_names(model: PreTrainedModel) -> tuple[str, ...]:
    """Return the names that mean these parameters and no others, such as experts.down_proj, sorted."""
    return tuple(sorted({_last(path, 2) for path in expert_parameters(model)}))


def _read_as_experts(model: PreTrainedModel) -> frozenset[str]:
    """Return the names that PEFT takes for those of a mixture's experts, as they were called in transformers 4.

    Linear layers that are called so, in shared experts and in layers without a mixture, cannot be named to it.
    """
    kind = model.config.model_type
    pattern = _MODEL_TO_CONVERSION_PATTERN.get(kind)
    if pattern is None or get_checkpoint_conversion_mapping(kind) is None:
        return frozenset()
    return frozenset(_MOE_TARGET_MODULE_MAPPING.get(pattern, ()))


def _last(path: str, count: int) -> str:
    return ".".join(path.split(".")[-count:])


def ia3_targets(model: PreTrainedModel, asked: Iterable[str] | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return IA3's target modules and those of them whose input is scaled, not their output: the feed-forward ones.

    Without `asked`: keys, values and the last layer of each feed-forward network (Liu et al. 2022).
    Raises TuneryError(InvalidSpec) as resolve_targets does.
    """
    layers = linear_layers(model)
    paths = language_paths(model)
    if asked is None:
        last = {path for path in layers if not _in_attention(path) and _writes_hidden(path, layers[path], model)}
        chosen = _attention_parts(layers, _KEY, _VALUE) | last
        targets = shortest_endings(chosen, paths)
    else:
        targets = resolve_targets(model, asked)
        chosen = {path for path in layers if any(ends_with(path, name) for name in targets)}
    feedforward = {path for path in chosen if not _in_attention(path)}
    return targets, shortest_endings(feedforward, paths)


def check_modules_to_save(model: PreTrainedModel, names: Iterable[str]) -> None:
    """Check that each name is the ending of some module's path, of none beside the language model and its head.

    Raises TuneryError(InvalidSpec) otherwise.
    """
    paths = [path for path, module in model.named_modules() if path and list(module.parameters(recurse=False))]
    prefix, head = language_prefix(model), model.get_output_embeddings()
    for index, name in enumerate(names):
        field, found = f"spec.lora.modulesToSave[{index}]", [path for path in paths if ends_with(path, name)]
        if not found:
            raise _matches_nothing(field, name, paths, model)
        outside = [path for path in found if not path.startswith(prefix) and model.get_submodule(path) is not head]
        if outside:
            raise TuneryError(
                FailureReason.INVALID_SPEC,
                f"{field}: {name!r} is also the ending of {outside[0]}, which rows of text never reach; give more of "
                f"the path, such as {prefix}{name}",
            )


def check_patterns(model: PreTrainedModel, targets: Iterable[str], patterns: Iterable[str], field: str) -> None:
    """Check that PEFT can match each key of rankPattern or alphaPattern, and that it matches a target module.

    Raises TuneryError(InvalidSpec).
    """
    endings, keys, experts = list(targets), list(patterns), expert_parameters(model)
    unusable = unusable_key(field, keys, (*(path for path, _ in model.named_modules()), *experts))
    if unusable is not None:
        raise TuneryError(FailureReason.INVALID_SPEC, unusable)
    paths = [path for path in (*linear_layers(model), *experts) if any(ends_with(path, name) for name in endings)]
    for pattern in keys:
        if not any(re.match(rf"(.*\.)?({pattern})$", path) for path in paths):
            raise TuneryError(
                FailureReason.INVALID_SPEC,
                f"{field}: {pattern!r} matches no target module; they are {', '.join(_short(paths))}",
            )


def linear_layers(model: PreTrainedModel) -> dict[str, torch.nn.Module]:
    """Return the language model's linear modules by path, quantised ones and GPT-2's Conv1D included, without the head.

    Nor routers: what they choose is what the experts were trained for. Those of a vision or audio tower never see a
    gradient: rows are text.
    """
    head, prefix = model.get_output_embeddings(), language_prefix(model)
    found = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, LINEAR) and module is not head and path.startswith(prefix)
    }
    if not any(path.endswith(".experts") for path, _ in model.named_modules()):
        return found
    return {path: module for path, module in found.items() if not _ROUTERS & set(path.split("."))}


def language_paths(model: PreTrainedModel) -> list[str]:
    """Return the paths of all modules that PEFT may take a name for, those that it is told to leave out not among them.

    See language.outside_language.
    """
    prefix = language_prefix(model)
    return [path for path, _ in model.named_modules() if path.startswith(prefix)]


def ends_with(path: str, name: str) -> bool:
    """Return whether PEFT would take `name` for the module at `path`."""
    return path == name or path.endswith("." + name)


def shortest_endings(chosen: set[str], paths: Iterable[str]) -> tuple[str, ...]:
    """Return the shortest endings that match each path of `chosen` and no other path, sorted."""
    others = [path for path in paths if path not in chosen]
    return tuple(sorted({_ending(path, others) for path in chosen}))


def _ending(path: str, others: list[str]) -> str:
    parts = path.split(".")
    for length in range(1, len(parts)):
        name = ".".join(parts[-length:])
        if not any(ends_with(other, name) for other in others):
            return name
    return path


def _by_word(word: str, layers: dict[str, torch.nn.Module], model: PreTrainedModel) -> set[str]:
    chosen = _chosen(word, layers)
    if not chosen:
        raise _matches_nothing("spec.lora.targetModules[0]", word, layers, model)
    return chosen


def _chosen(word: str, layers: dict[str, torch.nn.Module]) -> set[str]:
    choices: dict[str, Callable[[], set[str]]] = {
        "all-linear": lambda: set(layers),
        "attention": lambda: {path for path in layers if _in_attention(path)},
        "mlp": lambda: {path for path in layers if not _in_attention(path)},
        "query-value": lambda: _attention_parts(layers, _QUERY, _VALUE),
    }
    return choices[word]()


def _attention_parts(layers: Iterable[str], *wanted: re.Pattern[str]) -> set[str]:
    """Return the attention's modules that are named as wanted, or that hold queries, keys and values in one."""
    chosen = set()
    for path in layers:
        last = path.rsplit(".", 1)[-1]
        if _in_attention(path) and (_FUSED.match(last) or any(pattern.match(last) for pattern in wanted)):
            chosen.add(path)
    return chosen


def _in_attention(path: str) -> bool:
    """Return whether some module above the one at `path` is an attention block."""
    return any(_ATTENTION.search(part) for part in path.split(".")[:-1])


def _writes_hidden(path: str, layer: torch.nn.Module, model: PreTrainedModel) -> bool:
    """Return whether `layer`'s output goes back to the hidden state: as wide as that, and last in its block."""
    hidden = model.config.get_text_config().hidden_size
    width = layer.nf if isinstance(layer, Conv1D) else layer.out_features
    if width != hidden:
        return False
    parent = path.rsplit(".", 1)[0]
    siblings = [name for name, module in model.get_submodule(parent).named_children() if isinstance(module, LINEAR)]
    return path.endswith(f".{siblings[-1]}")


def _matches_nothing(field: str, name: str, paths: Iterable[str], model: PreTrainedModel) -> TuneryError:
    return TuneryError(
        FailureReason.INVALID_SPEC,
        f"{field}: {name!r} matches no module of {type(model).__name__}; it has: {', '.join(_short(paths))}",
    )


def _short(paths: Iterable[str]) -> list[str]:
    """Return the last parts of `paths`, each once, not too many."""
    names = sorted({path.rsplit(".", 1)[-1] for path in paths})
    return names if len(names) <= _MAX_SHOWN else [*names[:_MAX_SHOWN], "…"]
