"""The models that lines ask for and that cannot be asked: the server lacks them, or the API key may not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from tunery_api.reasons import FailureReason
from tunery_common.errors import TuneryError
from tunery_server.batch.check import MOST_MODELS, Problems
from tunery_server.batch.lines import Line
from tunery_server.batch.requests import BadLine, parse
from tunery_server.batch.server import Server, Standing
from tunery_server.gateway.near import closest


@dataclass(frozen=True)
class Refused:
    """Models that cannot be asked, each with why."""

    unknown: dict[str, str] = field(default_factory=dict)
    denied: dict[str, str] = field(default_factory=dict)
    """Those that are held to other clients, as far as this key is let know: there may be none of that name."""
    meant: dict[str, str] = field(default_factory=dict)
    """Of either: what somebody may have meant, in words."""


async def look_up(server: Server, name: str, asked: Mapping[str, int], waiting: Callable[[str], None]) -> Refused:
    """Return those of the models `asked`, each with its first line, that the server of this name does not answer for.

    `waiting` is told whether any is waited for that the server does not list. Raises TuneryError, and Stopped.
    """
    if len(asked) > MOST_MODELS:
        raise TuneryError(FailureReason.INPUT_INVALID, f"there are more than {MOST_MODELS} of them")
    listed = await server.models()
    absent = [model for model in asked if model not in listed]
    if absent:
        more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
        waiting(f"the model {absent[0]!r} of line {asked[absent[0]]}{more}")
    found, refused = await asyncio.gather(*(server.standing(model) for model in absent)), Refused()
    for model, standing in zip(absent, found, strict=True):
        if standing is Standing.KNOWN:
            continue
        near = closest(model, sorted(listed))
        meant = refused.meant[model] = f"; did you mean {near!r}?" if near is not None else ""
        if standing is Standing.UNKNOWN:
            refused.unknown[model] = f"no model {model!r} at the server {name}{meant}"
        else:
            text = f"the model {model!r} is not open to this API key by spec.access.clients of the server {name}"
            refused.denied[model] = text + meant
    return refused


def add_lines(problems: Problems, lines: Iterable[Line], default_model: str | None, refused: Refused) -> None:
    """Add the lines that ask for one of these models; of each model the first one is shown."""
    why, told = refused.unknown | refused.denied, set[str]()
    if not why:
        return
    problems.begin()
    for line in lines:
        try:
            model = parse(line.raw, default_model).model
        except BadLine:  # told already
            continue
        if model in why:
            problems.add(line.number, why[model], shown=model not in told)
            told.add(model)
        if problems.full:
            problems.cut(line.number)
            break
