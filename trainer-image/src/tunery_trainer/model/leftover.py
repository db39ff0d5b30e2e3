"""Tensors of the files that the model has no place for: layers of the same model, or what others have put there."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from itertools import chain
from typing import Final

from transformers import PreTrainedModel

from tunery_api.reasons import FailureReason
from tunery_api.remedies import retry
from tunery_common.errors import TuneryError
from tunery_trainer.model.language_part import decoder_layers

_SHOWN: Final = 3

_log = logging.getLogger(__name__)


def check_leftover(model: PreTrainedModel, unexpected: Iterable[str]) -> None:
    """Say in the log which tensors are left out; `unexpected` are their names as the model would call them.

    transformers has taken away what it knows to be of no use. Raises TuneryError(ModelUnsupported) where they are
    layers like those of the model: one of fewer layers is another model than that of the files.
    """
    left = sorted(unexpected)
    if not left:
        return
    path, count = _layers(model)
    last = _last_alike(model, path, count, left)
    if last is not None:
        raise _too_many(path, count, last + 1)
    more = f" and {len(left) - _SHOWN} more" if len(left) > _SHOWN else ""
    _log.warning(
        "spec.model.uri: its files have %s that config.json gives the model no place for, and training goes without: "
        "%s%s",
        "a tensor" if len(left) == 1 else f"{len(left)} tensors",
        ", ".join(left[:_SHOWN]),
        more,
    )


def _layers(model: PreTrainedModel) -> tuple[str, int]:
    """Return the path of the list of layers, and how many there are."""
    layers = decoder_layers(model)
    return next((path for path, module in model.named_modules() if module is layers), ""), len(layers)


def _last_alike(model: PreTrainedModel, path: str, count: int, left: Iterable[str]) -> int | None:
    """Return the number of the last layer beyond those of the model that is like them, None where there is none."""
    # The files of a text model within a larger one may bear names of that.
    within = re.compile(rf"(|.+\.){re.escape(path)}\.(\d+)\.(.+)")
    own = chain(model.named_parameters(), model.named_buffers())
    known = {found[3] for name, _ in own if (found := within.fullmatch(name))}
    beyond: dict[tuple[str, int], set[str]] = {}
    for name in left if path else ():
        found = within.fullmatch(name)
        if found and int(found[2]) >= count:
            beyond.setdefault((found[1], int(found[2])), set()).add(found[3])
    # One that predicts tokens further ahead has parts of its own beside those, such as eh_proj.
    return max((number for (_, number), names in beyond.items() if names <= known), default=None)


def _too_many(path: str, count: int, there: int) -> TuneryError:
    return TuneryError(
        FailureReason.MODEL_UNSUPPORTED,
        f"spec.model.uri: its files have {there} layers ({path}.0 to {path}.{there - 1}), and config.json says "
        f"{count}: the others would be left out, and another model be trained",
        retry("Replace config.json by the one of these weights, or the weights by those of this config.json"),
    )
