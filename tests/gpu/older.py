"""A machine's torch may be older than the lock's: what the trainer asks of it in words that it does not know yet."""

from __future__ import annotations

import inspect
from typing import Any

from torch.nn.attention.varlen import varlen_attn

from tunery_trainer.model import attention


def accept() -> list[str]:
    """Let an older torch do what it can; return what was put between, for the report.

    In torch 2.11 varlen_attn calls the same kernel as in 2.15, which knows grouped queries; what 2.15 adds is the word
    for it, and a check of the counts.
    """
    if "enable_gqa" in inspect.signature(varlen_attn).parameters:
        return []

    def without_the_word(*tensors: Any, enable_gqa: bool = False, **options: Any) -> Any:
        return varlen_attn(*tensors, **options)

    vars(attention)["varlen_attn"] = without_the_word
    return ["varlen_attn of this torch has no enable_gqa: called without it"]
