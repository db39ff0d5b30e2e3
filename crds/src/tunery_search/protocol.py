"""Provide the question to a sampler, and its answer."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from pydantic import Field

from tunery_api.fields import ApiModel
from tunery_api.lorasweep import SamplerType
from tunery_search.dimensions import Categorical, Numeric

IMPORTANCE_FROM: Final = 20
"""Complete trials from which on importances are told: on fewer one without any effect looks like one that matters."""


class ToldState(StrEnum):
    """What a sampler makes of a trial."""

    COMPLETE = "Complete"
    PRUNED = "Pruned"
    """Worse than all that are complete: the better, the longer it ran."""
    RUNNING = "Running"
    """Somebody looks at that place already."""
    FAILED = "Failed"
    """It says nothing of its values."""


class ToldTrial(ApiModel):
    """A trial that is known."""

    number: int
    state: ToldState
    values: dict[str, str]
    value: float | None = None
    course: tuple[tuple[int, float], ...] = ()
    """Of a trial that was pruned: its losses, each with the percentage of its steps."""


class Fixed(ApiModel):
    """A trial whose values are given, all or some."""

    origin: str
    values: dict[str, str]


class Ask(ApiModel):
    """A question: what to try next."""

    seed: int
    sampler: SamplerType
    startup: int
    space: tuple[Categorical | Numeric, ...]
    earlier: tuple[ToldTrial, ...] = ()
    """Trials of other sweeps to learn from, points of this space."""
    trials: tuple[ToldTrial, ...] = ()
    fixed: dict[int, Fixed] = Field(default_factory=dict)
    """By the number of the trial."""
    numbers: tuple[int, ...] = ()
    """Of the trials that are to be made."""


class Suggestion(ApiModel):
    """A trial to make."""

    number: int
    origin: str
    values: dict[str, str]


class Answer(ApiModel):
    """What to try next, and what has mattered."""

    suggestions: tuple[Suggestion, ...] = ()
    """For the numbers that were asked for, in that order; fewer: the space has no other points."""
    importance: dict[str, float] = Field(default_factory=dict)
    """By path, the largest first; empty where too little is known."""
