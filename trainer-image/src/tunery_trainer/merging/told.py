"""An adapter made elsewhere: its tensors are those that its configuration tells of, as stock PEFT reads that.

PEFT drops what its configuration does not name, and begins anew what is missing, with no more than a warning. A merge
that took the one, or went on without the other, would be of another adapter than the one that PEFT loads.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NoReturn

from peft import PeftConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.constants import EMBEDDING_LAYER_NAMES, INCLUDE_LINEAR_LAYERS_SHORTHAND

from tunery_api.manifest import CONFIG_FILE, WEIGHTS_FILE
from tunery_api.reasons import FailureReason
from tunery_common.errors import TuneryError, first_line
from tunery_common.inputs.misfit import OTHER_BASE, PREFIX, lacking, misfit, no_such_rank, untold
from tunery_common.inputs.name_patterns import parents, slow_pattern
from tunery_trainer.merging.adapter_files import AS_SAVED, Adapter, Module
from tunery_trainer.merging.base_model import EMBEDDINGS, Checkpoint, tensor_name
from tunery_trainer.merging.full_tensors import TOKENS
from tunery_trainer.merging.merged_blocks import token_indices
from tunery_trainer.merging.without_weights import UNKNOWN, Saved, adalora_module, meta_model, saved_by_peft

_FIELDS: Final = {
    "lora_magnitude_vector": "use_dora",
    "lora_B.bias": "lora_bias",
    TOKENS: "trainable_token_indices",
}
"""Which field of a configuration tells of a part."""
_ENDS: Final = frozenset({*EMBEDDINGS, *EMBEDDING_LAYER_NAMES, "embed_out"})
"""What embeddings and heads are called, whose weights PEFT saves where it is told to."""


def check_told(adapter: Adapter) -> None:
    """Compare names of tensors with the configuration, whatever the base.

    Raises TuneryError(AdapterCorrupt), which names the tensor that is not told of, or that is missing.
    """
    try:
        config = PeftConfig.from_peft_type(**adapter.config)
    except (ValueError, TypeError, KeyError, AttributeError, ImportError) as error:
        _refuse(adapter, f"PEFT does not take its {CONFIG_FILE}: {first_line(error)}")
    if config.target_modules == INCLUDE_LINEAR_LAYERS_SHORTHAND:
        config.target_modules = ".*"  # which layers those are only the base tells
    for module in adapter.modules.values():
        _check_parts(adapter, module)
        if module.keys.keys() - {TOKENS} and not check_target_module_exists(config, module.name):
            key = next(key for part, key in module.keys.items() if part != TOKENS)
            _refuse(
                adapter, f"{key}: {CONFIG_FILE} does not put an adapter on this module (target_modules and its like)"
            )
    _check_whole(adapter)
    _check_tokens(adapter)
    if adapter.peft_type == "ADALORA":
        _check_ranks(adapter)


def check_on_base(checkpoint: Checkpoint, adapter: Adapter) -> None:
    """Compare every tensor with those that PEFT has of this configuration on the base.

    Not of a base that transformers does not know or with a head for another task, nor of an adapter that calls all
    modules as other versions do.
    Raises TuneryError: AdapterCorrupt naming a tensor that is missing, BaseMismatch naming one that does not fit.
    """
    _check_rows(checkpoint, adapter)
    saved = _saved(checkpoint, adapter)
    if saved is None or not saved.shapes.keys() & adapter.tensors.keys():
        return
    copies = {key for name, key in adapter.full.items() if name.rpartition(".")[0] in saved.embeddings}
    for key, tensor in adapter.tensors.items():
        wanted = saved.shapes.get(key)
        if wanted is None and key not in copies:
            said = untold(key, saved.leaves)
            if said is not None:
                _refuse(adapter, said)
            _mismatch(adapter, f"{key[:300]}: this base with that {CONFIG_FILE} has no such tensor")
        if wanted is not None and tensor.shape != wanted:
            _mismatch(adapter, misfit(key, tensor.shape, wanted))
    missing = sorted(saved.shapes.keys() - adapter.tensors.keys())
    if missing:
        _refuse(adapter, lacking(missing))


def _saved(checkpoint: Checkpoint, adapter: Adapter) -> Saved | None:
    """Return what PEFT makes of the configuration on the base; None where transformers does not know that."""
    if adapter.config.get("task_type") not in (None, "CAUSAL_LM") and adapter.full:
        return None  # its head is none of a language model's
    try:
        model = meta_model(checkpoint.config)
    except UNKNOWN:
        return None
    slow = slow_pattern(adapter.config, (name for name, _ in model.named_modules()))
    if slow is not None:
        _refuse(adapter, f"{CONFIG_FILE}: {slow}")
    try:
        return saved_by_peft(model, adapter.config)
    except UNKNOWN as error:
        _mismatch(adapter, f"{CONFIG_FILE} does not fit this base: {first_line(error)}")


def _check_parts(adapter: Adapter, module: Module) -> None:
    """Check that a module has each part that the method puts on it, and no other."""
    wanted, found = _parts_of(adapter, module), set(module.keys)
    for part in sorted(found - wanted):
        _untold(adapter, module.keys[part], _FIELDS.get(part, "peft_type"))
    for part in sorted(wanted - found):
        field = _FIELDS.get(part, "peft_type")
        _refuse(adapter, f"{WEIGHTS_FILE} has no {PREFIX}{module.name}.{part}, and {CONFIG_FILE} has {field}")


def _parts_of(adapter: Adapter, module: Module) -> set[str]:
    config = adapter.config
    tokens = {TOKENS} if config.get("trainable_token_indices") and TOKENS in module.keys else set()
    if module.keys.keys() == {TOKENS}:
        return tokens
    if adapter.peft_type == "IA3":
        return {"ia3_l"}
    if adapter.peft_type == "ADALORA":
        return {"lora_A", "lora_B", "lora_E"}
    factors = {"lora_embedding_A", "lora_embedding_B"} if module.embedding else {"lora_A", "lora_B"}
    dora = {"lora_magnitude_vector"} if config.get("use_dora") else set()
    bias = {"lora_B.bias"} if config.get("lora_bias") and not module.embedding else set()
    return factors | dora | bias | tokens


def _check_whole(adapter: Adapter) -> None:
    """Check that whole tensors are of modules to save, trained biases, or an embedding's or head's own."""
    named, saved = adapter.config.get("modules_to_save") or [], False
    for name, key in adapter.full.items():
        module, _, leaf = name.rpartition(".")
        if any(parent.endswith(each) for each in named for parent in parents(module)):
            saved = True
        elif not (_is_trained_bias(adapter, module, leaf) or _is_end(module, leaf)):
            field = "bias" if leaf == "bias" else "modules_to_save"
            _refuse(
                adapter,
                f"{key[:300]}: {CONFIG_FILE} says nothing of it ({field}), and it is no part of an adapter: it would "
                "take the place of the base's own",
            )
    if named and not saved:
        shown = ", ".join(named)[:200]
        _refuse(adapter, f"{WEIGHTS_FILE} has no tensor of modules_to_save in {CONFIG_FILE} ({shown})")


def _is_trained_bias(adapter: Adapter, module: str, leaf: str) -> bool:
    trained = adapter.config.get("bias", "none")
    return leaf == "bias" and (trained == "all" or (trained == "lora_only" and module in adapter.modules))


def _is_end(module: str, leaf: str) -> bool:
    return leaf == "weight" and module.rpartition(".")[2] in _ENDS


def _check_tokens(adapter: Adapter) -> None:
    told = adapter.config.get("trainable_token_indices")
    modules = list(_with_tokens(adapter))
    if told and not modules:
        _refuse(adapter, f"{WEIGHTS_FILE} has no {TOKENS}, and {CONFIG_FILE} has trainable_token_indices")
    for module in modules:
        rows, tokens = adapter.tensors[module.keys[TOKENS]].shape[0], len(token_indices(adapter, module))
        if rows != tokens:
            _refuse(adapter, f"{module.keys[TOKENS]} has {rows} rows, {CONFIG_FILE} names {tokens} tokens")


def _check_rows(checkpoint: Checkpoint, adapter: Adapter) -> None:
    """Check that the base has each token that was trained."""
    for module in _with_tokens(adapter):
        name = tensor_name(checkpoint, module.name, "weight")
        largest = max(token_indices(adapter, module), default=0)
        if name is not None and largest >= (rows := checkpoint.tensors[name].shape[0]):
            last = module.name.rpartition(".")[2]
            _mismatch(adapter, f"trainable_token_indices: {largest} is no row of the base's {last}, which has {rows}")


def _with_tokens(adapter: Adapter) -> Iterator[Module]:
    return (module for module in adapter.modules.values() if TOKENS in module.keys)


def _check_ranks(adapter: Adapter) -> None:
    """Check that AdaLoRA's factors have the ranks that it has left them, or the one that it began with."""
    left = {adalora_module(name): sum(kept) for name, kept in (adapter.config.get("rank_pattern") or {}).items()}
    for name in adapter.config.get("rank_pattern") or ():
        if adalora_module(name) not in adapter.modules:
            _refuse(adapter, f"{CONFIG_FILE}: rank_pattern: {name[:200]!r} is none of its modules")
    for module in adapter.modules.values():
        rank, promised = adapter.rank(module), left.get(module.name, adapter.config.get("init_r", 12))
        if module.factors and rank != promised:
            _refuse(adapter, no_such_rank(module.name, rank, promised))


def _untold(adapter: Adapter, key: str, field: str) -> NoReturn:
    _refuse(adapter, f"{key[:300]}: {CONFIG_FILE} says nothing of it ({field}), and PEFT would leave it out")


def _refuse(adapter: Adapter, what: str) -> NoReturn:
    raise TuneryError(FailureReason.ADAPTER_CORRUPT, f"{adapter.label}: {what}", *AS_SAVED)


def _mismatch(adapter: Adapter, what: str) -> NoReturn:
    raise TuneryError(FailureReason.BASE_MISMATCH, f"{adapter.label}: {what}", OTHER_BASE)
