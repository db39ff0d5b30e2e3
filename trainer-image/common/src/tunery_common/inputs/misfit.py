"""What of PEFT's adapters is no plain change of the base model, and how a tensor does not fit it, in words."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from tunery_api.manifest import CONFIG_FILE, WEIGHTS_FILE
from tunery_api.remedies import recreate, retry

CHANGED_BASE_INITS: Final = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initialisations after which an adapter, unless converted, is relative to a base that is not the original."""
VARIANTS: Final = (
    "layer_replication",
    "alora_invocation_tokens",
    "use_qalora",
    "use_bdlora",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "megatron_config",
)
"""Fields of variants of LoRA whose change is not B·A on a module of the base model."""


PREFIX: Final = "base_model.model."
"""What PEFT puts before the base model's own names."""
OTHER_BASE: Final = recreate("Name the base model that it was trained on in model, or another adapter", "model")
"""What to do where an adapter does not fit the base."""
DIVERGED: Final = retry("Publish the named adapter again from a run that did not diverge")
"""What to do about a published adapter that holds NaN."""
DIVERGED_ELSEWHERE: Final = retry("Replace it with the adapter of a run that did not diverge")
"""And about one made elsewhere: saving it again would not fix it."""
_FACTOR: Final = re.compile(
    rf"(?:{re.escape(PREFIX)})?(?P<module>.+)\.lora_(?:embedding_)?(?P<half>[AB])(?:\.weight)?$"
)


def untold(name: str, modules: Collection[str]) -> str | None:
    """Return what is wrong with a tensor of an adapter that is none of its configuration's on the base, or None.

    `modules` are those of the base that have no others within. None: the base has no such module at all.
    """
    parts = name.removeprefix(PREFIX).split(".")
    if not any(".".join(parts[:length]) in modules for length in range(1, len(parts))):
        return None
    return f"{name[:300]}: adapter_config.json says nothing of it on this module of the base"


def without_scale(config: Mapping[str, Any]) -> str | None:
    """Return what is wrong where alpha, of LoRA or of one of its modules, is not above 0: `lora_alpha: …`; or None.

    PEFT takes any number. With 0 nothing of the adapter counts, and nothing would be learned; with less than 0 it does
    the opposite of what it was trained to.
    """
    if config.get("peft_type") != "LORA":  # AdaLoRA's is its rank where it is not above 0
        return None
    patterns = config.get("alpha_pattern")
    alphas = {"lora_alpha": config.get("lora_alpha", 8)}
    alphas |= {f"alpha_pattern.{name[:100]}": value for name, value in (patterns or {}).items()}
    for field, alpha in alphas.items():
        if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha < math.inf:
            return (
                f"{field}: is {str(alpha)[:32]}, and must be above 0: all that the adapter changes is multiplied by it"
            )
    return None


def shape_text(shape: Sequence[int]) -> str:
    """Return a shape as people write it: `16 x 2048`."""
    return " x ".join(map(str, shape)) or "a single number"


def lacking(missing: Sequence[str]) -> str:
    """Return what is wrong where these tensors, one at least, are in a configuration and not in the weights."""
    others = f", and {len(missing) - 1} more tensors that" if len(missing) > 1 else ", which"
    return f"{WEIGHTS_FILE} lacks {missing[0]}{others} {CONFIG_FILE} has on this base"


def other_rank(name: str, found: Sequence[int], wanted: Sequence[int]) -> str | None:
    """Return what is wrong where the tensor `name` has not the rank, or of a prompt not the rows, of its configuration.

    `wanted` is its shape by the configuration, on whatever base. None: it has, or is of no rank.
    """
    if not len(found) == len(wanted) == 2:
        return None
    if name == "prompt_embeddings":
        rows = f"{name} has {found[0]} rows, {CONFIG_FILE} says {wanted[0]} (num_virtual_tokens)"
        return rows if found[0] != wanted[0] else None
    factor = _FACTOR.match(name)
    if factor is None:
        return None
    at = 0 if factor["half"] == "A" else 1
    return no_such_rank(factor["module"], found[at], wanted[at]) if found[at] != wanted[at] else None


def no_such_rank(module: str, found: int, promised: object) -> str:
    """Return what is wrong with a module of another rank than its configuration says."""
    return f"{module} has rank {found}, {CONFIG_FILE} says {promised}"


def misfit(name: str, found: Sequence[int], wanted: Sequence[int]) -> str:
    """Return what is wrong with the tensor `name` of an adapter, which would have the shape `wanted` on the base.

    Of LoRA's two halves it is told what the module takes or gives: `….q_proj.lora_A.weight is 16 x 2048, the base's
    q_proj takes 576`.
    """
    module, _, part = name.partition(".lora_")
    last, said = module.rpartition(".")[2], f"{name[:300]} is {shape_text(found)}"
    if len(found) == len(wanted) == 2 and part.startswith("A") and found[1] != wanted[1]:
        return f"{said}, the base's {last} takes {wanted[1]}"
    if len(found) == len(wanted) == 2 and part.startswith("B") and found[0] != wanted[0]:
        return f"{said}, the base's {last} gives {wanted[0]}"
    return f"{said}, by its configuration and the base it would be {shape_text(wanted)}"
