"""Questions to the sampler of a sweep: spaces, and trials of every state."""

from __future__ import annotations

from typing import Any

from tunery_api.lorasweep import SamplerType
from tunery_search.dimensions import Categorical, Condition, Dimension, Numeric
from tunery_search.history import Ask, Suggestion, ToldState, ToldTrial
from tunery_search.optuna_sampler import answer

RATE = Numeric("training.learningRate", 1e-5, 1e-2, log=True)
RANK = Categorical("lora.rank", ("4", "8", "16", "32", "64"))
SPACE: tuple[Dimension, ...] = (
    RANK,
    RATE,
    Numeric("lora.dropout", 0.0, 0.2, step=0.05),
    Numeric("training.epochs", 1, 3, whole=True),
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
    Numeric("promptTuning.virtualTokens", 8, 64, whole=True, log=True, when=Condition("method", ("PromptTuning",))),
    RATE,
)


def question(space: tuple[Dimension, ...] = SPACE, *, sampler: str = "TPE", **fields: Any) -> Ask:
    """Return a question; `fields` replace those of the simplest one."""
    known = {"seed": 42, "startup": 4, "numbers": (0,), **fields}
    return Ask(sampler=SamplerType(sampler), space=space, **known)


def history(space: tuple[Dimension, ...], number: int) -> tuple[ToldTrial, ...]:
    """Return random trials, of each state."""
    made = answer(question(space, sampler="Random", seed=7, numbers=tuple(range(number)))).suggestions
    states = (ToldState.COMPLETE, ToldState.COMPLETE, ToldState.PRUNED, ToldState.RUNNING, ToldState.FAILED)
    return tuple(
        ToldTrial(
            number=each.number,
            state=(state := states[each.number % len(states)]),
            values=each.values,
            value=1.0 + each.number / 10 if state is ToldState.COMPLETE else None,
            course=((25, 2.0),) if state is ToldState.PRUNED else (),
        )
        for each in made
    )


def complete(made: Suggestion, value: float) -> ToldTrial:
    """Return the complete trial of a suggestion, with its loss."""
    return ToldTrial(number=made.number, state=ToldState.COMPLETE, value=value, values=made.values)
