"""`preset: Guide`: the space of the guide's tuner, and its tuned configurations as the first trials."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from tunery_api.lorasweep import TrialTemplate
from tunery_api.methods import LORA_FAMILY, RANK_GUIDELINES, Method
from tunery_api.presets import LORA_LEARNING_RATES, PRESETS, PresetValues, method_rate, usual_span
from tunery_search.dimensions import Categorical, Condition, Dimension, Numeric, plain
from tunery_search.paths import read
from tunery_search.points import part_of_point

_LORA: Final = frozenset({*LORA_FAMILY, Method.AUTO})
"""Methods that the guide's tuner is for; Auto is one of the family but for a handful of rows."""
_RANKS: Final = tuple(str(line.rank) for line in RANK_GUIDELINES)
_ALPHAS: Final = ("8", "16", "32", "64")
_TARGETS: Final = ("query-value", "attention", "all-linear")
"""The guide's minimal, recommended and maximal target modules."""
_MOST_DROPOUT: Final = 0.2
_MOST_WARMUP: Final = 0.2
_MOST_WEIGHT_DECAY: Final = 0.1


def guide_dimensions(template: TrialTemplate, own: Sequence[Dimension]) -> tuple[Dimension, ...]:
    """Return the guide's parameters that neither the template sets nor the sweep's `own` parameters replace.

    Where the method is itself a parameter, those of LoRA exist in its trials only.
    """
    given, replaced = template.to_json_dict(), {dimension.path for dimension in own}
    methods = _methods(template, own)
    family = tuple(name for name in methods if name in _LORA)
    when = Condition("method", family) if 0 < len(family) < len(methods) else None
    space = (*(_lora(when) if family else ()), *_rate(template, methods, when), *_loop())
    return tuple(item for item in space if item.path not in replaced and read(given, item.path) is None)


def _methods(template: TrialTemplate, own: Sequence[Dimension]) -> tuple[str, ...]:
    """Return the methods that trials may have."""
    searched = (item.choices for item in own if item.path == "method" and isinstance(item, Categorical))
    return next(searched, (template.method.value,))


def _lora(when: Condition | None) -> Iterator[Dimension]:
    yield Categorical("lora.rank", _RANKS, when)
    yield Categorical("lora.alpha", _ALPHAS, when)
    yield Numeric("lora.dropout", 0.0, _MOST_DROPOUT, when=when)
    yield Categorical("lora.targetModules", _TARGETS, when)


def _rate(template: TrialTemplate, methods: Sequence[str], when: Condition | None) -> Iterator[Dimension]:
    """Yield the learning rate: the guide's span, or that around another method's own rate.

    Of several methods with rates of their own none is yielded: there is no span for all.
    """
    if any(name in _LORA for name in methods):
        low, high = LORA_LEARNING_RATES
    elif len(methods) == 1:
        prefix = template.prefix_tuning
        low, high = usual_span(method_rate(Method(methods[0]), prefix is not None and prefix.projection))
    else:
        return
    yield Numeric("training.learningRate", float(plain(low)), float(plain(high)), log=True, when=when)


def _loop() -> Iterator[Dimension]:
    yield Numeric("training.warmup", 0.0, _MOST_WARMUP)
    yield Numeric("training.weightDecay", 0.0, _MOST_WEIGHT_DECAY)


def guide_points(template: TrialTemplate, dimensions: Sequence[Dimension]) -> tuple[tuple[str, dict[str, str]], ...]:
    """Return the guide's tuned configurations, as far as they are searched, each with its name.

    They are LoRA's. One that is no part of a point of the space is left out, as is one that is like an earlier one by
    then. Their epochs are left out, since all trials have the same length.
    """
    searched = {dimension.path: dimension for dimension in dimensions}
    method = searched.get("method")
    if method is None and template.method not in _LORA:
        return ()
    points: dict[str, dict[str, str]] = {}
    for name, preset in PRESETS.items():
        values = {path: text for path, text in _configuration(preset).items() if path in searched}
        if isinstance(method, Categorical):
            values["method"] = next((choice for choice in method.choices if choice in _LORA), "")
        placed = part_of_point(dimensions, values)
        if placed and placed not in points.values():
            points[name.value] = placed
    return tuple(points.items())


def _configuration(preset: PresetValues) -> dict[str, str]:
    return {
        "lora.rank": str(preset.rank),
        "lora.alpha": str(preset.alpha),
        "lora.dropout": plain(preset.dropout),
        "lora.targetModules": ",".join(preset.target_modules),
        "training.learningRate": plain(preset.learning_rate),
        "training.warmup": plain(preset.warmup),
        "training.weightDecay": "0",
    }
