"""Whose it is to mend what keeps a pod away: a value of the chart that the manifest does not say is named."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tunery_api.kinds import Kind
from tunery_api.reasons import advice_for
from tunery_operator.plan.platform_says import platform_says
from tunery_operator.settings import CaBundle, Placement, PodTemplate, Serving, Settings
from tunery_operator.status.server.snapshot import ServerSnapshot
from tunery_operator.views.attempt import Attempt, ClusterWarning
from tunery_operator.views.server_pod import ContainerView

from kit.operator.servers import deployment, server_pod
from kit.operator.serverstatuskit import compute
from kit.operator.serverstatuskit import snapshot as server
from kit.operator.statuskit import at, ended, job, judge, pod

PLACED = PodTemplate(
    node_selector={"pool": "ml"},
    priority_class_name="nope",
    runtime_class_name="gvisor",
    ca_bundle=CaBundle(config_map="corp"),
)
CHECKED = Placement(node_selector={"pool": "cpu"}, priority_class_name="nope", runtime_class_name="gvisor")
CHECKS: dict[str, Any] = {"main": None, "preflight_needed": True}
UNPLACED = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
RUNTIME = 'Error creating: pods "x" is forbidden: pod rejected: RuntimeClass "gvisor" not found'
PRIORITY = 'Error creating: pods "x" is forbidden: no PriorityClass with name nope was found'
NO_MODULE = 'failed to create containerd task: exec: "python": executable file not found in $PATH'
NO_CLAIM = '0/1 nodes are available: persistentvolumeclaim "models" not found.'
UNBOUND = "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims."
NO_NODE = "0/2 nodes are available: 2 node(s) didn't match Pod's node affinity/selector."
CONSTRAINED = "unable to validate against any security context constraint: .spec.securityContext.runAsUser: 65532"
LIMITED = 'pods "x" is forbidden: maximum cpu usage per Container is 500m, but limit is 1'
NO_BUNDLE = 'MountVolume.SetUp failed for volume "volume-ca-bundle" : configmap "corp" not found'


def refused_by(message: str, role: str) -> Attempt:
    """Return a Job of that role whose pod is missing, or waits, for what the cluster says."""
    made = job(labels={"tunery.dev/role": role})
    if message in (NO_NODE, NO_CLAIM, UNBOUND):
        return Attempt(made, (pod(conditions=[{**UNPLACED, "message": message}]),))
    if message == NO_MODULE:
        state = {"waiting": {"reason": "RunContainerError", "message": message}}
        return Attempt(made, (pod(state=state),))
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
        ("ImagePullBackOff", "correct trainer.image in"),
        (NO_MODULE, "correct trainer.image in"),
        (NO_CLAIM, "PersistentVolumeClaim models in this namespace: cache.claimName of the chart"),
        (UNBOUND, "why a claim of this namespace is not bound: models. Of models: cache.claimName of the chart"),
    ],
)
def test_what_keeps_a_pod_away_and_the_manifest_does_not_say_names_the_charts_value(
    message: str, value: str, role: str
) -> None:
    settings = Settings(trainer_image="i", pod_template=PLACED, preflight_scheduling=CHECKED, cache_claim="models")
    platform = platform_says(Kind.LORAJOB, {}, settings, 1)
    stage = {"preflight": CHECKS, "train": {}}[role]
    attempt = {"preflight" if role == "preflight" else "main": refused_by(message, role)}
    found = judge(platform=platform, **(stage | attempt))["failure"]
    assert value.format({"preflight": "preflight", "train": "trainer"}[role]) in found["hint"]
    assert "ask whoever runs Tunery" in found["hint"] or message == NO_BUNDLE
    assert "spec.scheduling" not in found["hint"]


@pytest.mark.parametrize("message", [RUNTIME, PRIORITY, NO_NODE])
def test_what_the_manifest_says_itself_is_its_own_to_mend(message: str) -> None:
    own = {"nodeSelector": {"pool": "x"}, "priorityClassName": "nope", "runtimeClassName": "gvisor"}
    platform = platform_says(Kind.LORAJOB, {"scheduling": own}, Settings(trainer_image="i", pod_template=PLACED), 1)
    found = judge(platform=platform, main=refused_by(message, "train"))["failure"]
    assert found["hint"] == advice_for(found["reason"]).hint


TYPO = {"nodeSelector": {"gpu": "typo"}}
AFFINE = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": []}}}
OF_CHART = "{}.nodeSelector of the chart asks for pool={}, which the manifest cannot take away"


@pytest.mark.parametrize(
    ("scheduling", "role", "tainted", "says", "not_said"),
    [
        (
            TYPO,
            "train",
            False,
            (
                "gpu=typo and pool=ml, and offers",
                "asks for gpu=typo (spec.scheduling.nodeSelector, which may change",
                OF_CHART.format("trainer", "ml"),
            ),
            ("taint", "affinity"),
        ),
        (
            {**TYPO, "affinity": AFFINE},
            "train",
            True,
            (
                "(spec.scheduling.nodeSelector and spec.scheduling.affinity, which",
                "spec.scheduling.tolerations may change",
            ),
            (),
        ),
        # What a check needs of nodes the platform alone says; what it tolerates, both.
        (
            TYPO,
            "preflight",
            True,
            ("preflight.nodeSelector of the chart asks for that, not", "preflight.tolerations of the chart and spec."),
            ("typo",),
        ),
    ],
)
def test_where_both_ask_something_of_nodes_each_is_told_as_its_own(
    scheduling: dict[str, Any], role: str, tainted: bool, says: tuple[str, ...], not_said: tuple[str, ...]
) -> None:
    settings = Settings(trainer_image="i", pod_template=PLACED, preflight_scheduling=CHECKED)
    platform = platform_says(Kind.LORAJOB, {"scheduling": scheduling}, settings, 1)
    text = NO_NODE if not tainted else NO_NODE.replace("2 node(s)", "1 node(s) had untolerated taint(s), 1 node(s)")
    waits = Attempt(job(labels={"tunery.dev/role": role}), (pod(conditions=[{**UNPLACED, "message": text}]),))
    stage: dict[str, Any] = {"main": waits} if role == "train" else CHECKS | {"preflight": waits}
    hint = judge(platform=platform, **stage)["failure"]["hint"]
    assert [each for each in says if each not in hint] == [each for each in not_said if each in hint] == []


def test_a_claim_that_is_not_bound_may_be_the_manifests() -> None:
    settings, spec = Settings(trainer_image="i", cache_claim="models"), {"dataset": {"uri": "pvc://rows/a.jsonl"}}
    found = judge(platform=platform_says(Kind.LORAJOB, spec, settings, 1), main=refused_by(UNBOUND, "train"))["failure"]
    assert "models, or rows, which the manifest names" in found["hint"]


@pytest.mark.parametrize(
    ("message", "reason"), [(NO_MODULE, "ContainerRefused"), ("", "InternalError")], ids=["no-python", "no-module"]
)
def test_an_attempt_that_ended_for_the_image_names_it_too(message: str, reason: str) -> None:
    end = ended(code=128 if message else 1, why="StartError" if message else "Error", says=message)
    platform = platform_says(
        Kind.BATCHINFERENCE, {}, Settings(trainer_image="i", serving=Serving(server_image="s:1")), 0
    )
    found = judge(end, train=job(failed_reason="BackoffLimitExceeded"), platform=platform)["failure"]
    assert found["reason"] == reason
    assert "serving.server.image" in found["hint"]
    assert "goes on by itself" not in found["hint"], "it has failed"


def test_the_limits_of_a_namespace_are_against_the_spec_or_what_checks_have() -> None:
    check = judge(main=None, preflight_needed=True, preflight=refused_by(LIMITED, "preflight"))["failure"]
    assert "correct preflight.resources" in check["hint"]
    found = judge(main=refused_by(LIMITED, "train"))["failure"]
    assert "preflight" not in found["hint"]


def test_a_server_is_told_whose_value_it_is_too() -> None:
    serving = Serving(server_image="s:1", engine_image="e:1")
    settings = Settings(trainer_image="i", pod_template=PLACED, serving=serving)
    says = platform_says(Kind.ADAPTERSERVER, {"resources": {"memory": "24Gi"}}, settings, 1).work
    refused = replace(deployment(1, updated=0), failure=RUNTIME)
    waits = server_pod("a", ready=False, phase="Pending", containers=(), unschedulable=NO_NODE)
    for found, value in (
        (server(rollout=refused, says=says), "correct trainer.runtimeClassName in the values of its chart"),
        (server(waits, rollout=deployment(1, updated=0), says=says), "trainer.nodeSelector of the chart asks for that"),
        (
            limited("maximum memory usage per Container is 256Mi, but limit is 512Mi", says),
            "serving.server.resources in",
        ),
        (
            limited("[maximum cpu usage per Pod is 2, but limit is 5]", says),
            "door has 1, 512Mi, 1Gi by serving.server.",
        ),
        (unpulled("door", says), "correct serving.server.image in"),
        (unpulled("model", says), "correct serving.server.image in"),
        (unpulled("engine", says), "correct serving.engine.image in"),
    ):
        hint: Any = compute(found).status["failure"]["hint"]
        assert value in hint
        assert value not in compute(replace(found, says={})).status["failure"]["hint"]
    own = platform_says(
        Kind.ADAPTERSERVER, {"engine": {"image": "mine:1"}, "resources": {"memory": "24Gi"}}, settings, 1
    )
    for found in (
        unpulled("engine", own.work),
        limited("maximum memory usage per Container is 16Gi, but limit is 24Gi", own.work),
    ):
        assert "serving." not in compute(found).status["failure"]["hint"], "it is the manifest's own"


def limited(message: str, says: Any) -> ServerSnapshot:
    """Return a server whose pods a LimitRange refuses."""
    return server(rollout=replace(deployment(1, updated=0), failure=f'pods "x" is forbidden: {message}'), says=says)


def unpulled(container: str, says: Any) -> ServerSnapshot:
    """Return a server with a container whose image cannot be pulled."""
    waits = ContainerView(container, waiting_reason="ImagePullBackOff")
    found = server_pod("a", ready=False, phase="Pending", containers=(waits,))
    return server(found, rollout=deployment(1, updated=0), says=says)
