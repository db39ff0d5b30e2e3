"""The language-model head and its loss: in tiles, only where a label is, and never all logits at once.

The arithmetic is TRL's; beside `training` this is the only module that calls it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, Final

import torch
from peft import PeftModel
from trl.kernels import chunked_logprob
from trl.trainer import utils as trl_utils

from tunery_trainer.process.device import triton_compiles

_ATTRIBUTE: Final = "_tunery_head"
_CPU_TOKENS: Final = 1024
"""Positions of a tile on a CPU, where one of TRL's 4,096 does not fit into the caches; assumed, not measured."""


# On devices without Triton TRL computes the positions without a label, too, for the sake of accelerators that compile
# anew for each shape; a CPU does not.
trl_utils._use_triton = lambda device: True


def add_head(model: torch.nn.Module) -> None:
    """Let `model(..., labels=labels, fused_lm_head=True)` return `log_probs` (rows, length - 1), and no logits.

    A log-probability is 0 where there is no label (-100). `model` is a plain transformers model or a PeftModel; a head
    that TRL put there since is replaced. Doing it twice changes nothing.
    """
    base = _base(model)
    if _ATTRIBUTE not in base.__dict__:
        trl_utils.add_fused_lm_head(base, outputs=("log_probs",))
        base.__dict__[_ATTRIBUTE] = base.forward
    base.__dict__["forward"] = base.__dict__[_ATTRIBUTE]
    _suit(next(base.parameters()).device)


@contextmanager
def head(model: torch.nn.Module) -> Iterator[None]:
    """Add the head for the time of the body, unless the model has it for good."""
    base = _base(model)
    before = {name: base.__dict__[name] for name in (_ATTRIBUTE, "forward") if name in base.__dict__}
    add_head(model)
    try:
        yield
    finally:
        for name in (_ATTRIBUTE, "forward"):
            del base.__dict__[name]
        base.__dict__.update(before)


def log_probabilities(model: torch.nn.Module, batch: Mapping[str, Any]) -> torch.Tensor:
    """Return log p of each label of `batch` under a `model` with the head: float32, (rows, length - 1 or more).

    Zeros where there is no label. With prompt learning the virtual tokens come first. The first token of a row has no
    predecessor, and never counts.
    """
    labels = batch["labels"].clone()
    labels[:, 0] = -100  # behind virtual tokens it would have one
    others = {name: tensor for name, tensor in batch.items() if name != "labels"}
    result: torch.Tensor = model(**others, labels=labels, use_cache=False, fused_lm_head=True).log_probs
    return result


def autocast(device: torch.device, dtype: torch.dtype) -> Any:
    """Return the context in which a model of this precision computes, in training as in evaluation."""
    if dtype is torch.float32:
        return nullcontext()
    return torch.autocast(device.type, dtype=dtype)


def _base(model: torch.nn.Module) -> Any:
    return model.get_base_model() if isinstance(model, PeftModel) else model


def _suit(device: torch.device) -> None:
    """Choose the tile for a CPU's caches, and do without Triton where it could not compile."""
    if device.type == "cpu":
        chunked_logprob.TOKEN_CHUNK_SIZE = _CPU_TOKENS
    elif not triton_compiles():
        chunked_logprob._TRITON_AVAILABLE = False
