"""What simulated sweeps search: a function of six parameters, and the table of real trainings of a tiny model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Final

from tunery_api.methods import Preset
from tunery_search.dimensions import Values
from tunery_search.space import InitialPoint, initial_points, space_of

from kit.sweeps import Setting, sweep, table

TOO_HIGH: Final = 1.05
"""A trial whose loss is so many times the base model's, at any evaluation, has diverged."""
_RATE: Final = "training.learningRate"


@dataclass(frozen=True)
class Run:
    """What a trial comes to."""

    losses: tuple[float, ...]
    """On the held-out rows, after equal shares of its steps."""
    base: float
    failure: str | None = None
    """The reason for which it fails behind the last of them."""
    evaluations: int = 8
    """How many it has that comes to its end."""


@dataclass(frozen=True)
class Landscape:
    """What a sweep searches, and what each point of it is worth."""

    fields: Mapping[str, Any]
    """Of the sweep's spec: its template and its space."""
    guide: tuple[InitialPoint, ...]
    """The guide's three configurations."""
    run: Callable[[Values], Run]
    lowest: float
    """The lowest loss that there is."""
    has_course: bool = True
    """Runs are measured on their way: a pruner has something to see, and nobody made it up."""


def smooth(values: Values) -> float:
    """Return what the best rate, at alpha over rank, is worth, and a little of all else; at best 1.5."""
    rank, alpha = int(values["lora.rank"]), int(values["lora.alpha"])
    rate = math.log10(float(values[_RATE]) * math.sqrt(alpha / rank))
    return (
        1.5
        + 0.25 * (rate + 3.2) ** 2
        + 0.03 * abs(math.log2(rank) - 4)
        + 2 * (float(values["lora.dropout"]) - 0.05) ** 2
        + 0.2 * abs(float(values["training.warmup"]) - 0.1)
    )


def function() -> Landscape:
    """Return the guide's space with a wider learning rate, and `smooth` on it: known only at the end of a run."""
    spec = sweep(preset="Guide", **_WIDE)
    return Landscape(
        _WIDE | {"preset": "Guide"}, initial_points(spec, space_of(spec)), _smooth_run, 1.5, has_course=False
    )


_TEMPLATE: Final = {"model": {"uri": "s3://models/base"}, "dataset": {"uri": "s3://data/rows.jsonl"}}
_WIDE: Final = {
    "template": {**_TEMPLATE, "lora": {"targetModules": ["attention"]}},
    "parameters": [{"path": _RATE, "range": {"min": 1e-5, "max": 1e-2, "log": True}}],
}


def _smooth_run(values: Values) -> Run:
    return Run((smooth(values),), 3.0, evaluations=1)


def trainings() -> Landscape:
    """Return the table, with a learning rate by factors: a trial comes to what the nearest rate came to.

    The table has no ranks of 8 and 32: of the guide's configurations they are 4 and 64.
    """
    fields = {"template": _TEMPLATE, "parameters": [{"path": _RATE, "range": _SPAN}, *_choices()]}
    guide = (
        _start(Preset.INSTRUCTION_TUNING, "0.0002", "16", "32", "attention"),
        _start(Preset.DOMAIN_ADAPTATION, "0.0001", "64", "64", "all-linear"),
        _start(Preset.STYLE_TRANSFER, "0.0003", "4", "16", "query-value"),
    )
    return Landscape(fields, guide, _trained, min(curve.losses[-1] for curve in table().values()))


_SPAN: Final = {"min": 0.0001, "max": 0.1, "log": True}


def _start(origin: Preset, rate: str, rank: str, alpha: str, modules: str) -> InitialPoint:
    values = {_RATE: rate, "lora.rank": rank, "lora.alpha": alpha, "lora.targetModules": modules}
    return InitialPoint(origin.value, values)


def points() -> Landscape:
    """Return the table as it is: the rate one of thirteen, 468 points in all."""
    rates = [f"{rate:.10f}".rstrip("0") for rate in sorted(_rates())]
    fields = {"template": _TEMPLATE, "parameters": [{"path": _RATE, "choices": rates}, *_choices()]}
    return replace(trainings(), fields=fields, guide=())


def failing() -> Landscape:
    """Return the table where rank 64 on all layers is too large for the memory, and what is too high has diverged."""
    fine = (run.losses[-1] for run in map(_failed, table()) if run.failure is None)
    return replace(trainings(), run=lambda values: _failed(_nearest(values)), lowest=min(fine))


def _choices() -> list[dict[str, Any]]:
    return [
        {"path": "lora.rank", "choices": ["4", "16", "64"]},
        {"path": "lora.alpha", "choices": ["8", "16", "32", "64"]},
        {"path": "lora.targetModules", "choices": ["query-value", "attention", "all-linear"]},
    ]


@cache
def _rates() -> Mapping[float, str]:
    return {float(each.rate): each.rate for each in table()}


def _nearest(values: Values) -> Setting:
    asked = math.log(float(values[_RATE]))
    nearest = min(_rates(), key=lambda rate: abs(math.log(rate) - asked))
    return Setting(_rates()[nearest], values["lora.rank"], values["lora.alpha"], values["lora.targetModules"])


def _trained(values: Values) -> Run:
    curve = table()[_nearest(values)]
    return Run(curve.losses, curve.base)


def _failed(setting: Setting) -> Run:
    """Return what a training comes to where some fail."""
    curve = table()[setting]
    if (setting.rank, setting.modules) == ("64", "all-linear"):
        return Run(curve.losses[:1], curve.base, "GPUOutOfMemory")
    high = next((at for at, loss in enumerate(curve.losses, 1) if loss > TOO_HIGH * curve.base), None)
    return Run(curve.losses[:high], curve.base, "LossDiverged" if high else None)
