"""Whose it is to mend what keeps a pod away: a value of the chart that the manifest does not say is named."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from controller.servers import deployment, server_pod
from controller.serverstatuskit import compute
from controller.serverstatuskit import snapshot as server
from controller.statuskit import at, job, judge, pod
from tunery_api.reasons import advice_for
from tunery_operator.plan.placing import platform_says
from tunery_operator.settings import CaBundle, Placement, PodTemplate, Settings
from tunery_operator.views.attempt import Attempt, ClusterWarning

PLACED = PodTemplate(
    node_selector={"pool": "ml"},
    priority_class_name="nope",
    runtime_class_name="gvisor",
    ca_bundle=CaBundle(config_map="corp"),
)
CHECKED = Placement(node_selector={"pool": "cpu"}, priority_class_name="nope", runtime_class_name="gvisor")
UNPLACED = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
RUNTIME = 'Error creating: pods "x" is forbidden: pod rejected: RuntimeClass "gvisor" not found'
PRIORITY = 'Error creating: pods "x" is forbidden: no PriorityClass with name nope was found'
NO_NODE = "0/2 nodes are available: 2 node(s) didn't match Pod's node affinity/selector."
CONSTRAINED = "unable to validate against any security context constraint: .spec.securityContext.runAsUser: 65532"
LIMITED = 'pods "x" is forbidden: maximum cpu usage per Container is 500m, but limit is 1'
NO_BUNDLE = 'MountVolume.SetUp failed for volume "volume-ca-bundle" : configmap "corp" not found'


def refused_by(message: str, role: str) -> Attempt:
    """Return a Job of that role whose pod is missing, or waits, for what the cluster says."""
    made = job(labels={"tunery.dev/role": role})
    if message == NO_NODE:
        return Attempt(made, (pod(conditions=[{**UNPLACED, "message": message}]),))
    if message in (NO_BUNDLE, "ImagePullBackOff"):
        waits = pod(state={"waiting": {"reason": "ContainerCreating" if message == NO_BUNDLE else message}})
        return Attempt(made, (waits,), (ClusterWarning("FailedMount", NO_BUNDLE, at(-9), "Pod"),))
    return Attempt(made, (), (ClusterWarning("FailedCreate", message, at(-9), "Job"),))


@pytest.mark.parametrize("role", ["preflight", "train"])
@pytest.mark.parametrize(
    ("message", "value"),
    [
        (RUNTIME, "{}.runtimeClassName in the values of its chart"),
        (PRIORITY, "{}.priorityClassName in the values of its chart"),
        (NO_NODE, "{}.nodeSelector of the chart asks for that, not the manifest"),
        (CONSTRAINED, "trainer.securityContext in the values of its chart"),
        (NO_BUNDLE, "Create ConfigMap corp in this namespace"),
        ("ImagePullBackOff", "correct trainer.image"),
    ],
)
def test_what_keeps_a_pod_away_and_the_manifest_does_not_say_names_the_charts_value(
    message: str, value: str, role: str
) -> None:
    platform = platform_says({}, Settings(trainer_image="i", pod_template=PLACED, preflight_scheduling=CHECKED), 1)
    stage = {"preflight": {"main": None, "preflight_needed": True}, "train": {}}[role]
    attempt = {"preflight" if role == "preflight" else "main": refused_by(message, role)}
    found = judge(platform=platform, **(stage | attempt))["failure"]
    assert value.format({"preflight": "preflight", "train": "trainer"}[role]) in found["hint"]
    assert "ask whoever runs Tunery" in found["hint"] or message == NO_BUNDLE


@pytest.mark.parametrize("message", [RUNTIME, PRIORITY, NO_NODE])
def test_what_the_manifest_says_itself_is_its_own_to_mend(message: str) -> None:
    own = {"nodeSelector": {"pool": "x"}, "priorityClassName": "nope", "runtimeClassName": "gvisor"}
    platform = platform_says(own, Settings(trainer_image="i", pod_template=PLACED), 1)
    found = judge(platform=platform, main=refused_by(message, "train"))["failure"]
    assert found["hint"] == advice_for(found["reason"]).hint


def test_the_limits_of_a_namespace_are_against_the_spec_or_what_checks_have() -> None:
    check = judge(main=None, preflight_needed=True, preflight=refused_by(LIMITED, "preflight"))["failure"]
    assert "correct preflight.resources" in check["hint"]
    found = judge(main=refused_by(LIMITED, "train"))["failure"]
    assert "preflight" not in found["hint"]


def test_a_server_is_told_whose_value_it_is_too() -> None:
    says = platform_says({}, Settings(trainer_image="i", pod_template=PLACED), 1).work
    refused = replace(deployment(1, updated=0), failure=RUNTIME)
    waits = server_pod("a", ready=False, phase="Pending", containers=(), unschedulable=NO_NODE)
    for found, value in (
        (server(rollout=refused, says=says), "correct trainer.runtimeClassName in the values of its chart"),
        (server(waits, rollout=deployment(1, updated=0), says=says), "trainer.nodeSelector of the chart asks for that"),
    ):
        hint: Any = compute(found).status["failure"]["hint"]
        assert value in hint
        assert value not in compute(replace(found, says={})).status["failure"]["hint"]
