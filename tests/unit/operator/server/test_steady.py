"""Whatever a server looks like, its status is valid, computing it again changes nothing, and no event is told twice."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from tunery_api.errors import FieldError
from tunery_api.reasons import FailureReason
from tunery_api.remedies import edit
from tunery_api.serving import Desired, ReportedAdapter
from tunery_operator.observed.deployment import ContainerView, ServerPodView
from tunery_operator.planning.resolution import (
    PendingAdapter,
    RejectedAdapter,
    Resolution,
    RetainedAdapter,
    SkippedObject,
)
from tunery_operator.status.server.snapshot import ReplicaReport, ServerSnapshot

from kit.operator.servers import NOW, deployment, digest, heard, reported, server_pod, wanted
from kit.operator.serverstatuskit import compute, snapshot

NAMES = st.sampled_from(["a", "b", "c", "d"])
REASONS = st.sampled_from([None, "AdapterCorrupt", "StorageUnavailable", "OfALaterVersion"])
DIGESTS = st.sampled_from([None, digest("x"), digest("y")])


def _reported(name: str, state: str, served: str | None, wanted_one: str | None, reason: str | None) -> ReportedAdapter:
    message = reason and f"{name}: {reason}"
    if state in ("Served", "Cold") and served is None:
        served = digest("x")
    used = 1_767_000_000.0 if wanted_one else None
    return reported(
        name, state, manifest_sha256=served, wanted_sha256=wanted_one, reason=reason, message=message, last_used=used
    )


STATES = st.sampled_from(["Served", "Cold", "Loading", "Waiting", "Failed", "Unknown"])
REPORTED = st.builds(_reported, NAMES, STATES, DIGESTS, DIGESTS, REASONS)
HEARD = st.builds(
    lambda adapters, ago: heard(*adapters, seconds_ago=ago),
    st.lists(REPORTED, max_size=4, unique_by=lambda item: item.name),
    st.sampled_from([0.0, 10.0, 29.0, 31.0, 500.0]),
)
CONTAINERS = st.builds(
    ContainerView,
    st.sampled_from(["model", "gateway", "engine"]),
    restarts=st.integers(0, 3),
    waiting_reason=st.sampled_from([None, "CrashLoopBackOff", "ImagePullBackOff"]),
    exit_code=st.sampled_from([None, 0, 1]),
    exit_message=st.sampled_from(["", "ValueError: x", "{"]),
)


def _pod(name: str, ready: bool, deleting: bool, phase: str, container: ContainerView) -> ServerPodView:
    return server_pod(name, ready=ready, deleting=deleting, phase=phase, containers=(container,))


PODS = st.lists(
    st.builds(
        _pod, st.sampled_from("pqrs"), st.booleans(), st.booleans(), st.sampled_from(["Running", "Failed"]), CONTAINERS
    ),
    max_size=3,
    unique_by=lambda pod: pod.name,
)
RESOLUTIONS = st.builds(
    lambda served, waits, refuses, keeps: Resolution(
        Desired(revision=1, adapters=[wanted(name) for name in sorted(served)]),
        tuple(PendingAdapter(name, f"LoRAJob/{name}", "is Training") for name in sorted(waits - served)),
        tuple(
            RejectedAdapter(name, f"LoRAJob/{name}", FailureReason.RANK_TOO_HIGH, "m", edit("h"))
            for name in sorted(refuses)
        ),
        (SkippedObject("LoRAJob/z", "is for base y"),),
        tuple(RetainedAdapter(name, f"LoRAJob/{name}", "is gone") for name in sorted(keeps & served)),
    ),
    *(st.sets(NAMES) for _ in range(4)),
)


def _snapshot(
    pods: list[ServerPodView],
    reports: dict[str, ReplicaReport],
    resolution: Resolution | None,
    replicas: int,
    valid: bool,
) -> ServerSnapshot:
    found = snapshot(*pods, reports=reports, replicas=replicas, rollout=deployment(replicas), resolution=resolution)
    return found if valid else replace(found, spec=None, errors=(FieldError("spec.x", "is wrong"),))


SNAPSHOTS = st.builds(
    _snapshot,
    PODS,
    st.dictionaries(st.sampled_from("pqrs"), HEARD),
    st.one_of(st.none(), RESOLUTIONS),
    st.integers(0, 3),
    st.booleans(),
)


@settings(max_examples=80, deadline=None)
@given(SNAPSHOTS, SNAPSHOTS)
def test_a_status_is_steady_from_wherever_it_came(first: ServerSnapshot, second: ServerSnapshot) -> None:
    before = compute(first).status
    outcome = compute(second, before)
    again = compute(second, outcome.status)
    assert (again.status, again.events) == (outcome.status, ())
    assert outcome.requeue_after is None or outcome.requeue_after > 0


@settings(max_examples=60, deadline=None)
@given(SNAPSHOTS)
def test_an_operator_that_starts_anew_says_at_first_what_the_one_before_it_said(found: ServerSnapshot) -> None:
    """As long as all replicas that get requests had reported, and nothing else has changed."""
    fresh = {uid: replace(item, at=NOW) for uid, item in found.reports.items()}
    known = tuple(pod for pod in found.pods if pod.uid in fresh and pod.ready)
    whole = replace(found, reports=fresh, pods=known)
    before = compute(whole).status
    names = {item.name for item in whole.resolution.desired.adapters} if whole.resolution is not None else set()
    heard_of = {item.name for report in fresh.values() for item in report.state.adapters}
    after = compute(replace(whole, reports={}, watching_since=NOW), before, 5).status
    for entry, old in zip(after.get("adapters", []), before.get("adapters", []), strict=False):
        if entry["name"] in names & heard_of:
            assert (entry["name"], entry["state"]) == (old["name"], old["state"])
