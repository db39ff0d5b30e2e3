"""The experts of a mixture: which settings adapt them, and what cannot go with that. No tensor is touched."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from tunery_api.lorajob import LoRAJobSpec
from tunery_api.methods import LoraInit, Method
from tunery_api.reasons import FailureReason
from tunery_common.errors import TuneryError
from tunery_trainer.settings.types import ModelFacts

EXPERT_METHODS: Final = frozenset({Method.LORA, Method.QLORA})
"""PEFT adapts parameters that are not those of a linear layer by plain LoRA only."""
EXPERT_WORDS: Final = frozenset({"all-linear", "mlp"})
EXPERTS: Final = "experts"
"""The name under which status.resolved and a manifest's hyperparameters tell of them."""
_ADAPTED: Final = "adapted, never quantised"
_LEFT: Final = "not adapted, never quantised"
_INITS: Final = frozenset({LoraInit.DEFAULT, LoraInit.GAUSSIAN})
"""The others look at the weight of a linear layer."""


def adapts_experts(method: Method, targets: Iterable[str] | None, experts: Iterable[str]) -> bool:
    """Tell whether `targets` (module names, or one word) take in any of `experts`, the names of a mixture's experts."""
    asked = set(targets or ())
    if method not in EXPERT_METHODS:
        return False
    return any(asked & EXPERT_WORDS or any(_means(name, expert) for name in asked) for expert in experts)


def check_experts(spec: LoRAJobSpec) -> None:
    """Check that what the manifest says goes with adapted experts.

    Raises TuneryError(InvalidSpec) naming the field.
    """
    instead = "or leave the experts out, with lora.targetModules: [attention]"
    dropout, init = spec.lora.dropout, spec.lora.init
    if dropout:
        raise _invalid(f"spec.lora.dropout: must be 0 where a mixture's experts are adapted, is {dropout:g}; {instead}")
    if init not in _INITS:
        raise _invalid(
            f"spec.lora.init: {init} starts from the weights of linear layers, which a mixture's experts are not; use "
            f"Default or Gaussian, {instead}"
        )


def told_of_experts(facts: ModelFacts, *, adapted: bool) -> str:
    """Return what status.resolved says of a mixture's experts: bitsandbytes quantises linear layers only."""
    share = f"{facts.expert_parameters / 1e9:.3g} of {facts.parameters / 1e9:.3g} billion parameters"
    return f"{share}: {_ADAPTED if adapted else _LEFT}"


def told_again(told: str, *, adapted: bool) -> str:
    """Return the same sentence for another adapter: the one of continueFrom."""
    return f"{told.partition(': ')[0]}: {_ADAPTED if adapted else _LEFT}"


def says_adapted(told: object) -> bool:
    """Tell whether that sentence says that the experts are adapted."""
    return str(told).endswith(f": {_ADAPTED}")


def _means(name: str, expert: str) -> bool:
    """Say whether one is the other's ending: `down_proj` and `experts.down_proj`, whichever is the longer."""
    return f".{expert}".endswith(f".{name}") or f".{name}".endswith(f".{expert}")


def _invalid(message: str) -> TuneryError:
    return TuneryError(FailureReason.INVALID_SPEC, message)
