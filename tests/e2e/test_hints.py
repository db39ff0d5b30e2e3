"""A hint, followed to the letter, mends: each failure is made on the real node, and then the job succeeds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from e2e.hints import NAMESPACE, ROWS_OF, Place

from kit.jobs import Job
from kit.kubectl import Kubectl
from kit.tenant import create_tenant

TOLD_SECONDS = 900
"""All rows are under way at once on two cores."""
pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]
"""The first test waits for all that the others look at."""


@pytest.fixture(scope="module")
def places(kubectl: Kubectl, environment: dict[str, str], installed: None, s3: Any) -> Iterator[dict[str, Place]]:
    """Every row's job, applied: what it stumbles over is there before."""
    kubectl.delete("namespace", NAMESPACE)
    create_tenant(kubectl, NAMESPACE, environment)
    ways = ExitStack()
    made = {name: Place(name, kubectl, s3, environment, ways) for name in ROWS_OF}
    for name, place in made.items():
        place.remove(f"s3://adapters/{NAMESPACE}/{name}")
        ROWS_OF[name].before(place)
    for name, place in made.items():
        place.job(**ROWS_OF[name].blocks).apply()
    with ways:
        yield made
    kubectl.delete("namespace", NAMESPACE, wait=False)


@pytest.fixture(scope="module")
def mended(places: dict[str, Place], kubectl: Kubectl) -> dict[str, tuple[dict[str, Any], Job]]:
    """What each status said, and the job that must succeed since its hint was followed, as soon as it was said."""
    found: dict[str, tuple[dict[str, Any], Job]] = {}
    end = time.monotonic() + TOLD_SECONDS
    while len(found) < len(places) and time.monotonic() < end:
        told = {body["metadata"]["name"]: body.get("status", {}) for body in kubectl.list("lorajobs", NAMESPACE)}
        for name in places.keys() - found.keys():
            row, failure = ROWS_OF[name], told.get(name, {}).get("failure", {})
            if failure.get("reason") == row.reason:
                found[name] = failure, row.follow(places[name], places[name].job(**row.blocks))
        time.sleep(1)
    return found


@pytest.mark.parametrize("name", ROWS_OF)
def test_a_hint_that_is_followed_mends(
    name: str, places: dict[str, Place], mended: dict[str, tuple[dict[str, Any], Job]]
) -> None:
    row = ROWS_OF[name]
    assert name in mended, places[name].job(**row.blocks).story()
    failure, job = mended[name]
    assert row.said in failure["message"]
    assert row.hint in failure["hint"]
    status = job.wait_phase("Succeeded", timeout=600)
    assert "failure" not in status
    assert status["adapter"]["manifestSha256"]
