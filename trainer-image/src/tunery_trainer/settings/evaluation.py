"""When the held-out rows are measured, and whether the best weights or the last ones are published."""

from __future__ import annotations

import math
from typing import Final

from tunery_api.methods import Method
from tunery_api.training import PublishedWeights
from tunery_trainer.settings.decisions import Decisions, Fallback
from tunery_trainer.settings.sizing import DataFacts
from tunery_trainer.settings.types import EvaluationSettings, SettingSource, TrainingSettings

MOST_TIMES: Final = 8
"""Evaluations of a run where the manifest leaves them open."""
_SHARE: Final = 0.2
"""Tokens evaluated for each token trained: about 5 % of the time, as a pass forward costs a quarter of a training pass
that recomputes activations."""


def evaluation_settings(decisions: Decisions, training: TrainingSettings, data: DataFacts | None) -> EvaluationSettings:
    """Return them, and record each. By counts and not by a clock, so that a rerun evaluates after the same steps."""
    block = decisions.spec.evaluation
    times = None
    if block.every_steps is None:
        times = decisions.pick(
            "evaluation.times", block.times, None, Fallback(_times(training, data), SettingSource.RULE)
        )
    else:
        decisions.note("evaluation.everySteps", block.every_steps, SettingSource.MANIFEST)
    last = decisions.method is Method.ADALORA and block.early_stopping_patience is None
    otherwise = (
        # Before its last phase it has more rank than was asked for.
        Fallback(PublishedWeights.LAST, SettingSource.RULE)
        if last
        else Fallback(PublishedWeights.BEST, SettingSource.DEFAULT)
    )
    return EvaluationSettings(
        every_steps=block.every_steps,
        times=times,
        publish=decisions.pick("evaluation.publish", block.publish, None, otherwise),
        generation=block.generation,
        patience=block.early_stopping_patience,
    )


def evaluated_after(settings: EvaluationSettings, steps: int) -> frozenset[int]:
    """Return the optimizer steps of a run of `steps` after which it is evaluated; the last one is among them.

    Evaluation k of n comes after step ceil(k * steps / n).
    """
    if settings.times is None:
        every = settings.every_steps or steps
        return frozenset(range(every, steps, every)) | {steps}
    return frozenset(-(-count * steps // settings.times) for count in range(1, settings.times + 1))


def _times(training: TrainingSettings, data: DataFacts | None) -> int:
    """Return as many as cost about a twentieth of the time, one at the end at least."""
    if data is None or not data.held_out_share:
        return MOST_TIMES
    passes = training.epochs
    if passes is None:
        passes = (training.max_steps or 0) * training.batch_size * training.gradient_accumulation / data.sequences
    return max(1, min(MOST_TIMES, math.floor(_SHARE * passes / data.held_out_share)))
