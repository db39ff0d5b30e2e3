"""Where pods run and what they carry: the manifest first, then the platform."""

from __future__ import annotations

from typing import Any

from tunery_api.jobs import SchedulingSpec, Toleration, TolerationOperator
from tunery_api.kinds import Kind
from tunery_operator.observed.metadata import Key, Owner
from tunery_operator.planning.job import checkpoints_uri
from tunery_operator.planning.pod import check_scheduling, pod_extras, work_scheduling

from kit.operator.settings import settings

GPU = Toleration(key="nvidia.com/gpu", operator=TolerationOperator.EXISTS)
SPOT = Toleration(key="spot", operator=TolerationOperator.EXISTS)


def owner(**fields: Any) -> Owner:
    return Owner(Key(Kind.LORAJOB, "team", "a"), "0a1b-uid", 1, **{"labels": {}, **fields})


def test_the_manifest_goes_before_the_platform_and_tolerations_add_up() -> None:
    trainer = {
        "nodeSelector": {"pool": "cheap", "zone": "a"},
        "tolerations": [SPOT],
        "priorityClassName": "low",
        "gpu": {"nodeSelector": {"gpu": "h100"}, "tolerations": [GPU, SPOT]},
    }
    spec = SchedulingSpec(node_selector={"pool": "fast"}, tolerations=[SPOT], priority_class_name="high")
    placed = work_scheduling(spec, settings(trainer=trainer), gpus=1)
    assert placed.node_selector == {"pool": "fast", "zone": "a", "gpu": "h100"}
    assert placed.tolerations == [SPOT, GPU]
    assert placed.priority_class_name == "high"
    on_cpu = work_scheduling(SchedulingSpec(), settings(trainer=trainer), gpus=0)
    assert on_cpu.node_selector == {"pool": "cheap", "zone": "a"}
    assert on_cpu.priority_class_name == "low"


def test_checks_are_placed_by_the_platform_and_tolerate_what_the_manifest_does() -> None:
    spec = SchedulingSpec(
        node_selector={"gpu": "h100"}, tolerations=[GPU], service_account_name="s", priority_class_name="high"
    )
    placed = check_scheduling(spec, settings(preflight={"nodeSelector": {"pool": "cpu"}, "tolerations": [SPOT]}))
    assert placed.node_selector == {"pool": "cpu"}
    assert placed.tolerations == [GPU, SPOT]
    assert placed.service_account_name == "s"
    assert placed.priority_class_name is None


def test_where_the_platform_says_nothing_the_manifest_stays_as_it_is() -> None:
    spec = SchedulingSpec(node_selector={"a": "b"})
    assert work_scheduling(spec, settings(), gpus=1).to_json_dict() == spec.to_json_dict()


def test_what_is_inherited_never_hides_the_platforms_word_or_ours() -> None:
    labels = {"cost/centre": "1", "cost/team": "red", "tunery.dev/role": "x", "other": "y"}
    # What Kubernetes gives to the pods of Jobs itself: a Job that names another is refused.
    labels |= {"job-name": "x", "controller-uid": "x", "batch.kubernetes.io/job-name": "x", "job-class": "long"}
    prefixes = ["cost/", "tunery.dev/", "job", "batch.", "c", "k"]
    extras = pod_extras(
        owner(labels=labels, annotations={"cost/note": "n", "kubectl.kubernetes.io/last-applied-configuration": "{}"}),
        settings(trainer={"podLabels": {"cost/centre": "42"}, "inheritLabels": prefixes}),
    )
    assert extras.labels == {"cost/centre": "42", "cost/team": "red", "job-class": "long"}
    assert extras.annotations == {"cost/note": "n"}


def test_checkpoints_have_a_prefix_of_their_object() -> None:
    assert checkpoints_uri("s3://b/out/a", owner()) == "s3://b/tunery-checkpoints/team/a-0a1b-uid"
