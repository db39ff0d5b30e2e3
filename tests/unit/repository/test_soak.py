"""The soak's second opinion: it finds each lie, and calls nothing a lie that is true."""

from __future__ import annotations

from typing import Any

import pytest

from chaos.soak.truth import Children, children_by_owner, complaints

Json = dict[str, Any]


def pod(phase: str = "Running", role: str = "train", *, leaving: bool = False) -> Json:
    meta: Json = {"labels": {"tunery.dev/role": role}} | ({"deletionTimestamp": "now"} if leaving else {})
    return {"metadata": meta, "status": {"phase": phase}}


def job(condition: str = "", *, suspend: bool = False) -> Json:
    conditions = [{"type": condition, "status": "True"}] if condition else []
    return {"spec": {"suspend": suspend}, "status": {"conditions": conditions}}


def lorajob(phase: str, *, suspend: bool = False, **status: Any) -> Json:
    return {"metadata": {"uid": "u"}, "spec": {"suspend": suspend}, "status": {"phase": phase, **status}}


DONE, WENT_WRONG = {"adapter": {}}, {"failure": {}}


@pytest.mark.parametrize(
    ("said", "held"),
    [
        (lorajob("Training"), Children({"train": job()}, (pod(),))),
        (lorajob("Starting"), Children({"train": job()}, (pod(),))),
        (lorajob("Starting"), Children({"train": job()}, (pod("Pending"),))),
        (lorajob("Preflight"), Children({"preflight": job()}, (pod(role="preflight"),))),
        (lorajob("Succeeded", **DONE), Children({"train": job("Complete")}, (pod("Succeeded"),))),
        (lorajob("Failed", **WENT_WRONG), Children({"train": job("Failed")}, (pod("Failed"),))),
        (lorajob("Failed", **WENT_WRONG), Children({}, (pod(leaving=True),))),
        (lorajob("Suspended", suspend=True), Children({"train": job(suspend=True)})),
        (lorajob("Suspending", suspend=True), Children({"train": job(suspend=True)}, (pod(leaving=True),))),
    ],
)
def test_a_true_status_is_left_in_peace(said: Json, held: Children) -> None:
    assert complaints(said, held) == []


@pytest.mark.parametrize(
    ("said", "held", "complaint"),
    [
        (lorajob("Training"), Children({"train": job()}), "no pod trains"),
        (lorajob("Training"), Children({"train": job()}, (pod(leaving=True),)), "no pod trains"),
        (lorajob("Succeeded", **DONE), Children({"train": job()}), "is not complete"),
        (lorajob("Succeeded"), Children({"train": job("Complete")}), "no adapter"),
        (lorajob("Failed"), Children({"train": job("Failed")}), "no failure"),
        (lorajob("Failed", **WENT_WRONG), Children({"train": job()}, (pod(),)), "goes on"),
        (lorajob("Suspended", suspend=True), Children({}, (pod(leaving=True),)), "has not ended"),
        (lorajob("Suspended"), Children({"train": job(suspend=True)}), "nobody asked"),
        (lorajob("Suspending", suspend=True), Children({"train": job(suspend=True)}), "no pod is left"),
        (lorajob("Preflight"), Children({"train": job()}), "there is a train Job"),
        (lorajob("Uploading"), Children({"preflight": job()}), "there is no train Job"),
        (lorajob(""), Children(), "nothing is said"),
        (lorajob("Pending"), Children({"train": job()}, (pod(),)), "a pod trains"),
        (lorajob("Uploading"), Children({"train": job("Complete")}), "is complete"),
        (lorajob("Training"), Children({"train": job("Failed")}, (pod(),)), "has failed"),
        (lorajob("Starting"), Children({"train": job(suspend=True)}), "its Job is suspended"),
        (lorajob("Training"), Children({"train": job()}, (pod(), pod("Pending"))), "two pods"),
    ],
)
def test_a_lie_is_found(said: Json, held: Children, complaint: str) -> None:
    assert any(complaint in text for text in complaints(said, held))


def test_children_are_found_by_the_uids_of_their_owners() -> None:
    owned = {"ownerReferences": [{"uid": "u", "controller": True}], "labels": {"tunery.dev/role": "train"}}
    train = {"metadata": {"uid": "j", **owned}}
    of_job = {"metadata": {"ownerReferences": [{"uid": "j", "controller": True}]}}
    assert children_by_owner([train], [of_job])["u"] == Children({"train": train}, (of_job,))
