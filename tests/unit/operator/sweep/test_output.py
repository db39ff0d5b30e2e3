"""The preflight of a sweep's first trial is told where the sweep itself will publish; nobody else's is."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tunery_api.names import SWEEP_OUTPUT_ANNOTATION
from tunery_api.validation import parse_lorajob
from tunery_operator.planning.job import Platform
from tunery_operator.planning.lorajob import ResolvedInputs, plan_preflight, plan_train

from kit.operator.objects import lorajob
from kit.operator.settings import settings
from kit.operator.statuskit import OWNER

PLATFORM = Platform(settings())
TRIAL = parse_lorajob(lorajob("x", output={"uri": "s3://adapters/support-trials/uid-9/000"}))


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("s3://adapters/support", "s3://adapters/support"),
        (None, None),
        ("", None),
        ("s3://adapters/others", None),
        ("s3://adapters/suppor", None),
        ("file:///etc", None),
    ],
)
def test_a_trial_looks_at_the_place_beside_which_it_publishes_and_at_no_other(
    place: str | None, told: str | None
) -> None:
    owner = replace(OWNER, annotations={} if place is None else {SWEEP_OUTPUT_ANNOTATION: place})
    assert plan_preflight(TRIAL, owner, PLATFORM, ResolvedInputs()).run.also_free == told


def test_training_does_not_look_again() -> None:
    owner = replace(OWNER, annotations={SWEEP_OUTPUT_ANNOTATION: "s3://adapters/support"})
    assert plan_train(TRIAL, owner, PLATFORM, ResolvedInputs()).run.also_free is None
