"""Questions to the sampler of a sweep: spaces, and trials of every state."""

from __future__ import annotations

from typing import Any

from tunery_api.lorasweep import SamplerType
from tunery_search.dimensions import Categorical, Condition, Dimension, Numeric
from tunery_search.history import Observation, ObservationState, Suggestion, SuggestionRequest
from tunery_search.optuna_sampler import compute_suggestions

RATE = Numeric("training.learningRate", 1e-5, 1e-2, log=True)
RANK = Categorical("lora.rank", ("4", "8", "16", "32", "64"))
SPACE: tuple[Dimension, ...] = (
    RANK,
    RATE,
    Numeric("lora.dropout", 0.0, 0.2, step=0.05),
    Numeric("training.epochs", 1, 3, integer=True),
)
SIXTY: tuple[Dimension, ...] = (
    RANK,
    Categorical("lora.alpha", ("8", "16", "32")),
    Numeric("lora.dropout", 0.0, 0.15, step=0.05),
)
LORA = Condition("method", ("LoRA", "DoRA"))
METHODS: tuple[Dimension, ...] = (
    Categorical("method", ("LoRA", "DoRA", "IA3", "PromptTuning")),
    Categorical("lora.rank", ("4", "8"), when=LORA),
    Numeric("lora.dropout", 0.0, 0.2, when=LORA),
    Numeric("promptTuning.virtualTokens", 8, 64, integer=True, log=True, when=Condition("method", ("PromptTuning",))),
    RATE,
)


def question(space: tuple[Dimension, ...] = SPACE, *, sampler: str = "TPE", **fields: Any) -> SuggestionRequest:
    """Return a question; `fields` replace those of the simplest one."""
    known = {"seed": 42, "startup": 4, "numbers": (0,), **fields}
    return SuggestionRequest(sampler=SamplerType(sampler), space=space, **known)


def history(space: tuple[Dimension, ...], number: int) -> tuple[Observation, ...]:
    """Return random trials, of each state."""
    made = compute_suggestions(question(space, sampler="Random", seed=7, numbers=tuple(range(number)))).suggestions
    states = (
        ObservationState.COMPLETE,
        ObservationState.COMPLETE,
        ObservationState.PRUNED,
        ObservationState.RUNNING,
        ObservationState.FAILED,
    )
    return tuple(
        Observation(
            number=each.number,
            state=(state := states[each.number % len(states)]),
            values=each.values,
            value=1.0 + each.number / 10 if state is ObservationState.COMPLETE else None,
            intermediate_values=((25, 2.0),) if state is ObservationState.PRUNED else (),
        )
        for each in made
    )


def complete(made: Suggestion, value: float) -> Observation:
    """Return the complete trial of a suggestion, with its loss."""
    return Observation(number=made.number, state=ObservationState.COMPLETE, value=value, values=made.values)
