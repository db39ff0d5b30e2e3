"""A hint, followed to the letter, mends: each failure is made on the real node, and then the job succeeds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from .hints import NAMESPACE, ROWS_OF, Place
from kit.jobs import Job
from kit.kubectl import Kubectl
from kit.tenant import create_tenant

TOLD_SECONDS = 400
"""All rows are under way at once on two cores."""


@pytest.fixture(scope="module")
def places(kubectl: Kubectl, environment: dict[str, str], installed: None, s3: Any) -> Iterator[dict[str, Place]]:
    """Every row's job, applied: what it stumbles over is there before."""
    kubectl.delete("namespace", NAMESPACE)
    create_tenant(kubectl, NAMESPACE, environment)
    made = {name: Place(name, kubectl, s3, environment) for name in ROWS_OF}
    for name, place in made.items():
        place.remove(f"s3://adapters/{NAMESPACE}/{name}")
        ROWS_OF[name].before(place)
    for name, place in made.items():
        place.job(**ROWS_OF[name].blocks).apply()
    yield made
    kubectl.delete("namespace", NAMESPACE, wait=False)


@pytest.fixture(scope="module")
def mended(places: dict[str, Place]) -> dict[str, tuple[dict[str, Any], Job] | AssertionError]:
    """What each status said, and the job that must succeed since its hint was followed; or why it was never said."""
    found: dict[str, tuple[dict[str, Any], Job] | AssertionError] = {}
    for name, place in places.items():
        row, job = ROWS_OF[name], place.job(**ROWS_OF[name].blocks)
        try:
            failure = job.wait_failure(row.reason, TOLD_SECONDS)
            found[name] = failure, row.follow(place, job)
        except AssertionError as error:
            found[name] = error
    return found


@pytest.mark.parametrize("name", ROWS_OF)
def test_a_hint_that_is_followed_mends(
    name: str, mended: dict[str, tuple[dict[str, Any], Job] | AssertionError]
) -> None:
    row, met = ROWS_OF[name], mended[name]
    if isinstance(met, AssertionError):
        raise met
    failure, job = met
    assert row.said in failure["message"]
    assert row.hint in failure["hint"]
    status = job.wait_phase("Succeeded", timeout=600)
    assert "failure" not in status
    assert status["adapter"]["manifestSha256"]
