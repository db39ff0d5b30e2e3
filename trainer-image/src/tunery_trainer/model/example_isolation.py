"""Whether tokens, and packed examples, see only what they may: measured on a small model of the same configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from tunery_trainer.model.attention import BY_EXAMPLE
from tunery_trainer.model.collator import Collator
from tunery_trainer.model.small_twin import VOCABULARY, shrink

_LENGTHS: Final = (37, 61, 22)
"""Tokens of the examples: not multiples of a chunk, and longer than the small model's windows."""
_TOLERANCE: Final = 1e-3
"""Largest difference of a logit, of logits whose largest is 1: rounding in another order makes 1e-6, a leak 1e-2."""
_MOST_PARAMETERS: Final = 8_000_000
_SCALE: Final = 4.0
"""Weights as small as a fresh model's would hide what one example does to another."""


@dataclass(frozen=True)
class Isolation:
    """What was measured of an architecture."""

    attention: str
    """The attention that its rows are computed with, a name of transformers'."""
    packable: bool
    """Whether an example in a packed row has the logits that it has alone."""
    measured: bool = True
    """False: no small model could be built, so nothing is known and nothing is packed."""
    causal: bool = True
    """Whether no token's logits depend on those after it; an encoder would learn to copy the token that it is asked."""


def isolation(config: PreTrainedConfig, otherwise: str) -> Isolation:
    """Return what packing does to the architecture of `config`, a text model's; `otherwise` is its own attention."""
    key = (type(config).__name__, config.to_json_string(use_diff=False), otherwise)
    if key not in _KNOWN:
        _KNOWN[key] = _measure(config, otherwise)
    return _KNOWN[key]


_KNOWN: Final[dict[tuple[str, str, str], Isolation]] = {}
"""What this process has measured."""


def _measure(config: PreTrainedConfig, otherwise: str) -> Isolation:
    try:
        model = _small(config, otherwise)
        alone = _logits(model, packed=False)
        if _sees_ahead(model):
            return Isolation(otherwise, packable=False, causal=False)
    except Exception:  # noqa: BLE001 (whatever a shrunken architecture raises: it is not measured then)
        return Isolation(otherwise, packable=False, measured=False)
    for attention in (BY_EXAMPLE, otherwise):
        found = _compared(config, attention, alone)
        if found is not None:
            return found
    return Isolation(otherwise, packable=False)


def _compared(config: PreTrainedConfig, attention: str, alone: torch.Tensor) -> Isolation | None:
    """Return what `attention` does; None if even a single row has other logits with it, or none."""
    try:
        model = _small(config, attention)
        if not _equal(_logits(model, packed=False), alone):
            return None
        with torch.random.fork_rng(devices=[]):
            _logits(model.train(), packed=False)  # by example knows no dropout, whatever an architecture calls it
        model.eval()
        return Isolation(attention, packable=_equal(_logits(model, packed=True), alone))
    except Exception:  # noqa: BLE001 (an architecture that this attention does not suit may raise anything)
        return None


def _small(config: PreTrainedConfig, attention: str) -> PreTrainedModel:
    small = shrink(config)
    with torch.device("meta"):
        size = AutoModelForCausalLM.from_config(small).num_parameters()
    if size > _MOST_PARAMETERS:
        raise ValueError(f"the small model has {size} parameters")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(small, dtype=torch.float32, attn_implementation=attention)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(_SCALE)
    return model.eval()


@torch.no_grad()
def _sees_ahead(model: PreTrainedModel) -> bool:
    """Tell whether another last token changes what the model says of those before it."""
    draw = torch.Generator().manual_seed(2)
    row = torch.randint(3, VOCABULARY - 1, (1, _LENGTHS[0]), generator=draw)
    other = row.clone()
    other[0, -1] += 1
    said, changed = (model(input_ids=ids, use_cache=False).logits[0, :-1] for ids in (row, other))
    return not _equal(changed, said)


@torch.no_grad()
def _logits(model: PreTrainedModel, *, packed: bool) -> torch.Tensor:
    """Return the logits of all examples, one after the other, (tokens, vocabulary)."""
    draw = torch.Generator().manual_seed(1)
    examples = [torch.randint(3, VOCABULARY, (length,), generator=draw).tolist() for length in _LENGTHS]
    rows: list[dict[str, Any]] = [{"input_ids": ids, "labels": ids} for ids in examples]
    if packed:
        joined = [token for ids in examples for token in ids]
        rows = [{"input_ids": joined, "labels": joined, "seq_lengths": list(_LENGTHS)}]
    collate = Collator(0, by_example=model.config._attn_implementation == BY_EXAMPLE)
    outputs = []
    for row in rows:
        batch = collate([row])
        batch.pop("labels")
        outputs.append(model(**batch, use_cache=False).logits[0])
    return torch.cat(outputs)


def _equal(found: torch.Tensor, expected: torch.Tensor) -> bool:
    scale = expected.abs().max().clamp(min=1e-6)
    return bool(torch.isfinite(found).all()) and bool((found - expected).abs().max() / scale < _TOLERANCE)
