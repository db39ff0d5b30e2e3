"""What is suggested would mend it if it were followed to the letter: no step of it ends where the run has ended."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tunery_trainer.diagnosis import findings as said
from tunery_trainer.diagnosis.advice import decimal, usual_rates
from tunery_trainer.diagnosis.learning import Worse
from tunery_trainer.diagnosis.paired import Difference

from kit.diagnosed import judged, logged, settings_of, subject_of


def test_smaller_steps_are_suggested_only_where_there_are_more_of_them() -> None:
    """With maxSteps there are so many, whatever a step holds."""
    loop = {"batchSize": 4, "gradientAccumulation": 4}
    for training, asked in (({"epochs": 1}, ["epochs", "gradientAccumulation"]), ({"maxSteps": 4}, ["maxSteps"])):
        advice = said.too_few_steps(settings_of(training=loop | training), 4).advice
        assert [each.field for each in advice] == [f"training.{field}" for field in asked]


@pytest.mark.parametrize(
    ("blocks", "rate", "suggest"),
    [
        ({}, 0.5, "5e-4"),
        ({}, 1.6e-3, "5e-4"),
        ({}, 1.5e-3, "5e-4"),  # a third
        ({}, 1.2e-3, "4e-4"),
        ({"task": "DPO"}, 0.5, "1.2e-4"),
        ({"method": "IA3"}, 0.5, "3e-3"),
        ({"method": "IA3"}, 0.03, "1e-2"),
        ({"lora": {"rank": 32}, "training": {"scaleLearningRateWithRank": True}}, 0.5, "1e-3"),  # before scaling
        ({"lora": {"rank": 16}, "training": {"scaleLearningRateWithRank": True}}, 0.5, "7e-4"),  # 7.1e-4 is outside
    ],
)
def test_of_a_rate_far_above_the_usual_span_no_share_is_suggested_but_what_works(
    blocks: dict[str, Any], rate: float, suggest: str
) -> None:
    training = {"maxGradNorm": 0, "warmup": 0.02, "learningRate": rate, **blocks.get("training", {})}
    settings = settings_of(**{**blocks, "training": training})
    advice = said.loss_rising(settings, None).advice
    assert (advice[0].suggest, advice[0].now) == (suggest, decimal(rate))
    # Clipping alone would end the same there, so it does not stand beside it with an "or".
    far = rate > 3 * 5e-4 and suggest != "1e-2"
    assert [each.field for each in advice[1:]] == ([] if far else ["training.maxGradNorm", "training.warmup"])
    assert said.gradient_not_finite(settings, math.inf).advice[-1].suggest == suggest
    worse = said.worse_than_base(settings, Worse(11.0, Difference(9.0, 1.0), learned=False, in_a_row=1), 2.0).advice[0]
    assert float(worse.suggest or 0) <= float(suggest)
    followed = settings_of(**{**blocks, "training": {**training, "learningRate": float(suggest)}})
    assert followed.training.learning_rate <= usual_rates(followed)[1] * (1 + 1e-9)


def test_a_loss_that_has_risen_far_above_the_bases_is_told_as_so_many_times_that() -> None:
    """1.3 times its best would be true as well, and hide that nothing of the model is left."""
    rising = judged(logged([2.0] * 8 + [9.0] * 24), subject_of(32))
    message = rising.findings[0].message or ""
    assert "it is 9, 4.5 times the held-out loss of the base model (2)." in message
    little = judged(logged([1.0] * 8 + [2.8] * 24), subject_of(32))
    assert "more than 1.3 times above its best." in (little.findings[0].message or "")


@pytest.mark.parametrize("total", [41, 50, 60, 69, 700, 100_000])
def test_the_fraction_that_is_suggested_holds_out_the_rows_that_are_needed(total: int) -> None:
    """3 of 51 rows are 0.05 as well as 3 of 69; by the one 0.133 would be 7 rows, and found too few again."""
    rows = 3
    fraction = round(rows / total, 3) or 0.001
    finding = said.evaluation_too_small(rows, None, fraction, total)
    (advice,) = finding.advice
    assert advice.field == "dataset.evaluation.fraction"
    assert round(total * float(advice.suggest or 0)) >= 8
    assert "With 8 rows or more, the run measures how many are enough." in finding.message


def test_so_many_rows_as_the_error_asks_for_are_suggested_where_it_is_known() -> None:
    (advice,) = said.evaluation_too_small(20, 0.0612, 0.05, 401).advice
    asked = math.ceil(20 * max(2.0, (0.0612 / 0.05) ** 2))
    assert round(401 * float(advice.suggest or 0)) >= asked
