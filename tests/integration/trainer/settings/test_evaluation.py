"""After which steps the held-out rows are measured, and which weights are published, where the manifest is silent."""

from __future__ import annotations

from typing import Any

import pytest

from tunery_api.training import PublishedWeights
from tunery_trainer.settings.auto_method import method_choices
from tunery_trainer.settings.evaluation import MOST_TIMES, evaluated_after
from tunery_trainer.settings.loop import Chosen
from tunery_trainer.settings.resolve import resolve
from tunery_trainer.settings.sizing import DataFacts
from tunery_trainer.settings.types import EvaluationSettings, ModelFacts, RunSettings

from kit.training import CPU, spec_of

LLAMA = ModelFacts("LlamaForCausalLM", 10_000, 2, 64, 256, None, tied_embeddings=True, packable=True)


def settings(times: int | None = None, every: int | None = None) -> EvaluationSettings:
    return EvaluationSettings(every, times, PublishedWeights.BEST, generation=None, patience=None)


@pytest.mark.parametrize(
    ("times", "steps", "after"),
    [
        (1, 100, {100}),
        (2, 100, {50, 100}),
        (4, 10, {3, 5, 8, 10}),
        (8, 60, {8, 15, 23, 30, 38, 45, 53, 60}),
        (8, 3, {1, 2, 3}),
        (16, 1, {1}),
    ],
)
def test_evaluations_at_equal_distances(times: int, steps: int, after: set[int]) -> None:
    assert evaluated_after(settings(times=times), steps) == after


@pytest.mark.parametrize(("every", "steps", "after"), [(5, 20, {5, 10, 15, 20}), (7, 20, {7, 14, 20}), (50, 20, {20})])
def test_evaluations_every_so_many_steps(every: int, steps: int, after: set[int]) -> None:
    assert evaluated_after(settings(every=every), steps) == after


def resolved(share: float | None, **blocks: Any) -> RunSettings:
    """Return the settings of a run of 1,000 sequences, with so many tokens held out for each to train on."""
    spec = spec_of({"method": "LoRA", **blocks})
    choice = method_choices(spec, 1000, CPU)[0]
    return resolve(spec, LLAMA, CPU, choice, Chosen(DataFacts(1000, packed=False, held_out_share=share)))


@pytest.mark.parametrize(
    ("share", "training", "times"),
    [
        (1 / 19, {"epochs": 1}, 3),  # a twentieth is held out
        (1 / 19, {"epochs": 3}, 8),
        (1 / 9, {"epochs": 1}, 1),
        (2.0, {"epochs": 1}, 1),  # an evaluation set that is larger than the training set
        (1 / 999, {"epochs": 1}, MOST_TIMES),
        (1 / 19, {"maxSteps": 250, "batchSize": 4, "gradientAccumulation": 2}, 7),  # two passes
        (None, {"epochs": 1}, MOST_TIMES),
    ],
)
def test_as_many_as_take_a_twentieth_of_the_time(share: float | None, training: dict[str, Any], times: int) -> None:
    found = resolved(share, training=training)
    assert (found.evaluation.times, found.evaluation.every_steps) == (times, None)
    assert next(value for value in found.values if value.name == "evaluation.times").source == "Rule"


def test_the_manifest_decides() -> None:
    assert resolved(0.1, evaluation={"times": 12}).evaluation.times == 12
    every = resolved(0.1, evaluation={"everySteps": 40}).evaluation
    assert (every.times, every.every_steps) == (None, 40)


@pytest.mark.parametrize(
    ("blocks", "published"),
    [
        ({}, "Best"),
        ({"evaluation": {"publish": "Last"}}, "Last"),
        ({"method": "AdaLoRA"}, "Last"),
        ({"method": "AdaLoRA", "evaluation": {"earlyStoppingPatience": 2}}, "Best"),
        ({"method": "AdaLoRA", "evaluation": {"publish": "Best"}}, "Best"),
    ],
)
def test_which_weights_are_published(blocks: dict[str, Any], published: str) -> None:
    assert resolved(0.1, **blocks).evaluation.publish == published
