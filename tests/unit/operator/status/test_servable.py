"""A LoRAJob or AdapterMerge says whether a server could take its result, as soon as that is known."""

from __future__ import annotations

from typing import Any

import pytest

from tunery_api.kinds import Kind
from tunery_operator.observed.attempt import Attempt
from tunery_operator.observed.metadata import Key, Owner
from tunery_operator.status.compute import compute_status
from tunery_operator.status.snapshot import Snapshot

from kit.operator.statuskit import NOW, ended, job, running, status_for


@pytest.mark.parametrize(
    ("resolved", "words"),
    [
        ({"method": "LoRA", "rank": 512}, None),
        ({"method": "QLoRA", "rank": 16}, None),
        ({"method": "OfALaterVersion"}, None),
        (
            {"method": "DoRA", "rank": 16},
            "its method is DoRA; only LoRA is served. Merge it alone with an AdapterMerge",
        ),
        ({"method": "LoRA", "rank": 1024}, "its rank is 1024, engine.maxRank is 512, and none above 512 is served."),
    ],
)
def test_it_is_said_while_it_trains(resolved: dict[str, Any], words: str | None) -> None:
    status = status_for(running(), status={"resolved": resolved})
    said = status["resolved"].pop("unservable", None)
    assert status["resolved"] == resolved
    assert (said or "").startswith(words or "")
    assert (said is None) == (words is None)


def test_a_method_that_the_manifest_names_is_judged_before_anything_runs() -> None:
    status = status_for(main=None, method="IA3", preflight_needed=True)
    assert "its method is IA3" in status["resolved"]["unservable"]
    auto = status_for(
        main=None, preflight_needed=True, status=status | {"resolved": {**status["resolved"], "method": "LoRA"}}
    )
    assert "unservable" not in auto["resolved"], "preflight has chosen one that is served"


def test_a_merge_of_too_many_ranks_says_so_beside_its_result() -> None:
    owner = Owner(Key(Kind.ADAPTERMERGE, "ns", "m"), "uid-1", 3, {})
    adapter = {"uri": "s3://adapters/m", "manifestSha256": "ab" * 32, "sizeBytes": 1, "rank": 640}
    done = Attempt(job(complete=True), (ended(says={"adapter": adapter}),))
    status = compute_status(Snapshot(Kind.ADAPTERMERGE, owner, {}, NOW, main=done))
    assert status["phase"] == "Succeeded"
    assert status["adapter"].pop("unservable").startswith("its rank is 640")
    assert status["adapter"] == adapter
