"""Jobs of several GPUs and nodes: what is added to the Job of one, and by which names their pods find each other."""

from __future__ import annotations

import copy
import json
import re
from typing import Any

import pytest

from tunery_api.kinds import Kind
from tunery_api.names import NODES_PORTS, child_name
from tunery_api.validation import parse_lorajob
from tunery_operator.manifests.job import build_job, build_service
from tunery_operator.observed.metadata import Owner, parse_owner
from tunery_operator.planning.job import JobPlan, Platform, Progress
from tunery_operator.planning.lorajob import ResolvedInputs, plan_preflight, plan_publish, plan_report, plan_train

from kit import kubectl_yaml
from kit.installation import ROOT
from kit.kubectl import Kubectl
from kit.operator.objects import lorajob
from kit.operator.settings import settings

Json = dict[str, Any]
UID = "4f8b1c2d-0000-4000-8000-000000000000"
NEAR = {"kueue.x-k8s.io/podset-required-topology": "cloud/rack"}
DISTRIBUTED = {
    "env": {"NCCL_SOCKET_IFNAME": "eth1"},
    "annotations": {"k8s.v1.cni.cncf.io/networks": "rdma"},
    "resources": {"rdma/hca_shared": "1", "nvidia.com/gpu": "99"},
}
LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")


def owner(name: str = "x", annotations: dict[str, str] | None = None) -> Owner:
    return parse_owner(
        Kind.LORAJOB,
        {"metadata": {"namespace": "ns", "name": name, "uid": UID, "generation": 1, "annotations": annotations}},
    )


def platform(**template: Any) -> Platform:
    return Platform(settings(trainer=template), Progress("https://tunery:8443", "PEM"))


def train(whose: Owner, on: Platform, **resources: Any) -> JobPlan:
    return plan_train(
        parse_lorajob(lorajob(whose.key.name, retries=2, resources=resources)), whose, on, ResolvedInputs()
    )


def container(job: Json) -> Json:
    first: Json = job["spec"]["template"]["spec"]["containers"][0]
    return first


def variables(job: Json) -> dict[str, str]:
    return {each["name"]: each["value"] for each in container(job)["env"]}


def shm(job: Json) -> str:
    volumes = job["spec"]["template"]["spec"]["volumes"]
    size: str = next(each for each in volumes if each["name"] == "shm")["emptyDir"]["sizeLimit"]
    return size


def without(body: Json, *paths: str) -> Json:
    """Return a copy of an object without what lies at these paths."""
    left = copy.deepcopy(body)
    for path in paths:
        *blocks, last = path.split(".")
        at = left
        for block in blocks:
            at = at[block]
        del at[last]
    return left


def test_one_device_is_what_it_was() -> None:
    """Neither the platform's word on several devices nor the topology of several pods reaches it."""
    plain, told = train(owner(), platform(), gpus=1), train(owner("x", NEAR), platform(distributed=DISTRIBUTED), gpus=1)
    assert json.dumps(build_job(plain)) == json.dumps(build_job(told))
    job = build_job(plain)
    assert (job["spec"]["parallelism"], job["spec"]["completions"], shm(job)) == (1, 1, "1Gi")
    assert {"completionMode", "backoffLimitPerIndex", "maxFailedIndexes", "successPolicy"}.isdisjoint(job["spec"])
    assert "subdomain" not in job["spec"]["template"]["spec"]
    assert {"TUNERY_NODES", "TUNERY_MASTER"}.isdisjoint(variables(job))


def test_several_gpus_of_one_pod_are_the_same_job_with_more_of_them() -> None:
    one, four = build_job(train(owner(), platform(), gpus=1)), build_job(train(owner(), platform(), gpus=4))
    assert container(four)["resources"]["limits"]["nvidia.com/gpu"] == "4"
    assert container(four)["resources"]["requests"] == container(four)["resources"]["limits"]
    assert (shm(one), shm(four)) == ("1Gi", "5Gi")
    assert shm(build_job(train(owner(), platform(shmSize="512Mi"), gpus=2))) == str(2**31 + 2**29)
    # What is to run says the GPUs, too, and the digest of the plan is that of another one.
    differ = ("metadata.annotations", "spec.template.metadata.annotations", "spec.template.spec.containers")
    assert without(one, *differ, "spec.template.spec.volumes") == without(four, *differ, "spec.template.spec.volumes")


def test_the_job_of_several_nodes() -> None:
    plan = train(owner("x", NEAR), platform(), gpus=8, nodes=4)
    job, one = build_job(plan), build_job(train(owner(), platform(), gpus=8))
    spec = without(job["spec"], "template")
    assert spec == {
        "suspend": False,
        "parallelism": 4,
        "completions": 4,
        "completionMode": "Indexed",
        "backoffLimit": 12,
        "backoffLimitPerIndex": 2,
        "maxFailedIndexes": 0,
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {
            "rules": [
                {"action": "FailJob", "onExitCodes": {"containerName": "trainer", "operator": "In", "values": [64]}},
                {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                {"action": "Ignore", "onExitCodes": {"containerName": "trainer", "operator": "In", "values": [76]}},
            ]
        },
        "successPolicy": {"rules": [{"succeededIndexes": "0"}]},
    }
    pod = job["spec"]["template"]
    assert pod["spec"]["subdomain"] == "tunery-4f8b1c2d"
    assert NEAR.items() <= pod["metadata"]["annotations"].items()
    own = {"TUNERY_NODES": "4", "TUNERY_MASTER": "x-train-0.tunery-4f8b1c2d"}
    assert variables(job) == variables(one) | own
    assert container(job)["resources"] == container(one)["resources"], "each pod has what one alone has"
    assert job["metadata"]["name"] == one["metadata"]["name"] == "x-train"


def test_the_service_is_of_the_pods_of_this_object_alone() -> None:
    plan = train(owner(), platform(), gpus=0, nodes=2)
    service, pod = build_service(plan), build_job(plan)["spec"]["template"]
    assert service["spec"] == {
        "clusterIP": "None",
        "publishNotReadyAddresses": True,
        "selector": {"tunery.dev/kind": "lorajob", "tunery.dev/owner-uid": UID, "tunery.dev/role": "train"},
        "ports": [
            {"name": "collectives", "port": 29500, "protocol": "TCP"},
            {"name": "channel", "port": 29501, "protocol": "TCP"},
        ],
    }
    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    assert service["metadata"]["name"] == pod["spec"]["subdomain"]
    assert service["metadata"]["ownerReferences"] == build_job(plan)["metadata"]["ownerReferences"]


@pytest.mark.parametrize("resources", [{"gpus": 2}, {"gpus": 0, "nodes": 2}], ids=["two-gpus", "two-nodes"])
def test_what_the_platform_says_of_several_devices_reaches_them_and_no_check(resources: Json) -> None:
    on = platform(env={"NCCL_SOCKET_IFNAME": "eth0", "A": "b"}, distributed=DISTRIBUTED)
    plan = train(owner(), on, **resources)
    job = build_job(plan)
    assert {"NCCL_SOCKET_IFNAME": "eth1", "A": "b"}.items() <= variables(job).items()
    assert job["spec"]["template"]["metadata"]["annotations"]["k8s.v1.cni.cncf.io/networks"] == "rdma"
    limits = container(job)["resources"]["limits"]
    assert limits["rdma/hca_shared"] == "1"
    assert resources["gpus"] == 0 or limits["nvidia.com/gpu"] == "2", "the manifest says how many GPUs"
    assert plan.digest != train(owner(), platform(env=on.settings.trainer.env), **resources).digest
    spec = parse_lorajob(lorajob("x", resources=resources))
    for other in (
        plan_preflight(spec, owner(), on, ResolvedInputs()),
        plan_report(spec, owner(), on, ResolvedInputs()),
        plan_publish(spec, owner(), on, ResolvedInputs(), "enough"),
    ):
        alone = build_job(other)
        assert variables(alone)["NCCL_SOCKET_IFNAME"] == "eth0"
        assert (alone["spec"]["completions"], "completionMode" in alone["spec"]) == (1, False)
        assert {"rdma/hca_shared", "nvidia.com/gpu"}.isdisjoint(container(alone)["resources"]["limits"])


@pytest.mark.parametrize(("name", "storage"), [("two-nodes", 443), ("two-nodes-cpu", 8333)])
def test_the_networkpolicy_of_the_example_is_of_its_pods(name: str, storage: int) -> None:
    policy, example = kubectl_yaml.load_all((ROOT / "docs" / "examples" / f"{name}.yaml").read_text())
    spec = parse_lorajob(example)
    labels = build_job(plan_train(spec, owner(name), platform(), ResolvedInputs()))["spec"]["template"]["metadata"][
        "labels"
    ]
    assert policy["spec"]["egress"][-1] == {"ports": [{"port": storage}]}
    (arriving,) = policy["spec"]["ingress"]
    own = policy["spec"]["podSelector"]
    assert own["matchLabels"].items() <= labels.items()
    assert arriving["from"] == policy["spec"]["egress"][0]["to"] == [{"podSelector": own}]
    (ports,) = arriving["ports"]
    assert policy["spec"]["egress"][0]["ports"] == [ports]
    assert ports["port"] <= min(NODES_PORTS) < max(NODES_PORTS) <= ports["endPort"]
    assert "publish" not in own["matchLabels"].values(), "the pod that publishes meets nobody"


NAMES = [
    "x",
    "7b-chat",
    "a.b",
    "a-b",
    "team.model.v1",
    "n" * 40,
    "9" + "n" * 56,
    "n" * 57,
    "n" * 63,
    "a." * 31 + "z",
    "n" * 253,
]


@pytest.mark.parametrize("nodes", [2, 10, 11, 64])
def test_each_pod_has_a_host_name(nodes: int) -> None:
    """A name with the number of a pod behind it is a label of DNS: no dots, at most 63 characters."""
    names = {name: child_name(name, "train", nodes) for name in NAMES}
    assert len(set(names.values())) == len(NAMES), "no two objects share a Job"
    for name in names.values():
        host = f"{name}-{nodes - 1}"
        assert LABEL.fullmatch(host)
        assert len(host) <= 63
    assert (names["x"], names["7b-chat"], names["a-b"]) == ("x-train", "7b-chat-train", "a-b-train")


def test_the_api_server_takes_every_name(api_server: Kubectl) -> None:
    """Its own validation, for names of any length, in one call; and what it would refuse without ours."""
    bodies = []
    for name in NAMES:
        for nodes in (2, 64):
            plan = train(owner(name), platform(), gpus=1, nodes=nodes)
            bodies += [build_job(plan), build_service(plan)]
    policy, _ = kubectl_yaml.load_all((ROOT / "docs" / "examples" / "two-nodes.yaml").read_text())
    bodies.append(policy)
    for body in bodies:
        body["metadata"]["namespace"] = "default"
    listed = json.dumps({"apiVersion": "v1", "kind": "List", "items": bodies})
    said = api_server.run("create", "--dry-run=server", "-o", "name", "-f", "-", stdin=listed)
    assert len(said.splitlines()) == len(bodies)
